"""Prepared instructions: what is written is what is read, in order; streams over them resume, split and cover."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from hir_jax.data import native, prepare, prepared, tfds_builder
from hir_jax.data.generate import synthesis
from hir_jax.types import Constraint, InputError, Instruction

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "../shared/benchmarks"

# Any Unicode text: NUL, line separators and characters beyond 16 bits too.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
constraints = st.builds(Constraint, texts, st.dictionaries(texts, values, max_size=3), texts)
instructions = st.builds(
    Instruction,
    task=texts,
    constraints=st.lists(constraints, max_size=4).map(tuple),
    template=texts,
    key=st.integers() | texts,
    source=texts,
    labels=st.dictionaries(texts, texts, max_size=2),
)
rows = st.lists(st.tuples(instructions, texts), min_size=1, max_size=5)


def typed(value):
    """`value` with the type of each part, since 1 == 1.0 == True."""
    if isinstance(value, dict):
        return [(key, typed(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value), value


@settings(max_examples=20)
@given(train=rows, heldout=rows)
def test_what_is_written_is_read_back(tmp_path_factory, train, heldout):
    folder = tmp_path_factory.mktemp("prepared")
    tfds_builder.write(folder, "native", {"train": train, "heldout": heldout}, {})
    for split, written in {"train": train, "heldout": heldout}.items():
        back = [prepared.decode(example) for example in prepared.open_split(folder, "native", split)]
        assert back == written
        for (old, _), (new, _) in zip(written, back, strict=True):
            assert type(old.key) is type(new.key)
            for before, after in zip(old.constraints, new.constraints, strict=True):
                assert typed(before.arguments) == typed(after.arguments)


@pytest.mark.parametrize(
    ("arguments", "task"),
    [
        ({"words": ("a", "b")}, "t"),  # would come back as a list
        ({"count": float("nan")}, "t"),
        ({1: "a"}, "t"),
        ({"words": {"a"}}, "t"),
        ({"count": np.int64(3)}, "t"),
        ({}, "half a \ud800 pair"),
    ],
)
def test_what_would_not_come_back_is_refused_and_nothing_is_left(tmp_path, arguments, task):
    bad = Instruction(task, (Constraint("punctuation:no_comma", arguments),), source="rows.jsonl:7")
    with pytest.raises(InputError, match=r"rows\.jsonl:7: cannot be stored"):
        tfds_builder.write(tmp_path, "native", {"train": [(bad, "")]}, {})
    assert not list(tmp_path.iterdir())


# --- the program -----------------------------------------------------------------------------------------------------


def published_row(id, **changes):
    truth = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    row = {"id": id, "source": "type1", "prompt": "Name a river.", "criteria": ["No commas."], "ground_truth": truth}
    return row | changes


PUBLISHED = [
    published_row(1),
    published_row(2, criteria=["No commas.", "Be brief."]),
    published_row(3, criteria=["No commas.", "Be kind."]),
    published_row(4, source="type9"),
    published_row("five", extra_info={"q_type": "type3"}),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The directory that all calls of the program wrote to, and (status, stdout, stderr) of each, in this order."""
    directory, rows = tmp_path_factory.mktemp("prepared"), tmp_path_factory.mktemp("rows") / "rows.jsonl"
    native.write(rows, synthesis.generate(1, 3), ["one", "two", "three"])
    published = rows.with_name("published.jsonl")
    published.write_text("".join(json.dumps(row) + "\n" for row in PUBLISHED))
    calls = {
        "generated": ("--dataset=generated", "--size=31", "--heldout_size=5", "--seed=3", "--max_constraints=4"),
        "again": ("--dataset=generated", "--size=2"),
        "native": ("--dataset=native", f"--path={rows}", f"--heldout_path={rows}", "--responses"),
        "hir16k": ("--dataset=hir16k", f"--path={published}", "--template=type2"),
        "no path": ("--dataset=ifeval",),
        "no file": ("--dataset=ifeval", "--path=nowhere"),
        "foreign option": ("--dataset=ifbench", "--path=x", "--seed=1"),
    }
    answers = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "program_server.py")],
        input=json.dumps(
            [["hir_jax.data.prepare", [*options, f"--directory={directory}"]] for options in calls.values()]
        ),
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return directory, rows, dict(zip(calls, json.loads(answers.stdout), strict=True))


@pytest.fixture(scope="module")
def generated(programs):
    """The directory that holds `generated`: 31 rows in train, 5 in heldout."""
    return programs[0]


def test_generated_instructions_come_back_as_generated(programs):
    directory, _, answers = programs
    status, out, err = answers["generated"]
    assert (status, err) == (0, "")
    folder = directory / "hir_instructions" / "generated" / "1.0.0"
    assert out == f"train: 31 rows\nheldout: 5 rows\nwritten to {folder}\n"
    for split, count in {"train": 31, "heldout": 5}.items():
        wanted = synthesis.generate(3, count, split=split, max_constraints=4)
        assert prepared.read(directory, "generated", split) == wanted
    whole = prepared.read(directory, "generated/1.0.0", "train")
    assert prepared.read(directory, "generated", "train[:-3]") == whole[:-3]
    assert prepared.read(directory, "generated", "train[28:]") == whole[28:]


def test_tfds_finds_them_by_name_and_knows_where_they_are_from(generated):
    source = tfds.data_source("hir_instructions/generated", split="train", data_dir=generated, try_gcs=False)
    assert len(source) == 31
    info = tfds.builder("hir_instructions/generated", data_dir=generated).info
    assert info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    assert info.metadata["seed"] == 3 and info.metadata["size"] == 31
    assert set(tfds_builder.HirInstructions.builder_configs) == set(tfds_builder.CONFIGS)


def test_what_cannot_be_done_is_one_message_and_changes_nothing(programs):
    directory, _, answers = programs
    for name, message in {
        "again": f"{directory}/hir_instructions/generated/1.0.0: is prepared already; remove it or give another",
        "no path": "give it with --path=FILE",
        "no file": "nowhere: cannot be read: No such file",
        "foreign option": "--seed does not go with --dataset=ifbench, which takes --path",
    }.items():
        status, out, err = answers[name]
        assert (status, out, err.count("\n")) == (1, "", 1), err
        assert err.startswith("error: ") and message in err
    folders = sorted(p.name for p in (directory / "hir_instructions").iterdir() if not p.name.startswith("."))
    assert folders == ["generated", "hir16k", "native"]
    assert len(prepared.read(directory, "generated", "train")) == 31


def test_native_rows_keep_their_responses(programs):
    directory, rows, answers = programs
    assert answers["native"][0] == 0, answers["native"]
    for split in ("train", "heldout"):
        assert prepared.read_pairs(directory, "native", split) == native.read_pairs(rows)


def test_rows_that_break_the_schema_are_named_and_counted(programs):
    directory, rows, answers = programs
    status, out, err = answers["hir16k"]
    assert (status, err) == (0, "")
    kept = prepared.read(directory, "hir16k", "train")
    assert [(q.key, q.template, q.source) for q in kept] == [
        (1, "type2", f"{rows.with_name('published.jsonl')}:1"),
        ("five", "type3", f"{rows.with_name('published.jsonl')}:5"),
    ]
    for line in (2, 3, 4):
        assert f"left out: {rows.with_name('published.jsonl')}:{line}: " in out
    assert "left out, lengths differ: 2\nleft out, unknown source: 1\ntrain: 2 rows\n" in out


def test_heldout_rows_are_those_of_their_split_if_there_is_one(programs):
    directory = programs[0]
    assert prepared.read_heldout(directory, "generated") == prepared.read(directory, "generated", "heldout")
    assert prepared.read_heldout(directory, "hir16k") == []
    with pytest.raises(InputError, match="holds no 'ifbench'"):
        prepared.read_heldout(directory, "ifbench")


@pytest.mark.parametrize("name", ["ifeval", "ifbench", "muldimif"])
def test_published_prompts_come_back_as_read(tmp_path, name):
    path = BENCHMARKS / name / "prompts.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there: the benchmark fixtures lie beside the repository")
    asked = prepare.BENCHMARKS[name](path)
    tfds_builder.write(tmp_path, name, {"test": [(one, "") for one in asked]}, {})
    assert prepared.read(tmp_path, name, "test") == asked


# --- reading: errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("generated", "test", r"no split 'test': .*There is train \(31 rows\), heldout \(5 rows\)"),
        ("generated", "train[", r"no split 'train\['"),
        ("generated", "train[:40]", r"no split 'train\[:40\]'"),
        ("ifeval", "test", r"holds no 'ifeval'; there is generated/1\.0\.0, hir16k/1\.0\.0, native/1\.0\.0"),
        ("generated/2.0.0", "train", r"holds no 'generated/2\.0\.0'; there is generated/1\.0\.0"),
    ],
)
def test_names_that_are_not_there_are_errors_that_say_what_is(generated, name, split, message):
    with pytest.raises(InputError, match=message):
        prepared.read(generated, name, split)


def test_files_that_are_missing_or_broken_are_errors(generated, tmp_path):
    with pytest.raises(InputError, match="no directory of prepared instructions"):
        prepared.read(tmp_path / "nowhere", "generated", "train")
    shutil.copytree(generated, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "hir_instructions" / "generated" / "1.0.0"
    (record,) = folder.glob("*train.array_record*")
    record.write_bytes(record.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cannot be read"):
        prepared.read(tmp_path, "generated", "train")
    record.unlink()
    with pytest.raises(InputError, match="No such file"):
        prepared.read(tmp_path, "generated", "train")
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"1\.0\.0: cannot be read"):
        prepared.read(tmp_path, "generated", "heldout")


def test_an_id_that_is_not_registered_is_an_error(tmp_path):
    unknown = Instruction("t", (Constraint("punctuation:no_coma"),))
    tfds_builder.write(tmp_path, "native", {"train": [(unknown, "yes")]}, {})
    with pytest.raises(InputError, match="unknown constraint id 'punctuation:no_coma'"):
        prepared.read(tmp_path, "native", "train")


def test_arguments_that_the_check_cannot_use_are_an_error(tmp_path):
    wrong = Instruction("t", (Constraint("punctuation:no_comma", {"number": 3}),), source="rows.jsonl:7")
    tfds_builder.write(tmp_path, "native", {"train": [(wrong, "yes")]}, {})
    with pytest.raises(InputError, match=r"rows\.jsonl:7: punctuation:no_comma: unknown argument 'number'"):
        prepared.read(tmp_path, "native", "train")


# --- streams ---------------------------------------------------------------------------------------------------------


def stream(directory, seed=5, **shard):
    return prepared.epochs(prepared.open_split(directory, "generated", "train"), seed, **shard).map(prepared.decode)


def keys(rows):
    return [instruction.key for instruction, _ in rows]


def test_a_stream_resumes_where_it_was_cut(generated):
    iterator = iter(stream(generated).to_iter_dataset())
    first = [next(iterator) for _ in range(40)]  # beyond the first epoch of 31
    state = json.loads(json.dumps(iterator.get_state()))
    rest = [next(iterator) for _ in range(50)]
    again = iter(stream(generated).to_iter_dataset())
    again.set_state(state)
    assert [next(again) for _ in range(50)] == rest
    by_index = stream(generated)
    assert [by_index[i] for i in range(90)] == first + rest


def test_every_epoch_holds_every_row_once_in_its_own_order(generated):
    rows = stream(generated)
    epochs = [keys(rows[i] for i in range(31 * e, 31 * (e + 1))) for e in range(3)]
    everything = keys((q, "") for q in prepared.read(generated, "generated", "train"))
    assert all(sorted(epoch) == sorted(everything) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, everything]}) == 4


@settings(max_examples=15)
@given(length=st.integers(1, 9), processes=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_processes_share_one_stream(length, processes, seed):
    whole = prepared.epochs(range(length), seed)
    parts = [prepared.epochs(range(length), seed, process=p, processes=processes) for p in range(processes)]
    together = [parts[i % processes][i // processes] for i in range(3 * length)]
    assert together == [whole[i] for i in range(3 * length)]
    assert sorted(together[:length]) == list(range(length))  # so one epoch's parts are disjoint and leave nothing out


def test_the_stream_of_indices_is_that_of_the_rows(generated):
    """A run keeps encoded rows and draws indices; it sees what a stream over the files sees."""
    order = grain.MapDataset.range(31).seed(5).shuffle().repeat().batch(4)
    everything = prepared.read(generated, "generated", "train")
    rows = stream(generated)
    for step in range(20):
        assert keys(rows[i] for i in range(4 * step, 4 * step + 4)) == [everything[i].key for i in order[step]]


def test_a_process_that_is_none_of_them_is_an_error():
    with pytest.raises(ValueError, match="process 2 of 2"):
        prepared.epochs(range(3), 0, process=2, processes=2)
