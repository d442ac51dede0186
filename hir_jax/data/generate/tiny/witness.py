"""Generates instructions of the tiny environment, each with a response that meets it.

A hidden specification is drawn first (`grammar`), and a short text, the witness, is composed from it. The constraints ask for
some of its features, so every instruction can be met, however many constraints it has; and since the values of a feature
exclude one another, a text that ignores its instruction meets few. The constraints are of IFEval's types where these exist,
else of `checks.extra.training` and `checks.extra.tiny`, worded briefly in words of `lexicon`.

A row is a function of (seed, split, index) and the options. A hash of an instruction's own words assigns it to "train" or
"heldout", so no held-out instruction is ever in a training stream, whatever the seeds and sizes.

`python -m hir_jax.data.generate.tiny.witness --count=N --seed=S --split=train --min_constraints=1 --max_constraints=2
--output=FILE` writes rows of the native format, each with its witness as `response`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from absl import flags

from hir_jax import pathflags
from hir_jax.data import native
from hir_jax.data.generate.tiny import grammar, lexicon
from hir_jax.data.templates import REWRITABLE
from hir_jax.types import Constraint, InputError, Instruction

SPLITS = ("train", "heldout")
MAX_CONSTRAINTS = len(grammar.FEATURES)
_HELDOUT_SHARE = 4  # one instruction in this many is "heldout"


# --- constraints on features -------------------------------------------------------------------------------------------


def _counted(id: str, argument: str, wording: str) -> Callable[[random.Random, int], Constraint]:
    return lambda rng, value: Constraint(id, {argument: value}, wording.format(value))


def _repeated(rng: random.Random, value: int) -> Constraint:
    text = f"Use {lexicon.REPEATED} exactly {value} times."
    return Constraint("training:word_times", {"word": lexicon.REPEATED, "times": value}, text)


def _subject(rng: random.Random, value: str) -> Constraint:
    others = [word for word in lexicon.SUBJECTS if word != value]
    return Constraint("tiny:one_of", {"word": value, "others": others}, f"Name only {value}.")


def _postscript(rng: random.Random, value: bool) -> Constraint:
    if not value:
        return Constraint("tiny:no_postscript", {}, "Add no P.S. line.")
    arguments = {"postscript_marker": lexicon.POSTSCRIPT}
    return Constraint("detectable_content:postscript", arguments, "Add a P.S. line.")


def _length(rng: random.Random, value: bool) -> Constraint:
    relation = "at least" if value else "less than"
    arguments = {"num_words": grammar.ENOUGH_WORDS, "relation": relation}
    return Constraint("length_constraints:number_words", arguments, f"Write {relation} {grammar.ENOUGH_WORDS} words.")


def _presence(rng: random.Random, value: tuple[bool, ...]) -> Constraint:
    word, present = rng.choice(list(zip(lexicon.PRESENT_OR_ABSENT, value, strict=True)))
    if present:  # as a whole word, so that no text meets both this and the constraint below
        return Constraint("keywords:existence", {"keywords": [rf"\b{word}\b"]}, f"Use the word {word}.")
    return Constraint("keywords:forbidden_words", {"forbidden_words": [word]}, f"Avoid the word {word}.")


# Feature -> the constraint that asks for one of its values.
_CONSTRAINTS: dict[str, Callable[[random.Random, Any], Constraint]] = {
    "paragraphs": _counted(
        "length_constraints:number_paragraphs", "num_paragraphs", "Split the text by *** into {} parts."
    ),
    "bullets": _counted("detectable_format:number_bullet_lists", "num_bullets", "List exactly {} bullets."),
    "repeated": _repeated,
    "opening": _counted("tiny:begins_with", "phrase", "Start with {}."),
    "closing": _counted("startend:end_checker", "end_phrase", "End with {}"),
    "subject": _subject,
    "postscript": _postscript,
    "long": _length,
    "presence": _presence,
}


def ask(rng: random.Random, feature: str, value: Any) -> Constraint:
    """The constraint that asks for this value of a feature; `rng` chooses the word of a constraint on "presence"."""
    return _CONSTRAINTS[feature](rng, value)


# Feature -> the constraint types that ask for it.
TYPES: dict[str, tuple[str, ...]] = {
    feature: tuple(dict.fromkeys(ask(random.Random(0), feature, value).id for value in values))
    for feature, values in grammar.FEATURES.items()
}
IDS = tuple(id for ids in TYPES.values() for id in ids)


def draw_constraints(
    rng: random.Random, specification: grammar.Specification, count: int, ids: Sequence[str] = ()
) -> list[Constraint]:
    """Up to `count` constraints on different features (of the types `ids`, if any are given), in random order."""
    features = rng.sample(list(specification), len(specification))
    drawn = [ask(rng, feature, specification[feature]) for feature in features]
    return [constraint for constraint in drawn if not ids or constraint.id in ids][:count]


# --- instructions ----------------------------------------------------------------------------------------------------


def split_of(instruction: Instruction) -> str:
    """The stream to which an instruction belongs, by its task and constraint texts (any template)."""
    words = "\n".join((instruction.task, *sorted(c.text for c in instruction.constraints)))
    return SPLITS[hashlib.sha256(words.encode()).digest()[0] % _HELDOUT_SHARE == 0]


def _with_noise(rng: random.Random, constraints: list[Constraint], label_noise: float) -> list[Constraint]:
    """Replaces each constraint, with probability `label_noise`, by one on the same feature of another text."""
    feature_of = {id: feature for feature, ids in TYPES.items() for id in ids}
    noisy = []
    for constraint in constraints:
        if rng.random() < label_noise:
            feature = feature_of[constraint.id]
            constraint = ask(rng, feature, grammar.draw_specification(rng)[feature])
        noisy.append(constraint)
    return noisy


def _draw(
    rng: random.Random, count: int, template: str, label_noise: float, ids: Sequence[str]
) -> tuple[Instruction, str] | None:
    specification = grammar.draw_specification(rng)
    constraints = draw_constraints(rng, specification, count, ids)
    if len(constraints) < count:
        return None
    text = grammar.compose(rng, specification)
    task = f"Write a {rng.choice(lexicon.GENRES)} about the {rng.choice(lexicon.NOUNS)}."
    return Instruction(task, tuple(_with_noise(rng, constraints, label_noise)), template), text


def generate(
    seed: int,
    count: int,
    *,
    min_constraints: int,
    max_constraints: int,
    split: str = "train",
    templates: Sequence[str] = ("type1",),
    label_noise: float = 0.0,
    ids: Sequence[str] = (),
) -> list[tuple[Instruction, str]]:
    """`count` instructions with a witness each: row i is a function of (seed, split, i) and of the options.

    The number of constraints is uniform in [min_constraints, max_constraints], at most one a feature. `label_noise` in
    [0, 1] is the share of constraints that ask for another text's value, which the witness meets only by chance: with 0 it
    meets all constraints; pairs with noise train a weaker base model. `ids` are the constraint types to draw from, all of IDS
    if empty; name all types of a feature (TYPES), or its values are not drawn evenly. Raises InputError for options out of
    range.
    """
    if not 1 <= min_constraints <= max_constraints <= MAX_CONSTRAINTS:
        raise InputError(
            f"constraints a prompt: 1 <= min <= max <= {MAX_CONSTRAINTS}, not {min_constraints}..{max_constraints}"
        )
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if not 0.0 <= label_noise <= 1.0:
        raise InputError(f"label_noise is a share in [0, 1], not {label_noise}")
    if count < 0:
        raise InputError(f"count must not be negative, it is {count}")
    if not templates or any(name not in REWRITABLE for name in templates):
        raise InputError(f"templates must be some of {', '.join(REWRITABLE)}, not {list(templates)}")
    unknown = [name for name in ids if name not in IDS]
    usable = sum(any(not ids or id in ids for id in of_feature) for of_feature in TYPES.values())
    if unknown or usable < max_constraints:
        raise InputError(
            f"constraint types: name some of at least {max_constraints} features, of {dict(TYPES)}; not {list(ids)}"
        )
    rows = []
    for index in range(count):
        rng = random.Random(f"witness {seed} {split} {index}")  # a string seeds by SHA-512: the same in every process
        number, template = rng.randint(min_constraints, max_constraints), rng.choice(templates)
        drawn = None
        while drawn is None or split_of(drawn[0]) != split:
            drawn = _draw(rng, number, template, label_noise, tuple(ids))
        key = f"{split}-{seed}-{index}"
        rows.append((replace(drawn[0], key=key, source=f"witness:{key}"), drawn[1]))
    return rows


def _define_flags() -> None:
    flags.DEFINE_integer("count", 1000, "Rows to write.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of all draws.")
    flags.DEFINE_enum("split", "train", SPLITS, "Stream to draw from.")
    flags.DEFINE_integer("min_constraints", 1, "Fewest constraints of a row.", lower_bound=1)
    flags.DEFINE_integer("max_constraints", 2, "Most constraints of a row.", lower_bound=1)
    flags.DEFINE_list("templates", ["type1"], "Templates to draw from, separated by commas.")
    flags.DEFINE_float("label_noise", 0.0, "Share of constraints that are drawn from another text.")
    pathflags.define("output", None, "Native JSONL file to write.", required=True)


def main(argv: Sequence[str]) -> None:
    del argv
    options = flags.FLAGS
    names = ("min_constraints", "max_constraints", "split", "templates", "label_noise")
    rows = generate(options.seed, options.count, **{name: options[name].value for name in names})
    native.write(options.output, [instruction for instruction, _ in rows], [text for _, text in rows])
    print(f"{len(rows)} instructions with their witnesses written to {options.output}")


if __name__ == "__main__":
    _define_flags()
    pathflags.run(main, __doc__, prefix="hir_jax.data.generate.tiny.witness: ")
