"""Generated instructions against the registry's checks and plain counts on their texts."""

from __future__ import annotations

import collections
import random
import subprocess
import sys

import pytest
from transformers import PreTrainedTokenizerFast

from hir_jax.constraints import registry
from hir_jax.instructions import grammar, lexicon, native, witness
from hir_jax.instructions.templates import REWRITABLE, render
from hir_jax.types import InputError

MAX_PROMPT_TOKENS = 96


@pytest.fixture(scope="module")
def hard():
    """Rows with five or six constraints, in all templates."""
    return witness.generate(11, 500, min_constraints=5, max_constraints=6, templates=REWRITABLE)


@pytest.fixture(scope="module")
def easy():
    """Rows with one or two constraints."""
    return witness.generate(12, 1500, min_constraints=1, max_constraints=2)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return lexicon.build_tokenizer()


def test_every_witness_meets_every_constraint(hard, easy):
    for instruction, response in hard + easy:
        for constraint in instruction.constraints:
            registry.validate(constraint)
            assert registry.check(constraint, response, render(instruction)), (constraint, response)


def test_numbers_of_constraints_and_distinct_ids(hard, easy):
    for rows, numbers in ((hard, {5, 6}), (easy, {1, 2})):
        counts = collections.Counter(len(instruction.constraints) for instruction, _ in rows)
        assert set(counts) == numbers
        assert min(counts.values()) > 0.4 * len(rows)
    for instruction, _ in hard:
        ids = [c.id for c in instruction.constraints]
        assert len(set(ids)) == len(ids)


def test_prompts_and_responses_fit_the_tiny_model(hard, tokenizer):
    for instruction, response in hard:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": render(instruction)}], tokenize=False, add_generation_prompt=True
        )
        assert len(tokenizer.encode(prompt)) <= MAX_PROMPT_TOKENS
        assert len(tokenizer.encode(response)) + 1 <= grammar.MAX_TOKENS


def test_no_constraint_is_met_by_nearly_every_text(hard, easy):
    rng = random.Random(0)
    failed = collections.defaultdict(list)
    for instruction, _ in hard + easy:
        for constraint in instruction.constraints:
            failed[constraint.id].append(not registry.check(constraint, rng.choice(easy)[1]))
    assert set(failed) == set(witness.PROPOSALS)
    shares = {id: sum(values) / len(values) for id, values in failed.items()}
    assert min(shares.values()) > 0.3, shares


def test_arguments_range_over_many_values(easy):
    values = collections.defaultdict(set)
    for instruction, _ in easy:
        for constraint in instruction.constraints:
            values[constraint.id].add(constraint.text)
    assert len(values["keywords:existence"]) > 100
    assert len(values["keywords:frequency"]) > 30
    assert len(values["length_constraints:number_words"]) > 25
    assert len(values["startend:end_checker"]) == len(lexicon.CLOSINGS)


def test_a_row_depends_on_seed_split_and_index_only(easy):
    assert witness.generate(12, 20, min_constraints=1, max_constraints=2) == easy[:20]
    other = witness.generate(13, 20, min_constraints=1, max_constraints=2)
    assert all(a[0].task != b[0].task or a[1] != b[1] for a, b in zip(other, easy[:20], strict=True))


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_rows_do_not_depend_on_the_hash_seed(hash_seed, tmp_path, easy):
    path = tmp_path / "rows.jsonl"
    flags = ["--count=15", "--seed=12", "--min_constraints=1", "--max_constraints=2", f"--output={path}"]
    command = [sys.executable, "-m", "hir_jax.instructions.witness", *flags]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hash_seed})
    assert "15 instructions" in run.stdout
    pairs = [(i.task, i.constraints, response) for i, response in native.read_pairs(path)]
    assert pairs == [(i.task, i.constraints, response) for i, response in easy[:15]]


def test_no_heldout_instruction_is_in_a_training_stream(easy):
    heldout = witness.generate(12, 600, min_constraints=1, max_constraints=2, split="heldout")
    seen = {(i.task, frozenset(c.text for c in i.constraints)) for i, _ in easy}
    assert len(seen) > 1200
    assert not seen & {(i.task, frozenset(c.text for c in i.constraints)) for i, _ in heldout}
    assert {witness.split_of(i) for i, _ in heldout} == {"heldout"}
    assert {witness.split_of(i) for i, _ in easy} == {"train"}


def test_label_noise_is_the_share_of_constraints_from_other_texts(easy):
    def met(noise: float) -> float:
        rows = witness.generate(12, 600, min_constraints=1, max_constraints=2, label_noise=noise)
        verdicts = [registry.check(c, response) for i, response in rows for c in i.constraints]
        return sum(verdicts) / len(verdicts)

    by_chance, half = met(1.0), met(0.5)
    assert by_chance < 0.5
    # A constraint is the text's own with probability 1/2 and else met by chance.
    assert abs(half - (0.5 + 0.5 * by_chance)) < 0.06


def test_keys_name_the_stream(hard):
    assert [i.key for i, _ in hard[:2]] == ["train-11-0", "train-11-1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_constraints": 0}, "0..2"),
        ({"max_constraints": 9}, "1..9"),
        ({"split": "test"}, "unknown split 'test'"),
        ({"templates": ("type9",)}, "type9"),
        ({"templates": ()}, "templates must be some of"),
        ({"label_noise": 1.5}, "label_noise"),
        ({"count": -1}, "-1"),
    ],
)
def test_bad_options_are_refused(options, message):
    arguments = {"seed": 0, "count": 1, "min_constraints": 1, "max_constraints": 2} | options
    with pytest.raises(ValueError, match=message):
        witness.generate(**arguments)


def test_bad_options_end_the_command_with_one_line(tmp_path):
    command = [sys.executable, "-m", "hir_jax.instructions.witness", "--templates=type9", f"--output={tmp_path / 'x'}"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode != 0
    assert run.stderr.strip().splitlines() == [run.stderr.strip()]
    assert "type9" in run.stderr


def test_constraint_types_can_be_chosen():
    ids = tuple(witness.PROPOSALS)[:6]
    rows = witness.generate(0, 40, min_constraints=1, max_constraints=3, ids=ids, label_noise=0.5)
    assert {c.id for q, _ in rows for c in q.constraints} <= set(ids)
    with pytest.raises(InputError, match="keywords:unheard_of"):
        witness.generate(0, 1, min_constraints=1, max_constraints=1, ids=("keywords:unheard_of", *ids))
    with pytest.raises(InputError, match="at least 8 for 4 a prompt"):
        witness.generate(0, 1, min_constraints=1, max_constraints=4, ids=ids)
