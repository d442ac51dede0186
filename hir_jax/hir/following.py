"""Does a response follow its own instruction? The same response is checked against the constraints of other prompts.

A kind of text that meets many instructions at once raises ILA without being asked for anything. The control shows it: within
the prompts that have equally many constraints, each response is checked against the constraints of other prompts, and

    following = ILA under the own constraints - ILA under other prompts' constraints, over the same pairs.

Every shift of the control is a permutation of the prompts, so a response that is the same for all of them gets exactly 0 where
all verdicts are known. ILA ranks methods; `following` says whether what ILA measures is following at all.

Cost (`seconds/control` of a run's metrics): on a CPU core 6 to 12 ms for 32 rows of 3 to 8 constraints, less than 0.1% of a
step of SmolLM2-135M, and 8 to 9 ms of a step of the tiny config, 2%.

Pure functions of arrays. N prompts of S samples each, B = N * S rows (row b belongs to prompt b // S), C constraints, R shifts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from hir_jax.hir import select
from hir_jax.types import Verdicts

TRAINING_SHIFTS, EVALUATION_SHIFTS = 1, 8  # R


def shuffles(counts: np.ndarray, seed: Sequence[int], shifts: int) -> np.ndarray:
    """The other prompt whose constraints the responses to each prompt are checked against: i32[R, N], -1 for none.

    counts: i64[N], the constraints of each prompt; a prompt with none has no part in it. Prompts are grouped by their count, and
    a group of G takes min(R, G - 1) cyclic shifts of a permutation drawn from `seed`: never a prompt itself, and each shift
    another prompt. A group of one takes none. R = `shifts`.
    """
    order = np.random.default_rng(seed).permutation(len(counts))
    other = np.full((shifts, len(counts)), -1, np.int32)
    for count in np.unique(counts[counts > 0]):
        group = order[counts[order] == count]
        for r in range(min(shifts, len(group) - 1)):
            other[r, group] = np.roll(group, -(r + 1))
    return other


def of_rows(other: np.ndarray, samples: int) -> np.ndarray:
    """The same for rows: i32[R, B]. All samples of a prompt are checked against the same prompt's constraints."""
    return np.repeat(other, samples, axis=1)


def _pairs(own: Verdicts, others: Verdicts):
    """[R, B] each: ILA under the own constraints, under the others, and which pairs of a row and a shift are decided."""
    (mine, decided), (theirs, also) = (map(np.asarray, select.ila(verdicts)) for verdicts in (own, others))
    taken = others.present.any(-1) & decided & also
    return np.broadcast_to(mine, theirs.shape).astype(float), theirs.astype(float), taken


def figures(own: Verdicts, others: Verdicts) -> dict[str, float]:
    """`ila_shuffled`, `cla_shuffled` and `following`, means over the decided pairs of a row and a shift; {} without one.

    own: bool[B, C]; others: bool[R, B, C], verdicts on the same responses under the constraints of `of_rows(other)`, with
    `present` all False where a row has no partner or is no sample. A pair is decided where both its ILA are.
    """
    mine, theirs, taken = _pairs(own, others)
    shares = np.asarray(select.cla(others))  # compiled in the first step, with or without pairs
    if not taken.any():
        return {}
    count = int(taken.sum())
    met, met_by_others = mine[taken].sum(), theirs[taken].sum()  # whole numbers: equal ones differ by exactly 0
    return {
        "ila_shuffled": float(met_by_others / count),
        "cla_shuffled": float(shares[taken].mean()),
        "following": float((met - met_by_others) / count),
    }


def _means(values: np.ndarray, taken: np.ndarray, prompt: np.ndarray, prompts: int) -> np.ndarray:
    """f64[prompts]: means of values [R, B] over the pairs `taken`, by the prompt of each row; NaN where there is none."""
    of = np.broadcast_to(prompt, taken.shape)[taken]
    count = np.bincount(of, minlength=prompts)
    total = np.bincount(of, weights=values[taken], minlength=prompts)
    return np.divide(total, count, out=np.full(prompts, np.nan), where=count > 0)


def per_prompt(own: Verdicts, others: Verdicts, prompt: np.ndarray) -> dict[str, np.ndarray]:
    """The same figures of each prompt, f64[max(prompt) + 1], NaN where no pair of it is decided; prompt: i64[B]."""
    mine, theirs, taken = _pairs(own, others)
    values = {"ila_shuffled": theirs, "cla_shuffled": np.asarray(select.cla(others)), "following": mine - theirs}
    return {name: _means(value, taken, prompt, int(prompt.max()) + 1) for name, value in values.items()}


def distinct(responses: Sequence[Hashable]) -> np.ndarray:
    """f64[B]: 1 / how often a response occurs among them. The mean is the share of distinct responses."""
    count = Counter(responses)
    return np.array([1 / count[response] for response in responses])


def overlap(codes: np.ndarray, other: np.ndarray) -> float:
    """The share of a prompt's constraints that its partner holds too, mean over the pairs of prompts; 0 without a pair.

    codes: i32[N, C], equal for constraints of equal id and arguments, -1 behind the last. It shrinks `following`.
    """
    shift, prompt = np.nonzero(other >= 0)
    if not len(prompt):
        return 0.0
    mine, theirs = codes[prompt], codes[other[shift, prompt]]
    held = (mine[:, :, None] == theirs[:, None, :]).any(-1) & (mine >= 0)
    return float((held.sum(-1) / (mine >= 0).sum(-1)).mean())


def by_type(
    own: Verdicts, others: Verdicts, other: np.ndarray, types: np.ndarray
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Type -> (asked, not asked), f64[N] each: how often a prompt's constraints of that type are met by the responses to it, and
    how often the same constraints are met by responses to prompts that hold no constraint of that type. NaN in both for a prompt
    that has no such constraint, or none that both kinds of responses have known verdicts on.

    types: i32[N, C], -1 for what is no constraint or has no part in the control.
    """
    prompts, samples = len(types), len(own.known) // len(types)
    asked, not_asked = np.zeros((2, *types.shape)), np.zeros((2, *types.shape))  # how many are met, of how many
    known = (own.known & own.present).reshape(prompts, samples, -1)
    asked += np.stack([(own.satisfied.reshape(known.shape) & known).sum(1), known.sum(1)])
    for r, i in zip(*np.nonzero(other >= 0), strict=True):
        j, rows = other[r, i], slice(i * samples, (i + 1) * samples)
        known = others.known[r, rows] & others.present[r, rows] & ~np.isin(types[j], types[i])
        not_asked[:, j] += np.stack([(others.satisfied[r, rows] & known).sum(0), known.sum(0)])
    both = (types >= 0) & (asked[1] > 0) & (not_asked[1] > 0)
    shares = [np.divide(met, of, out=np.zeros(types.shape), where=both) for met, of in (asked, not_asked)]
    found = {}
    for kind in np.unique(types[both]):
        mine = both & (types == kind)
        count = mine.sum(1)
        found[int(kind)] = tuple(
            np.divide((share * mine).sum(1), count, out=np.full(prompts, np.nan), where=count > 0) for share in shares
        )
    return found
