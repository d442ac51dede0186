"""Reading files: byte order marks, other encodings, and characters that JSON can escape but UTF-8 cannot hold."""

import codecs
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hir_jax.checks.judge import calibration
from hir_jax.checks.judge.soft import JudgeError
from hir_jax.data import hir16k, native, readers
from hir_jax.data.rows import read_rows
from hir_jax.eval.judged import complexbench
from hir_jax.model.files import hf_config
from hir_jax.model.files.checkpoint import CheckpointError
from hir_jax.run import files
from hir_jax.textfiles import RowError, parse_json, read_json, read_jsonl, read_text

NATIVE = {"task": "Write.", "constraints": [{"id": "punctuation:no_comma", "text": "No commas."}], "template": "type1"}
IFEVAL = {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def test_a_mark_is_passed_over(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(codecs.BOM_UTF8 + b'{"a": 1}\r\n{"a": 2}\n')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (2, {"a": 2})]
    assert read_text(path) == '{"a": 1}\n{"a": 2}\n'
    path.write_bytes(codecs.BOM_UTF8)
    assert read_text(path) == "" and list(read_jsonl(path)) == []


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_other_encodings_are_one_error(tmp_path, coding):
    path = tmp_path / "file"
    path.write_bytes('{"a": 1}\n{"a": 2}\n{"a": 3}\n'.encode(coding))
    errors = []
    for read in (read_text, read_json, lambda path: list(read_jsonl(path, errors.append))):
        with pytest.raises(RowError, match=rf"^{path}: is UTF-(16|32) text; convert it to UTF-8"):
            read(path)
    assert errors == []


READERS = {
    "native": (native.read, [NATIVE]),
    "ifeval": (readers.read_ifeval, [IFEVAL]),
    "tables": (lambda path: list(read_rows(path, lambda error: None)), [IFEVAL]),
    "complexbench": (complexbench.read, [[{"main_id": 1, "instruction": "Go."}]]),
    "calibration": (
        calibration.read_pairs, [{"kind": "k", "prompt": "p", "constraint": "c", "response": "r", "met": True}],
    ),
    "model": (hf_config.read_json, [{"model_type": "llama"}]),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_every_reader_takes_marks_and_names_utf_16(tmp_path, name):
    read, rows = READERS[name]
    path = tmp_path / "file.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    plain = read(path)
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert read(path) == plain
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 3), encoding="utf-16")
    with pytest.raises((RowError, JudgeError, CheckpointError), match=r"file\.json: is UTF-16 text"):
        read(path)


def test_a_runs_config_may_have_a_mark(tmp_path):
    (tmp_path / "config.json").write_bytes(codecs.BOM_UTF8 + b'{"seed": 1}')
    assert files.read_config(tmp_path) == {"seed": 1}


@given(st.text(st.characters(codec="utf-8")), st.integers(0xD800, 0xDFFF), st.text(st.characters(codec="utf-8")))
def test_halves_of_pairs_are_named_wherever_they_are(before, half, after):
    broken = before + chr(half) + after
    for value in (broken, {broken: 1}, {"a": [{"b": broken}]}):
        with pytest.raises(RowError, match=rf"^here: holds \\u{half:04x} alone"):
            parse_json(json.dumps(value), "here")
        assert parse_json(json.dumps(value), "here", halves=True) == value
    for value in (before, "\\ud83d", "\U0001f600"):  # what is escaped, and a whole pair, are characters
        assert parse_json(json.dumps(value), "here") == value


@pytest.mark.parametrize(
    "change",
    [
        {"task": "Write \ud83d."},
        {"response": "\udc00"},
        {"key": "\udfff"},
        {"constraints": [{"id": "punctuation:no_comma", "text": "No \ud800 commas."}]},
        {"constraints": [{"id": "keywords:existence", "arguments": {"keywords": ["\ud800"]}}]},
    ],
)
def test_rows_of_ours_are_refused_by_line(tmp_path, change):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(NATIVE) + "\n" + json.dumps(NATIVE | change) + "\n")
    with pytest.raises(RowError, match=rf"^{path}:2: holds .* half of a surrogate pair"):
        native.read(path)


def test_json_within_a_row_of_hir16k_too(tmp_path):
    row = {
        "id": 1, "source": "type1", "prompt": "Write.", "criteria": ["Use it."],
        "ground_truth": json.dumps({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["\ud800"]}]}),
    }  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    found, errors = hir16k.read(path, template="type1")
    assert not found and str(errors[0]).startswith(
        f"{path}:1: field: ground_truth is a string, but holds \\ud800 alone"
    )


def test_files_of_a_run_may_end_within_a_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1, "text": "\\ud83d"}\n{"step": 2, "te')
    assert list(read_jsonl(path, own=True)) == [(1, {"step": 1, "text": "\ud83d"})]
    path.write_text('{"step": 1\n{"step": 2}')
    with pytest.raises(RowError, match=f"{path}:1: not JSON"):
        list(read_jsonl(path, own=True))


def test_the_module_imports_nothing_slow():
    code = "import sys, hir_jax.textfiles; print([m for m in ('jax', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
