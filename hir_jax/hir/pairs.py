"""Preference pairs out of a step's samples, for DPO: two responses to one instruction, or two instructions of one response.

Pure functions of arrays. N prompts with S slots each, B = N * S rows, hence B / 2 pairs at most.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from hir_jax.hir.relabel import assemble
from hir_jax.hir.select import ila
from hir_jax.types import Array, PromptBatch, Replays, Rollout, TrainBatch, Verdicts

PAIRS = ("response", "instruction", "both")


class Pairs(NamedTuple):
    """At the instruction level both rows are the same, and the chosen one's prompt is rewritten."""

    chosen: Array  # i32[K]: row of the rollout
    rejected: Array  # i32[K]
    rewritten: Array  # bool[K]
    valid: Array  # bool[K]


def choose_pairs(
    rollout: Rollout,
    verdicts: Verdicts,
    replays: Replays,
    level: str,
    *,
    samples: int,
    mask_truncated: bool,
    mini_batches: int = 1,
) -> Pairs:
    """B / 2 pairs of `level`. "instruction": each replay (q', y) before (q, y); "response": of each prompt's samples the i-th
    that meets all constraints before the i-th that is known not to; "both": the former, and with the places left the latter.
    They are dealt out to `mini_batches` equal parts in turns, the valid ones first."""
    rows = rollout.filled.shape[0]
    reward, decided = ila(verdicts)
    usable = rollout.filled & decided & (rollout.ended if mask_truncated else True)

    def ranked(wanted):
        """Each prompt's wanted samples first, i32[N, S], and how many there are, i32[N, 1]."""
        wanted = rearrange(wanted, "(n s) -> n s", s=samples)
        first = jnp.arange(0, rows, samples)[:, None]
        return first + jnp.argsort(~wanted, axis=1, stable=True), wanted.sum(-1, keepdims=True)

    better, successes = ranked(usable & (reward == 1))
    worse, failures = ranked(usable & (reward == 0))
    width = samples // 2
    enough = jnp.arange(width) < jnp.minimum(successes, failures)
    response = Pairs(better[:, :width], worse[:, :width], jnp.zeros_like(enough), enough)
    response = jax.tree.map(jnp.ravel, response)
    instruction = Pairs(replays.row, replays.row, jnp.ones_like(replays.valid), replays.valid)
    parts = {"response": [response], "instruction": [instruction], "both": [instruction, response]}[level]
    found = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    order = jnp.argsort(~found.valid, stable=True)[: rows // 2]
    found = jax.tree.map(lambda x: x[order], found)
    lacking = rows // 2 - found.valid.shape[0]
    found = jax.tree.map(lambda x: jnp.pad(x, (0, lacking)), found)
    return jax.tree.map(lambda x: rearrange(x, "(pair part) -> (part pair)", part=mini_batches), found)


def pair_batch(
    prompts: PromptBatch, rollout: Rollout, verdicts: Verdicts, pairs: Pairs, *, samples: int, pad_id: int
) -> TrainBatch:
    """B rows, the chosen one of pair j in row 2j and the rejected one behind it; reference log-probs are still 0. Pairs that are
    not valid have weight 0."""

    def both(chosen, rejected):
        return rearrange([chosen, rejected], "two pair -> (pair two)")

    row = both(pairs.chosen, pairs.rejected)
    rewritten = both(pairs.rewritten, jnp.zeros_like(pairs.rewritten))
    valid = both(pairs.valid, pairs.valid)
    group = row // samples
    columns = prompts.tokens.shape[1]
    tokens, length = assemble(jax.tree.map(lambda x: x[group], prompts.parts), verdicts.satisfied[row], columns, pad_id)
    mask = rollout.mask[row] & valid[:, None]
    zeros = jnp.zeros(mask.shape, jnp.float32)
    return TrainBatch(
        tokens=jnp.concatenate(
            [jnp.where(rewritten[:, None], tokens, prompts.tokens[group]), rollout.tokens[row]], axis=1
        ),
        prompt_length=jnp.where(rewritten, length, prompts.length[group]),
        response_mask=mask,
        behaviour_logp=jnp.where(mask, rollout.sampler_logp[row], 0.0),
        ref_logp=zeros,
        importance=jnp.ones_like(zeros),
        reward=jnp.tile(jnp.array([1.0, 0.0]), pairs.valid.shape[0]),
        weight=valid.astype(jnp.float32),
        group=group,
        is_replay=rewritten,
    )
