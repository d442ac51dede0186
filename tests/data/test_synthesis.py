"""Generated instructions: deterministic, without contradiction, none from IFEval."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from witness import build

from hir_jax.checks import registry
from hir_jax.checks.compatibility import clash
from hir_jax.data import native
from hir_jax.data.generate import synthesis
from hir_jax.data.generate.tasks import SPLITS, base_tasks
from hir_jax.data.templates import REWRITABLE

ROOT = Path(__file__).parents[2]
IFEVAL = ROOT / "../shared/benchmarks/ifeval/prompts.jsonl"
TASKS = [base for split in SPLITS for base in base_tasks(split)]
DRAWS = synthesis.draws_of(("ifeval",))


def shingles(text, size=8):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def test_base_tasks_are_many_different_and_well_formed():
    assert len(TASKS) >= 320 and len({base.task for base in TASKS}) == len(TASKS)
    assert len({base.genre for base in TASKS}) >= 20
    for base in TASKS:
        assert base.task == base.task.strip() and base.task.endswith((".", "?")) and "\n" not in base.task
        assert not set('"*<>[]{}') & set(base.task), base.task
        assert 5 <= len(base.keywords) <= 8 and len(set(base.keywords)) == len(base.keywords)
        assert all(re.fullmatch("[a-z]+", word) and word not in base.task.lower() for word in base.keywords), base


def test_base_tasks_ask_for_no_length_format_or_case():
    demands = (
        r"\b(words?|sentences?|paragraphs?|bullets?|json|lowercase|uppercase|commas?|haiku|limerick|tweet|translate)\b"
        r"|\b(at least|at most|less than|fewer than|no more than|in (english|german|french|spanish))\b"
    )
    assert [base.task for base in TASKS if re.search(demands, base.task.lower())] == []


def test_splits_are_disjoint_and_both_of_use():
    train, heldout = (base_tasks(split) for split in SPLITS)
    assert not {base.task for base in train} & {base.task for base in heldout}
    assert len(heldout) >= 60 and len(train) >= 240
    for split in (train, heldout):
        assert any(base.genre == "verdict" for base in split)


def test_no_base_task_is_an_ifeval_prompt_or_shares_eight_words_with_one():
    if not IFEVAL.exists():
        pytest.skip("needs ../shared/benchmarks/ifeval/prompts.jsonl, the published prompts")
    prompts = [json.loads(line)["prompt"] for line in IFEVAL.read_text(encoding="utf-8").splitlines()]
    published = set().union(*map(shingles, prompts))
    texts = {prompt.strip().lower() for prompt in prompts}
    assert [base.task for base in TASKS if base.task.lower() in texts or shingles(base.task) & published] == []


def test_row_i_depends_on_seed_split_and_i_only():
    long, short = synthesis.generate(3, 40), synthesis.generate(3, 15)
    assert long[:15] == short
    assert synthesis.generate(4, 15) != short
    heldout = synthesis.generate(3, 15, split="heldout")
    assert not {row.task for row in heldout} & {base.task for base in base_tasks("train")}
    assert [row.key for row in short[:2]] == ["train-3-0", "train-3-1"]
    assert short[1].source == "generated:3:1"
    assert len({row.key for row in (*long, *heldout)}) == 55


def run_program(tmp_path, *options, hash_seed="0"):
    return subprocess.run(
        [sys.executable, "-m", "hir_jax.data.generate", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_program_writes_the_same_file_under_any_hash_seed(tmp_path):
    written = []
    for hash_seed in ("0", "1234"):
        path = tmp_path / f"{hash_seed}.jsonl"
        done = run_program(
            tmp_path, "--count=25", "--seed=9", "--split=heldout", f"--output={path}", hash_seed=hash_seed
        )
        assert done.returncode == 0, done.stderr
        written.append(path.read_bytes())
    assert written[0] == written[1]
    rows = native.read(path)
    expected = synthesis.generate(9, 25, split="heldout")
    assert [(r.task, r.constraints, r.template, r.key) for r in rows] == [
        (r.task, r.constraints, r.template, r.key) for r in expected
    ]


def test_the_program_refuses_bad_bounds_in_one_line(tmp_path):
    path = tmp_path / "out.jsonl"
    done = run_program(tmp_path, "--min_constraints=5", "--max_constraints=4", f"--output={path}")
    assert done.returncode != 0 and "min_constraints" in done.stderr and "Traceback" not in done.stderr
    assert not path.exists()


def test_rows_hold_what_was_asked_for():
    rows = synthesis.generate(0, 1000)
    assert {len(row.constraints) for row in rows} == set(range(3, 9))
    assert {row.template for row in rows} == set(REWRITABLE)
    ids = Counter(constraint.id for row in rows for constraint in row.constraints)
    assert set(ids) == set(DRAWS) and len(ids) == 25
    assert min(ids.values()) >= 15
    assert any(len({c.id for c in row.constraints}) < len(row.constraints) for row in rows)
    few = synthesis.generate(0, 20, min_constraints=1, max_constraints=2, templates=("type3",))
    assert {len(row.constraints) for row in few} == {1, 2} and {row.template for row in few} == {"type3"}


def test_texts_are_fit_for_every_template():
    for row in synthesis.generate(1, 500):
        for constraint in row.constraints:
            registry.validate(constraint)
            text = constraint.text
            assert text == text.strip() and "\n" not in text and "{" not in text, text
            assert text.endswith("."), text


def test_there_are_several_wordings_of_each_id_and_they_name_every_argument():
    assert all(len(set(one.wordings)) == len(one.wordings) >= 3 for one in DRAWS.values())  # the registered one too
    for row in synthesis.generate(2, 300):
        for constraint in row.constraints:
            for name, value in constraint.arguments.items():
                values = value if isinstance(value, list) else [value]
                if name == "language" or name.endswith("relation"):
                    continue
                assert all(str(one) in constraint.text for one in values), constraint


def test_generated_sets_can_be_met():
    """A witness text, built without looking at demands, passes all checks of each row."""
    rows = [*synthesis.generate(5, 200), *synthesis.generate(5, 50, split="heldout")]
    assert [row.key for row in rows if build(row.constraints) is None] == []
    assert all(clash(row.constraints) is None for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "unknown split"),
        ({"min_constraints": 0}, "min_constraints"),
        ({"min_constraints": 4, "max_constraints": 3}, "min_constraints"),
        ({"templates": ("type9",)}, "type9"),
        ({"templates": ()}, "templates"),
        ({"min_constraints": 60, "max_constraints": 60}, "ask for fewer"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        synthesis.generate(0, 1, **options)
