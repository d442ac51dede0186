"""A buffer of successes: rows of earlier steps that met every constraint of their own instruction are trained on again.

The rival of replay that leaves instructions as they are. With rows = M > 0 a step samples m responses a prompt, trains on up to
k * N buffered rows beside them, and then puts its own successes into the buffer. A token of a buffered row has the weight
min(pi_now(y_t | q) / pi_old(y_t | q), cap), with pi_old the policy of the step that sampled it (see `step.train_again`).

Pure functions of arrays. M rows of the buffer, K places for buffered rows, B rows of the batch, P prompt tokens (all that
`data.max_prompt` allows), R response tokens; batches of a smaller prompt bucket have fewer prompt columns.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int

from hir_jax.types import Array, Buffer, TrainBatch


def empty(rows: int, prompt: int, response: int) -> Buffer:
    """A buffer of `rows` empty places, M, for rows of P = `prompt` and R = `response` columns."""
    logp = jnp.zeros((rows, response), jnp.float32)
    return Buffer(
        tokens=jnp.zeros((rows, prompt + response), jnp.int32), prompt_length=jnp.zeros(rows, jnp.int32),
        response_mask=jnp.zeros((rows, response), bool), behaviour_logp=logp, ref_logp=jnp.zeros_like(logp),
        born=jnp.full(rows, -1, jnp.int32),
    )  # fmt: skip


def _put(old, target: Int[Array, " K"], new):
    """Trees of rows, with the K rows of `new` at `target`; rows past the end are dropped."""
    return jax.tree.map(lambda x, y: jnp.asarray(x).at[target].set(y, mode="drop"), old, new)


def without_old(buffer: Buffer, step: Int[Array, ""] | int, max_age: int) -> Buffer:
    """The buffer without the rows that are older than `max_age` steps at `step`."""
    return buffer._replace(born=jnp.where(step - buffer.born > max_age, -1, buffer.born))


def vacant(batch: TrainBatch) -> Bool[Array, " B"]:
    """Places of a batch that hold no sample."""
    return ~batch.response_mask.any(-1)


def youngest(buffer: Buffer, columns: int, places: int, most: Int[Array, ""] | int) -> Buffer:
    """The at most `most` youngest rows with a prompt of up to `columns` tokens, ties by place, and their prompts cut to so many
    columns. K = min(places, M) places, those of the rows first; the others are empty."""
    fits = (buffer.born >= 0) & (buffer.prompt_length <= columns)
    order = jnp.lexsort((-buffer.born, ~fits))[:places]
    taken = fits[order] & (jnp.arange(order.shape[0]) < most)
    cut = buffer.tokens.shape[1] - buffer.response_mask.shape[1] - columns
    rows = jax.tree.map(lambda x: x[order], buffer._replace(tokens=buffer.tokens[:, cut:]))
    return rows._replace(
        prompt_length=jnp.maximum(rows.prompt_length, 1),  # of empty places too
        response_mask=rows.response_mask & taken[:, None],
        born=jnp.where(taken, rows.born, -1),
    )


def join(
    batch: TrainBatch, rows: Buffer, now: Float32[Array, "K R"], importance: Float32[Array, "K R"], *, mini_batches: int
) -> TrainBatch:
    """The batch with `rows` of the buffer in vacant places, dealt out evenly to the `mini_batches` equal parts.

    now: log-probs under the present policy, which become behaviour_logp, so that PPO's ratio starts at 1. The reward is
    R(q, y) = 1, the weight 1. A buffered row is no sample of this step, so `is_replay` is True: it is not among the rows
    of `learner.baseline` = "originals" nor in the metrics of originals. Its prompt has no other row in the batch, so its group
    is one of its own, behind those of the prompts.
    """
    count = batch.weight.shape[0]
    place = jnp.arange(count)
    size = count // mini_batches  # vacant places are at the end of each part
    target = jnp.lexsort((place // size, place % size, ~vacant(batch)))[: rows.born.shape[0]]
    target = jnp.where(rows.born >= 0, target, count)  # dropped
    ones = jnp.ones(rows.born.shape, jnp.float32)
    new = TrainBatch(
        tokens=rows.tokens, prompt_length=rows.prompt_length, response_mask=rows.response_mask,
        behaviour_logp=now, ref_logp=rows.ref_logp, importance=importance, reward=ones, weight=ones,
        group=batch.group.max() + 1 + jnp.arange(rows.born.shape[0]), is_replay=jnp.ones(rows.born.shape, bool),
    )  # fmt: skip
    return _put(batch, target, new)


def rows_of(batch: TrainBatch, prompt: int, step: Int[Array, ""] | int) -> Buffer:
    """All rows of a batch in the form of a buffer with P = `prompt`; tokens outside of prompt and response are 0.

    pi_old is that of the batch, divided by the weight that already corrects it (pi_old / pi_sampler), so that the weight of a
    token goes on from the one it had.
    """
    response = batch.response_mask.shape[1]
    tokens = jnp.pad(batch.tokens, ((0, 0), (prompt + response - batch.tokens.shape[1], 0)))
    in_prompt = jnp.arange(prompt) >= prompt - batch.prompt_length[:, None]
    return Buffer(
        tokens=jnp.where(jnp.concatenate([in_prompt, batch.response_mask], axis=1), tokens, 0),
        prompt_length=batch.prompt_length,
        response_mask=batch.response_mask,
        behaviour_logp=jnp.where(batch.response_mask, batch.behaviour_logp - jnp.log(batch.importance), 0.0),
        ref_logp=batch.ref_logp,
        born=jnp.broadcast_to(jnp.asarray(step, jnp.int32), batch.weight.shape),
    )


def add(buffer: Buffer, batch: TrainBatch, step: Int[Array, ""] | int) -> Buffer:
    """The buffer after `step`: the successes among the step's own samples take empty places, then those of the oldest rows (ties
    by place), in their order; if there are more than M, the first M are added.

    batch: before any buffered row has joined it. A success is a sample of weight above 0 and reward 1: decided, ILA and CLA 1,
    and ended if `learner.mask_truncated` asks for that. One with the same prompt and response tokens as a row that is in the
    buffer, or as an earlier success of the step, is not added.
    """
    places, response = buffer.response_mask.shape
    new = rows_of(batch, buffer.tokens.shape[1] - response, step)
    success = (batch.weight > 0) & (batch.reward == 1) & ~batch.is_replay
    before = jax.tree.map(lambda *x: jnp.concatenate(x), buffer, new)

    def like(row: Buffer) -> Array:
        equal = (row.tokens == before.tokens).all(-1) & (row.response_mask == before.response_mask).all(-1)
        return equal & (row.prompt_length == before.prompt_length)

    same = jax.lax.map(like, new)  # bool[B, M + B]; a row at a time, for XLA would hold all pairs of their columns
    earlier = jnp.arange(before.born.shape[0]) < places + jnp.arange(success.shape[0])[:, None]
    fresh = success & ~(same & earlier & jnp.concatenate([buffer.born >= 0, success])).any(-1)
    rank = jnp.cumsum(fresh) - 1
    oldest = jnp.argsort(buffer.born, stable=True)
    target = jnp.where(fresh & (rank < places), oldest[jnp.clip(rank, 0, places - 1)], places)
    return _put(buffer, target, new)
