"""Instructions of the tiny environment, each with a response that meets it.

A hidden witness is drawn first: a short text of `grammar`. Then constraints are drawn from what holds for it, so that
every instruction can be met, however many constraints it has. The constraints are those of IFEval
(`constraints.registry`), in short wording out of `lexicon` words.

Streams: what comes out is a function of (seed, split, index) and the options. An instruction belongs to "train" or to
"heldout" by a hash of its own words, so no held-out instruction is ever in a training stream, whatever seeds and sizes.

`python -m hir_jax.instructions.witness --count=N --seed=S --split=train --min_constraints=1 --max_constraints=2
--output=FILE` writes rows of the native format, each with its witness as `response`.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from absl import app, flags

from hir_jax.constraints import registry
from hir_jax.instructions import grammar, lexicon, native
from hir_jax.instructions.templates import REWRITABLE
from hir_jax.types import Constraint, InputError, Instruction

SPLITS = ("train", "heldout")
MAX_CONSTRAINTS = 6
_HELDOUT_SHARE = 4  # one instruction in so many belongs to "heldout"

AT_LEAST, LESS_THAN = "at least", "less than"
Drawn = tuple[dict[str, Any], str]  # arguments, text


# --- constraints that may hold for it --------------------------------------------------------------------------------
# Each function proposes arguments and wording out of a text, or None where the text offers nothing. `registry.check`
# decides whether the proposal holds.


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _content(text: str) -> list[str]:
    """Content words of the text, each once, in the lexicon's order."""
    present = set(_words(text))
    return [w for w in (*lexicon.NOUNS, *lexicon.ADJECTIVES, *lexicon.VERBS, *lexicon.ADVERBS) if w in present]


def _existence(rng: random.Random, text: str) -> Drawn:
    content = _content(text)
    keywords = rng.sample(content, min(len(content), rng.choice((1, 1, 2))))
    named = f"word {keywords[0]}" if len(keywords) == 1 else f"words {' and '.join(keywords)}"
    return {"keywords": keywords}, f"Use the {named}."


def _forbidden(rng: random.Random, text: str) -> Drawn | None:
    # Each determiner is in a third of the texts or more; forbidding a noun would be met without trying.
    absent = [w for w in lexicon.DETERMINERS if w not in set(_words(text))]
    if len(absent) < 2:
        return None
    words = rng.sample(absent, rng.choice((1, 2)))
    named = f"word {words[0]}" if len(words) == 1 else f"words {' and '.join(words)}"
    return {"forbidden_words": words}, f"Avoid the {named}."


def _frequency(rng: random.Random, text: str) -> Drawn | None:
    words = _words(text)
    repeated = [w for w in lexicon.NOUNS + lexicon.DETERMINERS if words.count(w) >= 2]
    if not repeated:
        return None
    keyword = rng.choice(repeated)
    count = rng.randint(2, min(3, words.count(keyword)))
    arguments = {"keyword": keyword, "frequency": count, "relation": AT_LEAST}
    return arguments, f"Use the word {keyword} at least {count} times."


def _telling_relation(rng: random.Random, count: int, usual: tuple[int, int]) -> str:
    """The bound that many texts would miss: at least a high count, less than a low one, by chance in between."""
    low, high = usual
    return AT_LEAST if rng.random() < (count - low) / (high - low) else LESS_THAN


def _number_words(rng: random.Random, text: str) -> Drawn:
    count = len(_words(text))
    relation = _telling_relation(rng, count, (12, 24))
    count += -rng.randint(0, 2) if relation == AT_LEAST else rng.randint(1, 3)
    return {"num_words": count, "relation": relation}, f"Write {relation} {count} words."


def _number_sentences(rng: random.Random, text: str) -> Drawn:
    count = len(re.findall(r"\w{3,}[*\]]?\.", text))
    relation = _telling_relation(rng, count, (1, 4))
    count += relation == LESS_THAN
    return {"num_sentences": count, "relation": relation}, f"Write {relation} {count} sentences."


def _paragraphs(rng: random.Random, text: str) -> Drawn:
    count = text.count("***") + 1
    return {"num_paragraphs": count}, f"Split the text by *** into {count} parts."


def _first_word(rng: random.Random, text: str) -> Drawn:
    blocks = text.split("\n\n")
    nth = rng.randint(1, len(blocks))
    word = (_words(blocks[nth - 1]) or [""])[0]
    arguments = {"num_paragraphs": len(blocks), "nth_paragraph": nth, "first_word": word}
    return arguments, f"Start paragraph {nth} of {len(blocks)} with {word}."


def _bullets(rng: random.Random, text: str) -> Drawn:
    count = len(re.findall(r"^\"?- ", text, re.MULTILINE))
    return {"num_bullets": count}, f"List exactly {count} bullets."


def _at_least(argument: str, pattern: str, wording: str) -> Callable[[random.Random, str], Drawn | None]:
    """A constraint on how often `pattern` occurs at least."""

    def draw(rng: random.Random, text: str) -> Drawn | None:
        found = len(re.findall(pattern, text))
        if not found:
            return None
        count = rng.randint(max(1, found - 1), found)
        return {argument: count}, wording.format(count)

    return draw


def _capitals(rng: random.Random, text: str) -> Drawn | None:
    drawn = _at_least("capital_frequency", r"\b[A-Z]{2,}\b", "Use {} or more capital words.")(rng, text)
    return drawn and ({**drawn[0], "capital_relation": AT_LEAST}, drawn[1])


def _sections(rng: random.Random, text: str) -> Drawn | None:
    for head in lexicon.SPLITTERS:
        count = len(re.findall(rf"{head} \d", text))
        if count:
            return {"section_spliter": head, "num_sections": count}, f"Write {count} or more sections named {head}."
    return None


def _postscript(rng: random.Random, text: str) -> Drawn | None:
    for marker in lexicon.POSTSCRIPTS:
        if f"\n{marker} " in text:
            return {"postscript_marker": marker}, f"Add a {marker} line."
    return None


def _closing(rng: random.Random, text: str) -> Drawn | None:
    for closing in lexicon.CLOSINGS:
        if text.rstrip('"').endswith(closing):
            return {"end_phrase": closing}, f"End with {closing}"
    return None


def _plain(wording: str) -> Callable[[random.Random, str], Drawn]:
    return lambda rng, text: ({}, wording)


# id -> (weight in the draw, proposal). What few texts have weighs more than what every text offers.
PROPOSALS: dict[str, tuple[float, Callable[[random.Random, str], Drawn | None]]] = {
    "keywords:existence": (2.0, _existence),
    "keywords:forbidden_words": (1.0, _forbidden),
    "keywords:frequency": (2.0, _frequency),
    "length_constraints:number_words": (1.0, _number_words),
    "length_constraints:number_sentences": (1.0, _number_sentences),
    "length_constraints:number_paragraphs": (2.0, _paragraphs),
    "length_constraints:nth_paragraph_first_word": (2.0, _first_word),
    "detectable_format:number_bullet_lists": (2.0, _bullets),
    "detectable_format:number_highlighted_sections": (
        2.0,
        _at_least("num_highlights", r"\*[^\n*]+\*", "Highlight {} or more parts."),
    ),
    "detectable_content:number_placeholders": (
        2.0,
        _at_least("num_placeholders", r"\[.*?\]", "Put in {} or more placeholders."),
    ),
    "detectable_format:multiple_sections": (2.0, _sections),
    "detectable_format:title": (2.0, _plain("Add a title.")),
    "detectable_content:postscript": (2.0, _postscript),
    "startend:quotation": (2.0, _plain("Put quotes around the text.")),
    "startend:end_checker": (2.0, _closing),
    "punctuation:no_comma": (1.0, _plain("Use no commas.")),
    "change_case:capital_word_frequency": (2.0, _capitals),
}
# One block is what nearly every text has: the proposals below say something only where there are several.
_NEEDS = {
    "length_constraints:number_paragraphs": "***",
    "length_constraints:nth_paragraph_first_word": "\n\n",
    "detectable_format:number_bullet_lists": "- ",
}


def propose(rng: random.Random, id: str, text: str) -> Constraint | None:
    """A constraint of this id that holds for `text`, with arguments drawn from it; None where there is none."""
    if _NEEDS.get(id, "") not in text:
        return None
    drawn = PROPOSALS[id][1](rng, text)
    if drawn is None:
        return None
    constraint = Constraint(id, drawn[0], drawn[1])
    return constraint if registry.check(constraint, text) else None


def draw_constraints(rng: random.Random, text: str, count: int, ids: Sequence[str] = ()) -> list[Constraint]:
    """Up to `count` constraints of different ids (of `ids`, if any are given), all met by `text`, in random order."""
    # Sampling without replacement by weight: the largest u^(1/w) first (Efraimidis and Spirakis, 2006).
    order = sorted(ids or PROPOSALS, key=lambda id: -(rng.random() ** (1.0 / PROPOSALS[id][0])))
    proposals = (propose(rng, id, text) for id in order)
    constraints = list(itertools.islice((c for c in proposals if c is not None), count))
    rng.shuffle(constraints)
    return constraints


# --- instructions ----------------------------------------------------------------------------------------------------


def split_of(instruction: Instruction) -> str:
    """The stream to which an instruction belongs, by its task and constraint texts (any template)."""
    words = "\n".join((instruction.task, *sorted(c.text for c in instruction.constraints)))
    return SPLITS[hashlib.sha256(words.encode()).digest()[0] % _HELDOUT_SHARE == 0]


def _with_noise(
    rng: random.Random, constraints: list[Constraint], label_noise: float, ids: Sequence[str]
) -> list[Constraint]:
    """Each constraint, with probability `label_noise`, replaced by one that was drawn for another text."""
    noisy: list[Constraint] = []
    for constraint in constraints:
        if rng.random() < label_noise:
            taken = {c.id for c in (*noisy, *constraints)}
            others = (draw_constraints(rng, grammar.draw_text(rng), 1, ids) for _ in itertools.count())
            constraint = next(c for drawn in others for c in drawn if c.id == constraint.id or c.id not in taken)
        noisy.append(constraint)
    return noisy


def _draw(
    rng: random.Random, count: int, template: str, label_noise: float, ids: Sequence[str]
) -> tuple[Instruction, str] | None:
    text = grammar.draw_text(rng)
    constraints = draw_constraints(rng, text, count, ids)
    nouns = [w for w in _words(text) if w in lexicon.NOUNS]
    if len(constraints) < count or not nouns:
        return None
    task = f"Write a {rng.choice(lexicon.GENRES)} about the {nouns[0]}."
    return Instruction(task, tuple(_with_noise(rng, constraints, label_noise, ids)), template), text


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

    The number of constraints is uniform in [min_constraints, max_constraints], at most 6. `label_noise` in [0, 1] is
    the share of constraints that are drawn from another text instead, so that the witness meets them only by chance:
    with 0 it meets them all; pairs with noise fit a weaker base model. `ids` are the constraint types to draw from, all
    of PROPOSALS if empty. Raises InputError for options out of range.
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
    unknown = [name for name in ids if name not in PROPOSALS]
    if unknown or 0 < len(ids) < 2 * max_constraints:
        raise InputError(
            f"constraint types: at least {2 * max_constraints} for {max_constraints} a prompt, of {', '.join(PROPOSALS)}; "
            f"not {list(ids)}"
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
    flags.DEFINE_string("output", None, "Native JSONL file to write.", required=True)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options are given as --name=value")
    options = flags.FLAGS
    try:
        rows = generate(
            options.seed,
            options.count,
            min_constraints=options.min_constraints,
            max_constraints=options.max_constraints,
            split=options.split,
            templates=options.templates,
            label_noise=options.label_noise,
        )
        native.write(options.output, [instruction for instruction, _ in rows], [text for _, text in rows])
    except (ValueError, OSError) as error:
        sys.exit(f"hir_jax.instructions.witness: {error}")
    print(f"{len(rows)} instructions with their witnesses written to {options.output}")


if __name__ == "__main__":
    _define_flags()
    app.run(main)
