"""Training instructions of our own: base tasks (see `tasks`) combined with constraints that go together.

The constraints are those that are registered with `generated=` (see `checks.generation`, `checks.compatibility`). A row is a
function of (seed, split, index) and the options alone, so a longer list extends a shorter one, on every machine and under
every hash seed. No base task is in both splits, and none is from a benchmark.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from hir_jax.checks import registry
from hir_jax.checks.compatibility import Stated, joins, state
from hir_jax.checks.generation import Generated
from hir_jax.data.generate.tasks import BaseTask, base_tasks
from hir_jax.data.templates import REWRITABLE
from hir_jax.types import Constraint, InputError, Instruction

_DRAWS_PER_TYPE = 3  # arguments tried before a type is passed over
_TRIES = 100  # fresh starts of a row whose first constraints left too few others


def draws_of(families: Sequence[str]) -> dict[str, Generated]:
    """Everything that may be drawn, by name, in the order of registration whatever order the families are named in."""
    return {name: one for name, one in registry.generated().items() if one.family in families}


def _candidates(base: BaseTask, draws: Mapping[str, Generated], rng: random.Random) -> list[str]:
    """All that suits the task in random order, then some of the repeatable ones a second time."""
    names = [name for name, one in draws.items() if not one.genre]
    rng.shuffle(names)
    for name, one in draws.items():
        if one.genre and one.genre == base.genre:
            names.insert(rng.randrange(4), name)  # few tasks allow it: early, so that it is not rarer still
    return names + [name for name in names if draws[name].repeatable and rng.random() < 0.3]


def _text(one: Generated, arguments: Mapping[str, Any], rng: random.Random) -> str:
    wording = rng.choice(one.wordings) if one.wordings else ""
    return one.fill(wording, arguments, rng) if wording else registry.describe(one.id, arguments)


def draw(one: Generated, base: BaseTask, rng: random.Random) -> Constraint | None:
    """A constraint of this type or kind, not yet with its text if this is drawn last; None if the task does not suit it."""
    arguments = one.draw(base, rng)
    if arguments is None:
        return None
    return Constraint(one.id, arguments, "" if one.worded_last else _text(one, arguments, rng))


def _draw_constraints(
    base: BaseTask, count: int, draws: Mapping[str, Generated], rng: random.Random
) -> tuple[Constraint, ...]:
    for _ in range(_TRIES):
        chosen: list[Stated] = []
        names = _candidates(base, draws, rng)
        while names and len(chosen) < count:
            one = draws[names.pop(0)]
            for _ in range(_DRAWS_PER_TYPE):
                constraint = draw(one, base, rng)
                if constraint is not None and joins(new := state(constraint), chosen):
                    chosen.append(new)
                    break
        if len(chosen) == count:
            rng.shuffle(chosen)
            drawn = [one.constraint for one in chosen]
            return tuple(Constraint(x.id, x.arguments, x.text or _text(draws[x.id], x.arguments, rng)) for x in drawn)
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
    `families` are some of `registry.families()`, in any order; of their constraint types those in `without` are never drawn.
    With "ifeval" whole among them, sets of up to 10 are found for every task.
    Raises InputError for an unknown template or family, a negative count, or bounds that are not 1 <= min <= max;
    ValueError for an unknown split.
    """
    unknown = [name for name in templates if name not in REWRITABLE]
    if unknown or not templates:
        raise InputError(f"templates must be some of {', '.join(REWRITABLE)}, not {list(templates)!r}")
    if not families or not set(families) <= set(registry.families()):
        raise InputError(f"families must be some of {', '.join(registry.families())}, not {list(families)!r}")
    if not 1 <= min_constraints <= max_constraints:
        raise InputError(f"need 1 <= min_constraints <= max_constraints, not {min_constraints} and {max_constraints}")
    if count < 0:
        raise InputError(f"count must not be negative, it is {count}")
    tasks, draws = base_tasks(split), draws_of(families)
    unknown = [name for name in without if name not in draws]
    if unknown:
        raise InputError(f"no constraint type of {', '.join(families)} is called {', '.join(unknown)}")
    draws = {name: one for name, one in draws.items() if name not in without}

    def row(index: int) -> Instruction:
        rng = random.Random(f"{seed}:{split}:{index}")  # a string seed goes through SHA-512, whatever PYTHONHASHSEED is
        base = rng.choice(tasks)
        constraints = _draw_constraints(base, rng.randint(min_constraints, max_constraints), draws, rng)
        for constraint in constraints:
            registry.validate(constraint)
        source = f"generated:{seed}:{index}"
        return Instruction(base.task, constraints, rng.choice(list(templates)), f"{split}-{seed}-{index}", source)

    return [row(index) for index in range(count)]
