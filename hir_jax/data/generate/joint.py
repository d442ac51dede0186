"""Which constraints may stand in one instruction, whatever families they are of.

IFEval's 25 types are judged by `conflicts`. A constraint of another family comes with `Claims`: what it says in IFEval's
terms goes to `conflicts` too, along with the text, words and sentences that it takes; the rest is held against the
claims of each other constraint.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from hir_jax.checks.judge.soft import SOFT
from hir_jax.data.generate import claims, conflicts
from hir_jax.data.generate.claims import Claims
from hir_jax.data.generate.families import ifbench, muldimif, soft, training
from hir_jax.types import Constraint

# Families beside "ifeval" -> what is drawn -> how.
Draw = Callable[..., Constraint | None]  # of a `tasks.BaseTask` and a random.Random; None: the task does not suit it
DRAWS: dict[str, Mapping[str, Draw]] = {
    "muldimif": muldimif.DRAWS,
    "training": training.DRAWS,
    "soft": soft.DRAWS,
    "ifbench": ifbench.DRAWS,
}
FAMILIES = ("ifeval", *DRAWS)


def is_ifeval(constraint: Constraint) -> bool:
    return not (
        constraint.id == SOFT or constraint.id.startswith(("muldimif:", "training:")) or constraint.id in ifbench.DRAWS
    )


def claims_of(constraint: Constraint) -> Claims:
    """The claims of a constraint that a family's draw made, or of one of IFEval's types. KeyError for others."""
    if is_ifeval(constraint):
        return claims.of_ifeval(constraint)
    if constraint.id == SOFT:
        return soft.claims(constraint)
    if constraint.id in ifbench.DRAWS:
        return ifbench.claims(constraint)
    return (muldimif if constraint.id.startswith("muldimif:") else training).claims(constraint)


def clash(constraints: Sequence[Constraint]) -> str | None:
    """Why these constraints do not go together in one instruction, or None if they do.

    For IFEval's types alone it is `conflicts.clash`. Another type stands in an instruction once (soft constraints: each
    aspect once).
    """
    if all(map(is_ifeval, constraints)):
        return conflicts.clash(constraints)
    held = [claims_of(constraint) for constraint in constraints]
    for (a, of_a), (b, of_b) in itertools.combinations(zip(constraints, held, strict=True), 2):
        if is_ifeval(a) and is_ifeval(b):
            continue
        reason = f"{a.id} twice" if a.id == b.id != SOFT else claims.clash(of_a, of_b)
        if reason:
            return f"{a.id} and {b.id}: {reason}"
    others = [one for one in held if not one.same]
    besides = conflicts.Besides(
        " ".join(one.shows for one in others if one.shows),
        sum(one.words for one in held),
        sum(one.sentences for one in held),
    )
    return conflicts.clash([same for one in held for same in one.same], besides)


def compatible(constraints: Sequence[Constraint]) -> bool:
    """Whether the constraints may stand in one instruction."""
    return clash(constraints) is None
