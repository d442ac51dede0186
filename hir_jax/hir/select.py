"""Selects the failures to replay: the score F(y) = F_div(y) + lambda_s * F_int(y) and its selection (docs/method.md).

Pure functions of arrays. B rows, N prompts, C constraints, K = k * N places for replays.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int, Key

from hir_jax.types import Array, Replays, Rollout, Verdicts

SCOPES = ("batch", "group", "even")
# lambda_s stops growing here: integrity then outweighs any entropy (at most ln V, about 12 nats a token) in float32
# without swallowing it, so that entropy still breaks ties between equal integrities.
LAMBDA_CAP = 1e4


def ila(verdicts: Verdicts) -> tuple[Float32[Array, "..."], Bool[Array, "..."]]:
    """Instruction-level accuracy prod_c I of each response [B] (or [..., B]), and whether it is decided.

    0 once any constraint is known to fail; otherwise undecided while one is unknown.
    """
    failed = (verdicts.present & verdicts.known & ~verdicts.satisfied).any(-1)
    unknown = (verdicts.present & ~verdicts.known).any(-1)
    return (~failed & ~unknown).astype(jnp.float32), failed | ~unknown


def cla(verdicts: Verdicts) -> Float32[Array, "..."]:
    """Constraint-level accuracy (integrity, F_int) of each response [B]: the mean over known constraints, 0 if none is known."""
    counted = verdicts.present & verdicts.known
    met = (counted & verdicts.satisfied).sum(-1).astype(jnp.float32)
    return met / jnp.maximum(counted.sum(-1), 1)


def replayable(verdicts: Verdicts, filled: Bool[Array, " B"]) -> Bool[Array, " B"]:
    """Whether 0 < CLA < 1 and every verdict is known."""
    known = (verdicts.known | ~verdicts.present).all(-1)
    integrity = cla(verdicts)
    return filled & known & (integrity > 0) & (integrity < 1)


ENTROPIES = {"mean": lambda total, tokens: total / jnp.maximum(tokens, 1), "sum": lambda total, tokens: total}


def response_entropy(rollout: Rollout, reduce: str = "mean") -> Float32[Array, " B"]:
    """F_div in nats: the mean over the response's tokens (released code) or their sum (paper)."""
    return ENTROPIES[reduce](jnp.where(rollout.mask, rollout.entropy, 0.0).sum(-1), rollout.mask.sum(-1))


def _cosine(s: Array, eta: float, horizon: int) -> Array:
    return 1 + eta * horizon * (1 - jnp.cos(jnp.pi * jnp.minimum(s / max(1, horizon), 1.0))) / 2


# lambda_s / lambda_0 by (s, eta, horizon). The exponential is computed through logs, for 1.05^s leaves float32 near s = 1,800.
SCHEDULES = {
    "exponential": lambda s, eta, horizon: jnp.exp(jnp.minimum(s * jnp.log1p(jnp.float32(eta)), 80.0)),
    "constant": lambda s, eta, horizon: jnp.ones_like(s),
    "linear": lambda s, eta, horizon: 1 + eta * s,
    "cosine": _cosine,
}


def schedule(step: Int[Array, ""] | int, kind: str, lambda_0: float, eta: float, horizon: int) -> Float32[Array, ""]:
    """The weight of integrity, lambda_s, of the s-th step; capped at LAMBDA_CAP.

    exponential (the paper): lambda_0 * (1 + eta)^s; constant: lambda_0; linear: lambda_0 * (1 + eta * s); cosine: half a cosine
    from lambda_0 up to where linear ends at s = `horizon`, and that value afterwards.
    """
    if lambda_0 == 0:
        return jnp.float32(0.0)
    growth = SCHEDULES[kind](jnp.asarray(step, jnp.float32), eta, horizon)
    return jnp.minimum(lambda_0 * growth, LAMBDA_CAP)


class Failures(NamedTuple):
    """What a strategy ranks failures by."""

    rollout: Rollout
    verdicts: Verdicts
    step: Int[Array, ""] | int  # s, 1 at the first update
    horizon: int  # updates of the run
    key: Key[Array, ""]


def _curriculum(failures: Failures, config) -> Array:
    weight = schedule(failures.step, config.schedule, config.lambda_0, config.eta, failures.horizon)
    return response_entropy(failures.rollout, config.entropy) + weight * cla(failures.verdicts)


# F(y), f32[B], by the `replay` group of the config.
STRATEGIES = {
    "curriculum": _curriculum,
    "entropy": lambda failures, config: response_entropy(failures.rollout, config.entropy),
    "integrity": lambda failures, config: cla(failures.verdicts),
    "random": lambda failures, config: jax.random.uniform(failures.key, (failures.rollout.mask.shape[0],)),
}


def select_score(
    rollout: Rollout, verdicts: Verdicts, step: Int[Array, ""] | int, key: Key[Array, ""], config, horizon: int
) -> Float32[Array, " B"]:
    """F(y) of each response by `config.strategy`. `config` is the `replay` group; `step` is s, 1 at the first update, of
    `horizon`."""
    return STRATEGIES[config.strategy](Failures(rollout, verdicts, step, horizon, key), config)


@partial(jax.jit, static_argnames=("scope", "places", "prompts"))
def choose(
    scores: Float32[Array, " B"],
    candidate: Bool[Array, " B"],
    group: Int[Array, " B"],
    budget: Int[Array, ""] | int,
    *,
    scope: str,
    places: int,
    prompts: int,
) -> Replays:
    """The `budget` candidates to replay, best first; ties go to the lower row.

    group: the prompt of each row; budget: at most `places`.
    Scopes: "batch", the best of the whole batch; "group", the best budget // prompts of each prompt; "even",
    water-filling: every prompt's best, then every prompt's second best, ... (lower prompts first) until it is spent.
    """
    rows = scores.shape[0]
    ranked = jnp.lexsort((-scores, ~candidate))  # stable: candidates first, best first
    eligible, owner = candidate[ranked], group[ranked]
    better = jnp.tril((owner[:, None] == owner[None, :]) & eligible[None, :], -1).sum(-1)  # in the same prompt
    if scope == "group":
        eligible &= better < budget // prompts
    elif scope == "even":
        turns = jnp.lexsort((owner, better, ~eligible))
        eligible &= jnp.zeros(rows, jnp.int32).at[turns].set(jnp.arange(rows, dtype=jnp.int32)) < budget
    taken = jnp.argsort(~eligible, stable=True)[:places]
    row = ranked[taken].astype(jnp.int32)
    return Replays(row, scores[row], eligible[taken] & (jnp.arange(taken.shape[0]) < budget))


def candidates(rollout: Rollout, verdicts: Verdicts, config, *, mask_truncated: bool) -> Bool[Array, " B"]:
    """Which failures may be replayed: those that meet a share `config.min_integrity` of their constraints and
    `config.min_kept` of them at least; with `mask_truncated`, or without `config.truncated`, only those that ended."""
    filled = rollout.filled & rollout.ended if mask_truncated or not config.truncated else rollout.filled
    kept = (verdicts.satisfied & verdicts.present).sum(-1)
    return replayable(verdicts, filled) & (cla(verdicts) >= config.min_integrity) & (kept >= config.min_kept)


def select(
    rollout: Rollout,
    verdicts: Verdicts,
    step: Int[Array, ""] | int,
    key: Key[Array, ""],
    config,
    *,
    rounds: Int[Array, ""] | int,
    slots: int,
    horizon: int,
    mask_truncated: bool,
) -> Replays:
    """(k - rounds) * N failures of N * slots rows with the largest F(y) for the update after `step`, k * N places."""
    prompts = rollout.filled.shape[0] // slots
    return choose(
        select_score(rollout, verdicts, step + 1, key, config, horizon),
        candidates(rollout, verdicts, config, mask_truncated=mask_truncated),
        jnp.arange(rollout.filled.shape[0]) // slots,
        (config.k - rounds) * prompts,
        scope=config.scope,
        places=config.k * prompts,
        prompts=prompts,
    )


def rewards(
    rollout: Rollout, verdicts: Verdicts, *, fractional: bool, successes_only: bool, mask_truncated: bool
) -> tuple[Float32[Array, " B"], Float32[Array, " B"]]:
    """Reward of each original sample, R(q, y), and its weight: ILA(q, y) (ilr, hir, rft) or, `fractional`,
    CLA(q, y) (clr, hir_clr). A replay has R(q', y) = 1 with either, for it meets all that q' asks for (see `relabel`).

    The weight is 0 where the reward is undecided (ILA: see `ila`; CLA: any verdict is unknown), and with `successes_only`
    (rejection sampling) wherever the reward is not 1.
    """
    if fractional:
        reward, decided = cla(verdicts), (verdicts.known | ~verdicts.present).all(-1)
    else:
        reward, decided = ila(verdicts)
    usable = rollout.filled & decided
    if mask_truncated:
        usable &= rollout.ended
    if successes_only:
        usable &= reward == 1
    return reward.astype(jnp.float32), usable.astype(jnp.float32)


def missing_rounds(candidates: int, prompts: int, k: int) -> int:
    """e = ceil((k*N - R) / N): further samples of each prompt with `fill="resample"`, when only R failures can be replayed."""
    return max(0, -((candidates - k * prompts) // prompts))
