"""Training instructions of our own: base tasks (see `tasks`) crossed with constraints that go together (see `joint`).

A row is a function of (seed, split, index) and the options alone, so a longer list extends a shorter one, on every
machine and under every hash seed. No base task is in both splits, and none is from a benchmark.

Families of constraints, drawn evenly by type:

- ifeval: the 25 IFEval types, the only ones unless others are asked for;
- muldimif: MulDimIF's 12 families, in wordings of our own;
- training: types of our own in the manner of IFBench, none of which is among its 58;
- soft: requirements of which a judge decides, so that a run needs one (rows with them are left out otherwise);
- ifbench: types of IFBench itself. They are off unless named, because IFBench is a test of how a model copes with types
  that it has not been trained on: after training on them its score says nothing about that. The published HIR-16K
  data hold some of them; who reports IFBench should know.

Numbers are drawn from ranges that a small model meets now and then within some 250 tokens.

    python -m hir_jax.data.generate.synthesis --count=2000 --seed=0 --split=train --output=train.jsonl
    python -m hir_jax.data.generate.synthesis --families=ifeval,muldimif,training --max_constraints=10 --output=wide.jsonl
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from hir_jax import pathflags
from hir_jax.checks import registry
from hir_jax.data import native
from hir_jax.data.generate import conflicts as c
from hir_jax.data.generate import joint
from hir_jax.data.generate.joint import FAMILIES
from hir_jax.data.generate.phrasings import phrase
from hir_jax.data.generate.tasks import SPLITS, VERDICT, BaseTask, base_tasks
from hir_jax.data.templates import REWRITABLE
from hir_jax.types import Constraint, InputError, Instruction

# Arguments. Every function takes the base task and the row's generator and returns the arguments of one constraint.

_PLAIN_WORDS = (
    "very", "really", "just", "thing", "things", "good", "great", "nice", "important", "interesting", "amazing",
    "always", "never",
)  # fmt: skip
_FIRST_WORDS = ("today", "imagine", "perhaps", "once", "however", "remember", "finally", "when", "every", "although")
_END_PHRASES = (
    "That is all I have to say.",
    "Is there anything else you would like to know?",
    "Let me know what you think.",
    "I hope this helps.",
    "And that is the whole story.",
    "Thank you for your time.",
    "The rest is up to you.",
    "Now it is your turn!",
    "Take care and good luck.",
    "What would you do?",
    "and that was that.",
    "see you next time.",
    "so it goes.",
    "THE END",
    "END OF MESSAGE.",
)
_MARKERS = ("P.S.", "P.S.", "P.P.S", "PS:", "p.s.")
_SPLITTERS = ("SECTION", "Section", "PART", "Part", "Chapter", "section")
_LANGUAGES = ("de", "es", "fr", "it", "pt")
_COMMON_LETTERS = "abcdefghilmnoprstuwy"
_RARE_LETTERS = "bfgjkpqvwxz"

Draw = Callable[[BaseTask, random.Random], dict[str, Any]]


def _relation(rng: random.Random) -> str:
    return rng.choice(("at least", "less than"))


def _capital_words(base: BaseTask, rng: random.Random) -> dict[str, Any]:
    relation = _relation(rng)
    number = rng.randint(2, 6) if relation == "at least" else rng.randint(3, 8)
    return {"capital_frequency": number, "capital_relation": relation}


def _frequency(base: BaseTask, rng: random.Random) -> dict[str, Any]:
    return {"keyword": rng.choice(base.keywords), "frequency": rng.randint(2, 4), "relation": _relation(rng)}


def _forbidden(base: BaseTask, rng: random.Random) -> dict[str, Any]:
    absent = [word for word in _PLAIN_WORDS if word not in base.task.lower()]
    return {"forbidden_words": rng.sample(base.keywords, rng.randint(1, 2)) + rng.sample(absent, rng.randint(1, 2))}


def _letter(base: BaseTask, rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.5:
        return {"letter": rng.choice(_RARE_LETTERS), "let_frequency": rng.randint(3, 6), "let_relation": "less than"}
    return {"letter": rng.choice(_COMMON_LETTERS), "let_frequency": rng.randint(3, 15), "let_relation": "at least"}


def _nth(base: BaseTask, rng: random.Random) -> dict[str, Any]:
    paragraphs = rng.randint(2, 4)
    word = rng.choice((*_FIRST_WORDS, *base.keywords))
    return {"num_paragraphs": paragraphs, "nth_paragraph": rng.randint(1, paragraphs), "first_word": word}


def _sentences(base: BaseTask, rng: random.Random) -> dict[str, Any]:
    relation = _relation(rng)
    number = rng.randint(3, 8) if relation == "at least" else rng.randint(4, 12)
    return {"num_sentences": number, "relation": relation}


def _words(base: BaseTask, rng: random.Random) -> dict[str, Any]:
    relation = _relation(rng)
    number = rng.randrange(30, 130, 10) if relation == "at least" else rng.randrange(40, 210, 10)
    return {"num_words": number, "relation": relation}


def _nothing(base: BaseTask, rng: random.Random) -> dict[str, Any]:
    return {}


DRAWS: dict[str, Draw] = {
    c.CAPITAL_WORDS: _capital_words,
    c.CAPITAL: _nothing,
    c.LOWER: _nothing,
    c.REPEAT: lambda base, rng: {"prompt_to_repeat": base.task},
    c.TWO: _nothing,
    c.PLACEHOLDERS: lambda base, rng: {"num_placeholders": rng.randint(2, 4)},
    c.POSTSCRIPT: lambda base, rng: {"postscript_marker": rng.choice(_MARKERS)},
    c.CHOICE: _nothing,
    c.JSON: _nothing,
    c.SECTIONS: lambda base, rng: {"section_spliter": rng.choice(_SPLITTERS), "num_sections": rng.randint(2, 4)},
    c.BULLETS: lambda base, rng: {"num_bullets": rng.randint(2, 6)},
    c.HIGHLIGHTS: lambda base, rng: {"num_highlights": rng.randint(2, 4)},
    c.TITLE: _nothing,
    c.EXISTENCE: lambda base, rng: {"keywords": rng.sample(base.keywords, rng.randint(2, 3))},
    c.FREQUENCY: _frequency,
    c.FORBIDDEN: _forbidden,
    c.LETTER: _letter,
    c.LANGUAGE: lambda base, rng: {"language": rng.choice(_LANGUAGES)},
    c.NTH: _nth,
    c.PARAGRAPHS: lambda base, rng: {"num_paragraphs": rng.randint(2, 5)},
    c.SENTENCES: _sentences,
    c.WORDS: _words,
    c.NO_COMMA: _nothing,
    c.END: lambda base, rng: {"end_phrase": rng.choice(_END_PHRASES)},
    c.QUOTATION: _nothing,
}

_DRAWS_PER_ID = 3  # arguments tried before an id is passed over
_TRIES = 100  # fresh starts of a row whose first constraints left too few others


def _ifeval(id: str) -> joint.Draw:
    """Draws the arguments alone: the wording is chosen once the set is complete."""
    return lambda base, rng: Constraint(id, DRAWS[id](base, rng))


def draws_of(families: Sequence[str]) -> dict[str, joint.Draw]:
    """What may be drawn -> how, in the order of `FAMILIES` whatever order they are named in."""
    chosen = {id: _ifeval(id) for id in DRAWS} if "ifeval" in families else {}
    for family, draws in joint.DRAWS.items():
        if family in families:
            chosen.update(draws)
    return chosen


def _candidates(base: BaseTask, names: Sequence[str], rng: random.Random) -> list[str]:
    """All that suits the task in random order, what is repeatable now and then a second time."""
    ids = [id for id in names if id != c.CHOICE]
    rng.shuffle(ids)
    if base.genre == VERDICT and c.CHOICE in names:
        ids.insert(rng.randrange(4), c.CHOICE)  # few tasks allow it: early, so that it is not rarer still
    return ids + [id for id in ids if id in c.REPEATABLE and rng.random() < 0.3]


def _draw_constraints(
    base: BaseTask, count: int, draws: dict[str, joint.Draw], rng: random.Random
) -> tuple[Constraint, ...]:
    for _ in range(_TRIES):
        chosen: list[Constraint] = []
        ids = _candidates(base, list(draws), rng)
        while ids and len(chosen) < count:
            id = ids.pop(0)
            for _ in range(_DRAWS_PER_ID):
                constraint = draws[id](base, rng)
                if constraint is not None and joint.compatible([*chosen, constraint]):
                    chosen.append(constraint)
                    break
        if len(chosen) == count:
            rng.shuffle(chosen)
            return tuple(Constraint(x.id, x.arguments, x.text or phrase(x.id, x.arguments, rng)) for x in chosen)
    raise InputError(f"no {count} constraints that go together found for {base.task!r}; ask for fewer")


def generate(
    seed: int,
    count: int,
    *,
    min_constraints: int = 3,
    max_constraints: int = 8,
    templates: Sequence[str] = REWRITABLE,
    split: str = "train",
    families: Sequence[str] = ("ifeval",),
    without: Sequence[str] = (),
) -> list[Instruction]:
    """`count` instructions with min to max (inclusive) constraints each that do not contradict one another.

    Row i depends on (seed, split, i) and the options only. `key` is SPLIT-SEED-INDEX, `source` generated:SEED:INDEX.
    `families` are some of FAMILIES, in any order; of their constraint types those in `without` are never drawn. With "ifeval"
    whole among them, sets of up to 10 are found for every task.
    Raises InputError for an unknown template or family, a negative count, or bounds that are not 1 <= min <= max;
    ValueError for an unknown split.
    """
    unknown = [name for name in templates if name not in REWRITABLE]
    if unknown or not templates:
        raise InputError(f"templates must be some of {', '.join(REWRITABLE)}, not {list(templates)!r}")
    if not families or not set(families) <= set(FAMILIES):
        raise InputError(f"families must be some of {', '.join(FAMILIES)}, not {list(families)!r}")
    if not 1 <= min_constraints <= max_constraints:
        raise InputError(f"need 1 <= min_constraints <= max_constraints, not {min_constraints} and {max_constraints}")
    if count < 0:
        raise InputError(f"count must not be negative, it is {count}")
    unknown = [id for id in without if id not in draws_of(families)]
    if unknown:
        raise InputError(f"no constraint type of {', '.join(families)} is called {', '.join(unknown)}")
    tasks, draws = base_tasks(split), {id: draw for id, draw in draws_of(families).items() if id not in without}

    def row(index: int) -> Instruction:
        rng = random.Random(f"{seed}:{split}:{index}")  # a string seed goes through SHA-512, whatever PYTHONHASHSEED is
        base = rng.choice(tasks)
        constraints = _draw_constraints(base, rng.randint(min_constraints, max_constraints), draws, rng)
        for constraint in constraints:
            registry.validate(constraint)
        source = f"generated:{seed}:{index}"
        return Instruction(base.task, constraints, rng.choice(list(templates)), f"{split}-{seed}-{index}", source)

    return [row(index) for index in range(count)]


def _define_flags() -> None:
    flags.DEFINE_integer("count", 1000, "Instructions to write.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of all draws.")
    flags.DEFINE_enum("split", "train", SPLITS, "Base tasks to draw from.")
    flags.DEFINE_integer("min_constraints", 3, "Fewest constraints of a row.", lower_bound=1)
    flags.DEFINE_integer("max_constraints", 8, "Most constraints of a row.", lower_bound=1)
    flags.DEFINE_list("families", ["ifeval"], f"Families of constraints, separated by commas: {', '.join(FAMILIES)}.")
    pathflags.define("output", None, "Native JSONL file to write.", required=True)


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
            families=options.families,
        )
        native.write(options.output, rows)
    except ValueError as error:
        sys.exit(f"hir_jax.data.generate.synthesis: {error}")
    except OSError as error:
        sys.exit(f"hir_jax.data.generate.synthesis: --output={options.output} cannot be written: {error.strerror}")
    print(f"{len(rows)} instructions written to {options.output}")


if __name__ == "__main__":
    _define_flags()
    pathflags.run(main, __doc__)
