"""Generated instructions against the registry's checks and plain counts on their texts."""

from __future__ import annotations

import collections
import itertools
import random
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from hir_jax.checks import registry
from hir_jax.data import native
from hir_jax.data.generate.tiny import grammar, lexicon, witness
from hir_jax.data.templates import REWRITABLE, render
from hir_jax.types import InputError

ROOT = Path(__file__).parents[2]
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


# ---- the environment cannot be gamed: only a text that follows its own instruction meets much of it ----------------------


@pytest.fixture(scope="module")
def asked():
    """Feature -> the constraints that ask for each of its values; the feature "presence" once for each of its two words."""
    found = {}
    for feature, values in grammar.FEATURES.items():
        drawn = [witness.ask(random.Random(seed), feature, value) for value in values for seed in range(20)]
        found[feature] = list({c.text: c for c in drawn}.values())
    presence = found.pop("presence")
    return found | {word: [c for c in presence if word in c.text] for word in lexicon.PRESENT_OR_ABSENT}


@pytest.fixture(scope="module")
def measured(asked) -> dict[str, np.ndarray]:
    """Feature -> the index of the one value that each of 4,000 texts has, as the checks say."""
    rng = random.Random(1)
    texts = [grammar.compose(rng, grammar.draw_specification(rng)) for _ in range(4000)]
    met = {feature: np.array([[registry.check(c, y) for c in cs] for y in texts]) for feature, cs in asked.items()}
    assert all((verdicts.sum(1) == 1).all() for verdicts in met.values())  # exactly one value of each feature
    return {feature: verdicts.argmax(1) for feature, verdicts in met.items()}


def _mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Of two discrete variables, divided by the smaller entropy: 0 for independent ones, 1 where one determines the other."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    rows, columns = joint.sum(1), joint.sum(0)
    held = joint > 0
    shared = (joint[held] * np.log(joint[held] / np.outer(rows, columns)[held])).sum()
    return shared / min(-(p * np.log(p)).sum() for p in (rows, columns))


def test_every_value_is_as_frequent_as_the_others(measured, asked):
    for feature, values in measured.items():
        shares = np.bincount(values, minlength=len(asked[feature])) / len(values)
        assert np.abs(shares * len(asked[feature]) - 1).max() < 0.1, (feature, shares)


def test_features_are_independent(measured):
    for a, b in itertools.combinations(measured, 2):
        assert _mutual_information(measured[a], measured[b]) < 0.02, (a, b)


def _mutated(rng: random.Random, text: str, others: list[str]) -> str:
    """A text with one to three changes: a word put in, a word taken out, or up to eight words of another text put in."""
    words = lexicon.pieces(text)
    for _ in range(rng.randint(1, 3)):
        place, kind = rng.randrange(len(words) + 1), rng.random()
        if kind < 0.4:
            words.insert(place, rng.choice(lexicon.vocabulary()[len(lexicon.SPECIAL) :]))
        elif kind < 0.7:
            del words[place : place + 1]
        else:
            other = lexicon.pieces(rng.choice(others))
            start = rng.randrange(len(other))
            words[place:place] = other[start : start + rng.randint(1, 8)]
    return "".join(words)


def test_no_fixed_text_meets_much(asked):
    """The best of the training set's texts, bettered by 1,000 mutations, on instructions that it was not chosen on."""
    constraints = [c for values in asked.values() for c in values]
    place = {c.text: i for i, c in enumerate(constraints)}
    config = runpy.run_path(str(ROOT / "configs/tiny_hir.py"))
    rng = random.Random(2)

    def verdicts(text: str) -> np.ndarray:
        return np.array([registry.check(c, text) for c in constraints])

    def rows(seed: int, count: int, number: int) -> tuple[np.ndarray, list[str]]:
        pairs = witness.generate(seed, count, min_constraints=number, max_constraints=number)
        return np.array([[place[c.text] for c in q.constraints] for q, _ in pairs]), [y for _, y in pairs]

    chosen_on, texts = rows(3, 2000, config["CONSTRAINTS"]["medium"])
    every = [verdicts(text) for text in texts]
    best = [(float(met[chosen_on].mean()), text) for met, text in zip(every, texts, strict=True)]
    best = sorted(best, reverse=True)[:20]
    for _ in range(1000):
        text = _mutated(rng, rng.choice(best)[1], texts)
        best = sorted([*best, (float(verdicts(text)[chosen_on].mean()), text)], reverse=True)[:20]
    found = verdicts(best[0][1])
    for difficulty, number in config["CONSTRAINTS"].items():
        others, _ = rows(4, 20_000, number)
        mean = np.mean([met[others].mean() for met in every[:300]])
        assert found[others].mean() <= 1.15 * mean, (difficulty, best[0], mean)
        assert found[others].all(1).mean() <= config["BASE_ILA"][difficulty] / 4, (difficulty, best[0])


def test_a_row_depends_on_seed_split_and_index_only(easy):
    assert witness.generate(12, 20, min_constraints=1, max_constraints=2) == easy[:20]
    other = witness.generate(13, 20, min_constraints=1, max_constraints=2)
    assert all(a[0].task != b[0].task or a[1] != b[1] for a, b in zip(other, easy[:20], strict=True))


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_rows_do_not_depend_on_the_hash_seed(hash_seed, tmp_path, easy):
    path = tmp_path / "rows.jsonl"
    flags = ["--count=15", "--seed=12", "--min_constraints=1", "--max_constraints=2", f"--output={path}"]
    command = [sys.executable, "-m", "hir_jax.data.generate.tiny.witness", *flags]
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
        ({"max_constraints": 10}, "1..10"),
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
    command = [
        sys.executable,
        "-m",
        "hir_jax.data.generate.tiny.witness",
        "--templates=type9",
        f"--output={tmp_path / 'x'}",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode != 0
    assert run.stderr.strip().splitlines() == [run.stderr.strip()]
    assert "type9" in run.stderr


def test_constraint_types_can_be_chosen():
    ids = witness.IDS[:4]
    rows = witness.generate(0, 40, min_constraints=1, max_constraints=3, ids=ids, label_noise=0.5)
    assert {c.id for q, _ in rows for c in q.constraints} <= set(ids)
    with pytest.raises(InputError, match="keywords:unheard_of"):
        witness.generate(0, 1, min_constraints=1, max_constraints=1, ids=("keywords:unheard_of", *ids))
    with pytest.raises(InputError, match="at least 5 features"):
        witness.generate(0, 1, min_constraints=1, max_constraints=5, ids=ids)
