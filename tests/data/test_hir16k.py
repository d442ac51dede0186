"""Rows of HIR-16K from every kind of file become instructions, or errors with a reason."""

import json
from collections import Counter
from dataclasses import replace

import hir16k_rows
import pyarrow
import pyarrow.parquet
import pytest

from hir_jax.checks import registry
from hir_jax.checks.sandbox import code
from hir_jax.checks.verifier import Row, Verifier
from hir_jax.checks.worker import Outcome
from hir_jax.data import hir16k
from hir_jax.data.readers import RowError
from hir_jax.data.rows import read_rows
from hir_jax.data.templates import REWRITABLE, render
from hir_jax.types import InputError


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def without_place(instructions):
    return [replace(instruction, source="") for instruction in instructions]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("hir16k") / "rows.jsonl", [row for row, _ in hir16k_rows.all_rows()])


def test_two_hundred_rows(lines):
    expected = [outcome for _, outcome in hir16k_rows.all_rows()]
    assert len(expected) == 200
    instructions, errors = hir16k.read(lines)
    good = [replace(one, source=f"{lines}:{n}") for n, one in enumerate(expected, start=1) if not isinstance(one, str)]
    bad = [(f"{lines}:{n}", one) for n, one in enumerate(expected, start=1) if isinstance(one, str)]
    assert instructions == good
    assert [(str(error).partition(": ")[0], error.reason) for error in errors] == bad
    assert {(one.template, row["source"]) for row, one in hir16k_rows.good_rows() if "source" in row} == {
        (template, f"type{source}") for template in REWRITABLE for source in (1, 2, 3, 4)
    }
    reasons = {
        "field",
        "lengths differ",
        "criteria differ",
        "prompt differs",
        "id used before",
        "no task",
        "no template",
    }
    reasons |= {f"unknown {what}" for what in ("source", "template", "constraint", "checker")} | {"unusable arguments"}
    assert set(Counter(error.reason for error in errors)) == reasons


def test_prompts_are_rendered_as_published(lines):
    for instruction in hir16k.read(lines)[0]:
        texts = [constraint.text for constraint in instruction.constraints]
        assert render(instruction) == hir16k_rows.rendered(instruction.task, texts, instruction.template)


def test_white_space_before_a_criterion_is_no_other_prompt(tmp_path):
    """Published lines are the unchanged criteria, except that type6 strips the white space before them."""
    row, _ = hir16k_rows.good_row(0, "type1", "type6")
    texts = row["criteria"] = ["\n" + row["criteria"][0], *row["criteria"][1:-1], "  " + row["criteria"][-1]]
    row["extra_info"]["criteria"] = texts
    row["prompt"] = hir16k_rows.rendered(row["extra_info"]["question"], texts, "type6")
    (instruction,), errors = hir16k.read(write_lines(tmp_path / "rows.jsonl", [row]))
    assert not errors and render(instruction).endswith("\n" + texts[-1].strip())
    assert "\n\n\n" not in render(instruction)


def test_messages_name_the_fault(lines):
    messages = "\n".join(str(error) for error in hir16k.read(lines)[1])
    for part in (
        "rows.jsonl:6: field: id must be an integer or a string, not None",
        "id used before: 0 is the id of {}:1 too",
        "unknown source: source must be one of type1, type2, type3, type4, not 'type5'",
        "unknown template: q_type must be one of type1, type2, type3, type4, type5, type6, not 'type7'",
        "entries in ground_truth.kwargs",
        "ground_truth is a string, but not JSON",
        "unknown constraint: constraint 1: unknown constraint id 'count:nuns'; the nearest known one is 'count:",
        "unusable arguments: constraint 0: ",
        "unknown checker: ground_truth.checker[0] starts with neither [llm] nor [rule]: '[dice] six'",
    ):
        assert part.format(lines) in messages


def test_lines_that_are_no_rows(tmp_path):
    row = hir16k_rows.good_row(0, "type1", "type1")[0]
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{{broken\n[1]\n\n{json.dumps(row)}\n", encoding="utf-8")
    instructions, errors = hir16k.read(path)
    assert [instruction.source for instruction in instructions] == [f"{path}:4"]
    assert [error.reason for error in errors] == ["not a row", "not a row"]
    assert str(errors[0]).startswith(f"{path}:1: not a row: not JSON: ")


def test_rows_without_template(tmp_path):
    """In the published file the prompt is the task, and no template is named."""
    pairs = [hir16k_rows.good_row(number, f"type{number % 4 + 1}", "type4") for number in range(8)]
    rows = [row | {"prompt": row["extra_info"]["question"]} for row, _ in pairs]
    path = write_lines(tmp_path / "HIR.jsonl", [{k: v for k, v in row.items() if k != "extra_info"} for row in rows])
    instructions, errors = hir16k.read(path, template="type4")
    assert (without_place(instructions), errors) == ([instruction for _, instruction in pairs], [])
    instructions, errors = hir16k.read(path)
    assert (instructions, [error.reason for error in errors]) == ([], ["no template"] * 8)
    with pytest.raises(ValueError, match="unknown template 'verbatim'"):
        hir16k.read(path, template="verbatim")


# Tables


def table_rows(truth_as_json):
    """Good rows in a form that a table can hold, with one type a column."""
    for number in range(48):
        row, instruction = hir16k_rows.good_row(number, f"type{number % 4 + 1}", f"type{number // 4 % 6 + 1}")
        if truth_as_json:
            row["ground_truth"] = json.dumps(row["ground_truth"])
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        else:  # all objects of a column have the same keys, with null for those they lack
            for arguments in row["ground_truth"].get("kwargs", []):
                arguments |= {name: float(value) for name, value in arguments.items() if isinstance(value, int)}
        yield row, instruction


@pytest.fixture(params=[True, False], ids=["json", "objects"])
def pairs(request):
    return list(table_rows(request.param))


def with_whole_numbers_as_floats(instruction):
    def arguments(constraint):
        return {k: float(v) if isinstance(v, int) else v for k, v in constraint.arguments.items()}

    constraints = tuple(replace(one, arguments=arguments(one)) for one in instruction.constraints)
    return replace(instruction, constraints=constraints)


def check(path, place, pairs):
    instructions, errors = hir16k.read(path)
    assert errors == []
    assert [one.source for one in instructions[:2]] == [f"{place}:1", f"{place}:2"]
    assert [with_whole_numbers_as_floats(one) for one in without_place(instructions)] == [
        with_whole_numbers_as_floats(one) for _, one in pairs
    ]


def test_parquet(tmp_path, pairs):
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row for row, _ in pairs]), path, row_group_size=7)
    check(path, path, pairs)


def test_parquet_reports_rows_by_number(tmp_path):
    rows = [hir16k_rows.good_row(number, "type1", "type1")[0] for number in range(4)]
    rows[2]["criteria"] = rows[2]["criteria"][1:]
    rows[3]["extra_info"]["q_type"] = "type9"
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    instructions, errors = hir16k.read(path)
    assert [one.key for one in instructions] == [0, 1]
    assert [str(error)[: len(f"{path}:3: unknown")] for error in errors] == [f"{path}:3: criteri", f"{path}:4: unknown"]


def test_a_directory_that_datasets_saved(tmp_path, pairs):
    datasets = pytest.importorskip("datasets", reason="the `datasets` library is not installed")
    rows = datasets.Dataset.from_list([row for row, _ in pairs])
    rows.save_to_disk(tmp_path / "one", num_shards=3)
    check(tmp_path / "one", tmp_path / "one/data-00000-of-00003.arrow", pairs)
    chosen = rows.select(range(len(rows) - 1, -1, -2))
    datasets.DatasetDict(test=rows, train=chosen).save_to_disk(tmp_path / "dict")
    check(tmp_path / "dict", tmp_path / "dict/train/data-00000-of-00001.arrow", pairs[::-2])
    datasets.DatasetDict(a=rows, b=chosen).save_to_disk(tmp_path / "other")
    with pytest.raises(RowError, match="other: holds the splits a, b; give the path of the one to read"):
        hir16k.read(tmp_path / "other")


def test_a_directory_of_files(tmp_path, pairs, monkeypatch):
    (tmp_path / "data").mkdir()
    for part in range(2):
        write_lines(tmp_path / f"data/part-{part}.jsonl", [row for row, _ in pairs[24 * part : 24 * part + 24]])
    check(tmp_path, tmp_path / "data/part-0.jsonl", pairs)
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: asked.append((a, k)) or str(tmp_path))
    check("sastpg/HIR-16K", tmp_path / "data/part-0.jsonl", pairs)
    assert asked[0][0] == ("sastpg/HIR-16K",)
    assert asked[0][1]["repo_type"] == "dataset"


def test_what_cannot_be_read_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, content, message in (
        ("absent.jsonl", None, "absent.jsonl: cannot be read: No such file"),
        ("absent.parquet", None, "absent.parquet: cannot be read: "),
        ("broken.parquet", b"PAR1 and no more", "broken.parquet: cannot be read: "),
        ("blank.jsonl", b"\n", "blank.jsonl: holds no rows"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(RowError, match=message):
            hir16k.read(tmp_path / name)
    with pytest.raises(RowError, match=r"holds both \.jsonl and \.parquet files; give the path"):
        hir16k.read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RowError, match=r"empty: holds no \.jsonl or \.parquet file and is no `datasets` directory"):
        hir16k.read(tmp_path / "empty")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    with pytest.raises(RowError, match=r"data\.arrow: cannot be read: "):
        hir16k.read(tmp_path / "saved")
    (tmp_path / "saved/data.arrow").write_bytes(b"no arrow")
    with pytest.raises(RowError, match=r"data\.arrow: cannot be read: "):
        hir16k.read(tmp_path / "saved")
    with pytest.raises(
        RowError, match="nobody/nothing: there is no such file or directory, and as a data set of the hub"
    ):
        hir16k.read("nobody/nothing")


# Verdicts


def test_rows_of_all_sources_are_decided(lines):
    try:
        cage = code.Cage(workers=2, timeout_seconds=10)
    except InputError as error:
        pytest.skip(str(error))

    def calm(questions):
        return [Outcome(one.row, one.position, "calm" in one.constraint.text) for one in questions]

    response = (
        "First paragraph, which goes on for a while and says nothing.\n\nThe second one has some more words in it."
    )
    chosen = [one for one in hir16k.read(lines)[0] if one.key < 8]
    rows = [Row(one.constraints, response, render(one), one.source) for one in chosen]
    with Verifier(workers=0, timeout_seconds=10, deciders={"code": cage, "judge": calm}) as verifier:
        verdicts = verifier.verify(rows, width=7)
        assert verifier.unknown_counts == {}
    assert (verdicts.known == verdicts.present).all()
    for instruction, satisfied in zip(chosen, verdicts.satisfied.tolist(), strict=True):
        for constraint, met in zip(instruction.constraints, satisfied, strict=False):
            decider = registry.decider(constraint.id)
            if decider == "code":
                assert met == ("more than 20" not in constraint.text)
            elif decider == "judge":
                assert met == ("calm" in constraint.text)
            elif constraint.id == "punctuation:no_comma":
                assert not met


def test_tables_hand_over_rows_in_order(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"a": 1}, {"a": None}])
    assert list(read_rows(path, pytest.fail)) == [(f"{path}:1", {"a": 1}), (f"{path}:2", {"a": None})]
