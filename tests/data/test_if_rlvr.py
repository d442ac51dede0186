"""IF-RLVR's rows, in the published form, become instructions, or errors with a reason."""

import json
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from if_rlvr_rows import BULLETS, COMMA, FREQUENCY, ONCE, SENTENCES, TASK, TIMES, row, write

from hir_jax.checks import registry
from hir_jax.data import if_rlvr
from hir_jax.data.templates import render
from hir_jax.types import Constraint, InputError, Instruction


def constraint(id, arguments, text):
    return Constraint(id, arguments or {}, text)


def test_a_message_is_cut_into_task_and_constraints(tmp_path):
    parts = (COMMA, ONCE, BULLETS, SENTENCES)
    path = write(tmp_path / "rows.jsonl", row(*parts))
    (found,), errors = if_rlvr.read(path)
    assert not errors
    assert found == Instruction(TASK, tuple(constraint(*part) for part in parts), "type1", "one", f"{path}:1")
    kept = [True, False, False, True]
    assert render(found, kept) == f"{TASK} {COMMA[2]} {SENTENCES[2]}"


@pytest.mark.parametrize(("join", "template"), [(" ", "type1"), ("\n\n", "type1"), ("\n", "type1")])
def test_the_template_gives_the_message_again_where_one_does(tmp_path, join, template):
    path = write(tmp_path / "rows.jsonl", row(COMMA, ONCE, join=join))
    (found,), _ = if_rlvr.read(path)
    assert found.template == template and render(found).split() == f"{TASK} {COMMA[2]} {ONCE[2]}".split()
    lines = row(COMMA, ONCE)
    lines["messages"][0]["content"] = f"{TASK}\n\n{COMMA[2]}\n{ONCE[2]}"
    (found,), _ = if_rlvr.read(write(tmp_path / "lines.jsonl", lines))
    assert found.template == "type6" and render(found) == lines["messages"][0]["content"]


@pytest.mark.parametrize("order", [(FREQUENCY, TIMES), (TIMES, FREQUENCY)])
def test_types_whose_wordings_begin_alike_are_told_apart(tmp_path, order):
    given = row(*order)
    ids = [part[0] for part in order]
    truth = {"instruction_id": ids[::-1], "kwargs": [part[1] for part in order[::-1]]}  # not in the order of the texts
    path = write(tmp_path / "rows.jsonl", given | {"ground_truth": json.dumps([truth])})
    (found,), _ = if_rlvr.read(path)
    assert [(one.id, one.text) for one in found.constraints] == [(part[0], part[2]) for part in order]


def test_a_task_that_uses_a_constraints_words_keeps_them(tmp_path):
    task = f"Explain this rule: {ONCE[2]}"
    (found,), _ = if_rlvr.read(write(tmp_path / "rows.jsonl", row(ONCE, task=task)))
    assert found.task == task and found.constraints == (constraint(*ONCE),)


@pytest.mark.parametrize(
    "dump",
    [
        repr,
        json.dumps,
        lambda truth: json.dumps(truth[0]),
        lambda truth: repr([json.dumps(truth[0])]),
        lambda truth: truth,
        lambda truth: truth[0],
    ],
)
def test_every_form_of_the_ground_truth_reads_alike(tmp_path, dump):
    (found,), errors = if_rlvr.read(write(tmp_path / "rows.jsonl", row(COMMA, ONCE, dump=dump)))
    assert not errors and found.constraints == (constraint(*COMMA), constraint(*ONCE))


def test_parquet_reads_as_lines(tmp_path):
    rows = [row(COMMA, ONCE), row(BULLETS, key="two"), row(ONCE, COMMA, key="three", join="\n")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train-00000-of-00001.parquet")
    there, _ = if_rlvr.read(tmp_path)
    here, _ = if_rlvr.read(write(tmp_path / "rows.txt", *rows))
    assert [replace(one, source="") for one in there] == [replace(one, source="") for one in here]


def test_for_scoring_the_message_stays_whole(tmp_path):
    first, last = row(ONCE, COMMA, task="", key=None), row(BULLETS, key=7)
    path = write(tmp_path / "rows.jsonl", first, last)
    found, errors = if_rlvr.read(path, whole=True)
    assert not errors and [one.key for one in found] == [f"{path}:1", 7]
    assert [render(one) for one in found] == [made["messages"][0]["content"].strip() for made in (first, last)]
    assert found[0].constraints == (Constraint(ONCE[0], ONCE[1]), Constraint(COMMA[0], {}))


FAULTS = [
    ("field", row(COMMA, messages="Hello")),
    ("field", row(COMMA, messages=[{"role": "user", "content": " "}])),
    ("several messages", row(COMMA, messages=[{"role": "system", "content": "Be brief."}, *row(COMMA)["messages"]])),
    ("field", row(COMMA, ground_truth="__import__('os').getcwd()")),
    ("field", row(COMMA, ground_truth="[" * 100_000)),
    ("field", row(COMMA, ground_truth=r"[{'instruction_id': ['\ud83d'], 'kwargs': [None]}]")),
    ("field", row(COMMA, ground_truth="[]")),
    ("field", row(COMMA, ground_truth='{"instruction_id": [], "kwargs": []}')),
    ("field", row(COMMA, ground_truth='{"instruction_id": ["punctuation:no_comma"], "kwargs": [3]}')),
    ("another form", row(COMMA, ground_truth='{"func_name": "validate_no_commas", "N": null}')),
    ("lengths differ", row(COMMA, ground_truth='{"instruction_id": ["punctuation:no_comma"], "kwargs": []}')),
    ("unknown constraint", row(("count:numbers", {"N": 3}, "Use 3 numbers."))),  # IFBench's
    ("unknown constraint", row((["count:numbers"], None, "Use numbers."))),
    ("unusable arguments", row(("keywords:word_once", {"keyword": "("}, "Include keyword ( in your response."))),
    ("unusable arguments", row(("letters:letter_counting", {"N": 0, "relation": "at least"}, "Answer with at least 0 letters."))),
    ("constraint not found", row(("punctuation:no_comma", None, "Use no commas."))),
    ("constraint not found", row(ONCE, ONCE) | {"messages": row(ONCE)["messages"]}),
    ("no task before the constraints", row(COMMA, ONCE, task="")),
    ("id used before", row(COMMA, key="good")),
    ("field", row(COMMA, key=True)),
]  # fmt: skip


def test_broken_rows_are_left_out_by_reason(tmp_path):
    path = write(tmp_path / "rows.jsonl", row(COMMA, key="good"), *(one for _, one in FAULTS))
    found, errors = if_rlvr.read(path)
    assert [one.key for one in found] == ["good"]
    assert [(str(error).split(": ")[0], error.reason) for error in errors] == [
        (f"{path}:{number}", reason) for number, (reason, _) in enumerate(FAULTS, start=2)
    ]


def test_no_rows_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no rows"):
        if_rlvr.read(write(tmp_path / "rows.jsonl"))


def test_there_is_a_start_for_each_type_of_the_two_families():
    families = ("hir_jax.checks.ifeval.", "hir_jax.checks.iftrain.")
    ids = [id for id in registry.ids() if getattr(registry._entry(id).check, "__module__", "").startswith(families)]
    assert sorted(if_rlvr.STARTS) == ids and len(ids) == 25 + 29


@given(
    st.permutations([COMMA, ONCE, FREQUENCY, TIMES, SENTENCES]), st.integers(1, 5), st.sampled_from([" ", "\n", "  "])
)
def test_cutting_undoes_joining(parts, count, join):
    parts = parts[:count]
    request = join.join([TASK, *(text for _, _, text in parts)])
    bare = tuple(Constraint(id, given or {}) for id, given, _ in sorted(parts))
    assert if_rlvr.cut(request, bare) == (TASK, tuple(constraint(*part) for part in parts))
