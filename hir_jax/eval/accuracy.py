"""Accuracies of responses to instructions, and the control of `hir.following`, which checks them against other constraints.

The control uses rules only: constraints that a judge or a code checker decides are left out on both sides, and prompts
are grouped by how many other constraints they hold. Its permutation in training is drawn anew each step, from the config's
seed and the step. On held-out instructions and in evaluations it is the same for all runs and steps, so that their figures
are paired.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hir_jax.checks import registry
from hir_jax.checks.verifier import Row, Verifier
from hir_jax.data.segments import Encoded
from hir_jax.data.templates import render
from hir_jax.engine import Engine
from hir_jax.eval.responses import Response
from hir_jax.eval.statistics import bootstrap
from hir_jax.hir import following, select
from hir_jax.parallel import processes
from hir_jax.rollouts import no_verdicts, verify
from hir_jax.types import MIXTURE, Constraint, Instruction, Rollout, Verdicts

_FIXED_SEED = (0,)  # of the control's permutation outside training


def _code(constraint: Constraint) -> str:
    return json.dumps([constraint.id, dict(constraint.arguments)], sort_keys=True, default=str)


def constraint_codes(instructions: Sequence[Instruction], width: int) -> np.ndarray:
    """i32[N, width]: equal numbers for constraints of equal id and arguments; -1 for constraints that a judge or a code checker
    decides, and after the last constraint."""
    known, found = {}, np.full((len(instructions), width), -1, np.int32)
    for n, instruction in enumerate(instructions):
        for c, constraint in enumerate(instruction.constraints):
            if not registry.decider(constraint.id):
                found[n, c] = known.setdefault(_code(constraint), len(known))
    return found


class Shuffled(NamedTuple):
    """The control of B responses to N instructions: `other` as in `following.shuffles`, verdicts as in `following.figures`."""

    codes: np.ndarray  # i32[N, C]
    other: np.ndarray  # i32[R, N]
    own: Verdicts  # bool[B, C]
    others: Verdicts  # bool[R, B, C]

    def figures(self) -> dict[str, float]:
        """`following.figures` and `overlap`."""
        return following.figures(self.own, self.others) | {"overlap": self.overlap}

    @property
    def overlap(self) -> float:
        return following.overlap(self.codes, self.other)

    def following_by_prompt(self) -> np.ndarray:
        """f64[N]: `following` of each prompt, NaN where no pair of it is decided."""
        samples = len(self.own.present) // len(self.codes)
        prompt = np.arange(len(self.own.present)) // samples
        return following.per_prompt(self.own, self.others, prompt)["following"]

    def by_type(self, instructions: Sequence[Instruction]) -> dict[str, dict[str, Any]]:
        """`following.by_type` by the type's id: `asked` and `not_asked`, means over prompts, `gap`, their difference with its
        interval, and the number of `prompts` that count."""
        ids = sorted({c.id for q in instructions for c in q.constraints})
        types = np.full(self.codes.shape, -1, np.int32)
        for n, q in enumerate(instructions):
            types[n, : len(q.constraints)] = [ids.index(c.id) for c in q.constraints]
        types[self.codes < 0] = -1
        found = {}
        for kind, (asked, not_asked) in following.by_type(self.own, self.others, self.other, types).items():
            asked, not_asked = asked[~np.isnan(asked)], not_asked[~np.isnan(not_asked)]
            means = {"asked": float(asked.mean()), "not_asked": float(not_asked.mean()), "prompts": len(asked)}
            found[ids[kind]] = means | {"gap": bootstrap(asked - not_asked)}
        return found


def _without_others(instructions: Sequence[Instruction], own: Verdicts, seed: Sequence[int], shifts: int) -> Shuffled:
    """The control before it is checked: it says against whose constraints each response is checked; `others` is still empty."""
    codes = constraint_codes(instructions, own.present.shape[1])
    counted, samples = codes >= 0, len(own.present) // len(instructions)
    other = following.shuffles(counted.sum(-1), seed, shifts)
    own = own._replace(present=own.present & np.repeat(counted, samples, 0))
    return Shuffled(codes, other, own, no_verdicts(len(other), *own.present.shape))


def shuffled(verifier: Verifier, instructions: Sequence[Instruction], texts: Sequence[str], own: Verdicts) -> Shuffled:
    """The control of B = N * S texts, S of each instruction in turn. own: the verdicts on them, bool[B, C].

    A check that looks at the request gets the request that its constraints come from.
    """
    control = _without_others(instructions, own, _FIXED_SEED, following.EVALUATION_SHIFTS)
    counted, samples = control.codes >= 0, len(texts) // len(instructions)
    pairs, rows = np.argwhere(following.of_rows(control.other, samples) >= 0), []
    partners = control.other[pairs[:, 0], pairs[:, 1] // samples]
    for j, (_, b) in zip(partners, pairs, strict=True):
        q = instructions[j]
        constraints = [c for c, asked in zip(q.constraints, counted[j], strict=False) if asked]
        rows.append(Row(constraints, texts[b], render(q), f"control: a response to another prompt, {q.source}"))
    found = verifier.verify(rows, own.present.shape[1])
    for i, (j, (r, b)) in enumerate(zip(partners, pairs, strict=True)):
        for whole, part in zip(control.others, found, strict=True):
            whole[r, b, counted[j]] = part[i, : counted[j].sum()]
    return control


def accuracies(
    verifier: Verifier, instructions: Sequence[Instruction], texts: Sequence[str], *, control: bool
) -> dict[str, float]:
    """Figures of one response to each instruction: mean ILA (over decided responses) and CLA (over those with any verdict), the
    share of distinct responses, and with `control` the figures of `shuffled`."""
    rows = [Response(q, y, q.source).row for q, y in zip(instructions, texts, strict=True)]
    verdicts = verifier.verify(rows, max(len(q.constraints) for q in instructions))
    shuffle = shuffled(verifier, instructions, texts, verdicts) if control else None
    ila, decided = (np.asarray(x) for x in select.ila(verdicts))
    some = (verdicts.present & verdicts.known).any(-1)
    found = {
        "ila": float(ila[decided].mean()) if decided.any() else 0.0,
        "cla": float(np.asarray(select.cla(verdicts))[some].mean()) if some.any() else 0.0,
        "distinct": float(following.distinct(texts).mean()),
    }
    return found | (shuffle.figures() if shuffle else {}) | by_source(instructions, verdicts, shuffle)


def by_source(instructions: Sequence[Instruction], verdicts: Verdicts, control: Shuffled | None) -> dict[str, float]:
    """`ila/NAME` and, with a control, `following/NAME` of each source of a mixture (`data.mixture`); {} without one. verdicts:
    bool[B, C] on the samples of N instructions, B / N of each in turn; one with no constraint present is no sample."""
    names, found = np.array([q.labels.get(MIXTURE, "") for q in instructions]), {}
    if not names.any():
        return found
    ila, decided = (np.asarray(x) for x in select.ila(verdicts))
    gaps = control.following_by_prompt() if control else np.full(len(names), np.nan)
    for name in sorted(set(names) - {""}):
        taken = decided & verdicts.present.any(-1) & np.repeat(names == name, len(decided) // len(names))
        own = gaps[(names == name) & ~np.isnan(gaps)]
        found |= {
            f"{figure}/{name}": float(x.mean()) for figure, x in (("ila", ila[taken]), ("following", own)) if len(x)
        }
    return found


def control_of_step(
    engine: Engine, verifier: Verifier, rows: Sequence[Encoded], rollout: Rollout, own: Verdicts, step: int, conditions
) -> Shuffled:
    """The control of a training step's samples, by one shift of its prompts. Arguments, and the division of the checks between
    device and processes, are as in `rollouts.verify`. Responses whose own ILA is undecided are not checked again."""
    seed = engine.config.seed, step
    control = _without_others([row.instruction for row in rows], own, seed, following.TRAINING_SHIFTS)
    samples, width = len(rollout.filled) // len(rows), own.present.shape[1]
    partner = np.maximum(control.other[0], 0)
    decided = np.asarray(select.ila(control.own)[1])
    taken = (following.of_rows(control.other, samples)[0] >= 0) & rollout.filled & decided
    wanted = np.repeat((control.codes >= 0)[partner], samples, 0) & taken[:, None]
    theirs = None if conditions is None else jax.tree.map(lambda x: x[partner], conditions)
    found = verify(engine, verifier, [rows[j] for j in partner], rollout, wanted, width, step, theirs)
    found = processes.union(found)
    others = found._replace(present=found.present & wanted)
    return control._replace(others=Verdicts(*(x[None] for x in others)))
