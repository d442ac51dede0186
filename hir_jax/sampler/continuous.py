"""Continuous batching in one compiled loop: a row that ends leaves its slot to the next waiting row.

`sample` decodes all rows until the longest has ended; here a fixed number of slots is kept busy, so that few long rows do
not make the others wait. A row's noise depends on its id and position alone, so it gets the same tokens as from `sample`.

Prompts are prefilled once, before the loop, and their first tokens drawn there: a row that ends at once takes no slot.
A slot holds a copy of its prompt's keys and values, made when a row moves in, and its response's in a ring of R - 1 columns.
At each step all slots write the same column, wherever in their responses they are: rotary positions are in the keys, so a
column's place means nothing, and one dynamic_update_slice, in place, serves all rows in an unchanged
`decoding.decode_step`. The cache is N * P + slots * (P + R - 1) columns, not N * P + B * R.

On several devices each has its own queue: its share of the prompts, rows and slots, so that no cache travels.

Letters: N prompts, S samples of each, B = N * S rows, P prompt columns, R the longest response, T steps of the loop;
D queues, each with n = N / D prompts, b = B / D rows and g slots.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Int, Key

from hir_jax.model import decoder, decoding
from hir_jax.model.config import ModelConfig
from hir_jax.sampler.sample import Sampling, draw, row_keys
from hir_jax.types import Array, InputError, Rollout


class Share(NamedTuple):
    """The keys and values that one device has to hold."""

    prompts: int  # whose rows it decodes
    columns: int  # P, of each
    samples: int  # rows a prompt
    response: int  # columns of a row's response where there are no slots
    ring: int  # and of a slot's
    token_bytes: int  # of one column of a row, all layers, this device's heads


def slots_within(cache_bytes: int, share: Share) -> int:
    """Slots of a device whose keys and values, with those of its prompts, take at most `cache_bytes`; 0 where all rows fit
    without slots. InputError where not even one slot does."""
    columns = cache_bytes // share.token_bytes
    rows = share.prompts * share.samples
    prompts, slot = share.prompts * share.columns, share.columns + share.ring
    if prompts + rows * share.response <= columns:
        return 0
    slots = (columns - prompts) // slot
    if slots < 1:
        raise InputError(
            f"config.rollout.cache_bytes = {cache_bytes}: the keys and values of {share.prompts} prompts of {share.columns} "
            f"tokens and one slot take {(prompts + slot) * share.token_bytes} bytes on a device: give as many, or share the rows "
            "among more devices (config.mesh, config.rollout.tensor)"
        )
    return min(slots, rows)


def ring_columns(longest: int) -> int:
    """Columns of a slot for its response of up to `longest` tokens, of which the last is never read."""
    return max(longest - 1, 1)


class Usage(NamedTuple):
    """How well the slots were used: busy / (slots * steps) is the share of them that held a row."""

    slots: Array  # i32[]: those there were, not more than rows
    steps: Array  # i32[]: of the decoding loop
    busy: Array  # i32[]: slots that held a row, summed over the steps


def decode_steps(lengths: np.ndarray, slots: int) -> int:
    """Steps of the loop for rows of `lengths` tokens, i32[D, b], in D queues with `slots` slots together: a row takes one step
    less than it has tokens, and the next one that waits moves in where one ends. With a slot for every row, the plain loop's."""
    last = 0
    for queue in lengths:
        free = [0] * max(1, slots // len(lengths))  # steps at which each slot is idle again
        for steps in queue[queue > 1] - 1:
            heapq.heapreplace(free, free[0] + int(steps))
        last = max(last, *free)
    return last


class _Slots(NamedTuple):
    row: Array  # i32[D, g]: which of its queue's rows the slot holds; b when it is idle
    count: Array  # i32[D, g]: tokens of that row so far
    token: Array  # i32[D, g]: the last of them


class _Queue(NamedTuple):
    """Rows in order of their turn. A slot's column of the log, from the step on at which a row moved in, is the row's."""

    taken: Array  # i32[D]: how many of the waiting rows have had their turn
    place: Array  # i32[D, b]: step * g + slot at which a row moved in


class _First(NamedTuple):
    """All rows before the loop: their prompts, first tokens, and the order in which they get slots."""

    prompts: decoding.Cache  # per layer (k, v), each dtype[N, Hkv, P, Dh]
    length: Array  # i32[D, n]: of the prompts
    token: Array  # i32[D, b]: the first one of each row, with its log-prob and entropy
    logp: Array  # f32[D, b]
    entropy: Array  # f32[D, b]
    keys: Array  # key[D, b]
    limits: Array  # i32[D, b]: most tokens of each row
    order: Array  # i32[D, b]: rows, those that go on first
    waiting: Array  # i32[D]: how many go on


def _prefill(model: ModelConfig, params, prompts: Array, length: Array, queues: int, slots: int, shard: decoder.Shard):
    """`decoding.prefill` of N prompts, at most about `slots` (and at least one a queue) at a time."""
    count, columns = prompts.shape
    each = count // queues
    most = max(1, slots // queues)
    chunks = next(k for k in range(1, each + 1) if each % k == 0 and each // k <= most)

    def one(part):
        tokens, length = part
        positions = jnp.arange(columns) - (columns - length[:, None])
        return decoding.prefill(model, params, tokens, jnp.maximum(positions, 0), positions >= 0, shard)

    if chunks == 1:
        return one((prompts, length))

    def split(x):  # chunk c has the c-th part of every queue's prompts
        return rearrange(x, "(queue chunk n) ... -> chunk (queue n) ...", queue=queues, chunk=chunks)

    def join(x):
        return rearrange(x, "chunk (queue n) ... -> (queue chunk n) ...", queue=queues)

    return jax.tree.map(join, jax.lax.map(one, jax.tree.map(split, (prompts, length))))


def _first(
    model: ModelConfig, params, prompts, length, rows, limits, key, settings: Sampling, queues: int, slots: int, shard
) -> _First:
    hidden, cache = _prefill(model, params, prompts, length, queues, slots, shard)
    logits = shard(decoder.logits(model, params, hidden), ("batch", "vocab"))
    keys = row_keys(key, rows.ravel()).reshape(rows.shape)
    drawn = jax.lax.map(lambda keys: draw(logits, keys, 0, settings), keys.T)
    token, logp, entropy = (x.T.reshape(queues, -1) for x in drawn)
    limits = limits.reshape(queues, -1)
    over = (token[..., None] == jnp.asarray(settings.stop_ids, jnp.int32)).any(-1) | (limits <= 1)
    return _First(
        cache, length.reshape(queues, -1), token, logp, entropy, keys.reshape(queues, -1), limits,
        order=jnp.argsort(over, axis=-1, stable=True), waiting=(~over).sum(-1),
    )  # fmt: skip


@jax.vmap
def _pick(values: Array, index: Array) -> Array:
    """values[d, index[d, j]]; the last one of a queue for an index past its end."""
    return values.at[index].get(mode="clip")


def _refill(first: _First, step: Array, slots: _Slots, queue: _Queue, prompts: decoding.Cache):
    """Moves waiting rows and their prompts' keys and values into idle slots, one slot of every queue at a time; a queue
    without an idle slot or a waiting row moves nothing."""
    queues, g = slots.row.shape
    b = first.order.shape[1]

    def idle(slots):
        return slots.row == b

    def possible(slots, queue):
        return idle(slots).any(-1) & (queue.taken < first.waiting)

    def move(carry):
        slots, queue, held = carry
        moves = possible(slots, queue)
        row = _pick(first.order, queue.taken[:, None])
        slot = jnp.where(moves, idle(slots).argmax(-1), g)  # g and b are past the end: nothing is written there
        prompt = row[:, 0] // (b // first.length.shape[1])
        here = jnp.arange(g) == slot[:, None]
        slots = _Slots(
            jnp.where(here, row, slots.row),
            jnp.where(here, 1, slots.count),
            jnp.where(here, _pick(first.token, row), slots.token),
        )
        owner = jnp.arange(b) == jnp.where(moves[:, None], row, b)
        queue = _Queue(queue.taken + moves, jnp.where(owner, step * g + slot[:, None], queue.place))

        def copy(held, prompts):
            prompts, by_queue = (rearrange(x, "(queue n) ... -> queue n ...", queue=queues) for x in (prompts, held))
            piece = _pick(prompts, prompt)
            moved = jax.vmap(lambda h, s, p: h.at[s].set(p, mode="drop"))(by_queue, slot, piece)
            return rearrange(moved, "queue g ... -> (queue g) ...")

        return slots, queue, jax.tree.map(copy, held, first.prompts)

    def more(carry):
        return possible(*carry[:2]).any()

    return jax.lax.while_loop(more, move, (slots, queue, prompts))


def _decode(
    model: ModelConfig,
    params,
    first: _First,
    settings: Sampling,
    shard: decoder.Shard,
    step: Array,
    slots: _Slots,
    prompts: decoding.Cache,
    cache: decoding.Cache,
):
    """The next token of every slot, its log-prob and the entropy, each [D * g], and the ring with this step's column."""
    ring = cache[0][0].shape[2]
    count = slots.count.reshape(-1)
    length = _pick(first.length, slots.row // (first.order.shape[1] // first.length.shape[1])).reshape(-1)
    hidden, cache = decoding.decode_step(
        model, params, slots.token.reshape(-1), length + count - 1, step % ring, prompts, length, cache, count, shard
    )
    logits = shard(decoder.logits(model, params, hidden), ("batch", "vocab"))
    keys = _pick(first.keys, slots.row).reshape(-1)
    # draw takes one position for all its rows, and these differ
    drawn = jax.vmap(lambda x, k, t: draw(x[None], k[None], t, settings))(logits, keys, count)
    return tuple(x[:, 0] for x in drawn), cache


def _gather(first: _First, queue: _Queue, log: tuple[Array, ...], settings: Sampling) -> Rollout:
    """The Rollout, from the first tokens and the log: per array [T, D * g], one row of it a step of the loop."""
    queues, b = first.token.shape
    later = jnp.arange(settings.max_response - 1)

    def whole(first_column, logged):
        flat = rearrange(logged, "step (queue g) -> queue (step g)", queue=queues)
        index = queue.place[..., None] + later * (logged.shape[1] // queues)
        columns = rearrange(_pick(flat, index.reshape(queues, -1)), "queue (b t) -> queue b t", b=b)
        return rearrange(jnp.concatenate([first_column[..., None], columns], axis=-1), "queue b t -> (queue b) t")

    tokens, logp, entropy = map(whole, (first.token, first.logp, first.entropy), log)
    stop = (tokens[..., None] == jnp.asarray(settings.stop_ids, jnp.int32)).any(-1)
    before = jnp.cumsum(stop, axis=-1) - stop
    limits = first.limits.reshape(-1)
    mask = (before == 0) & (jnp.arange(settings.max_response) < limits[:, None])
    return Rollout(
        jnp.where(mask, tokens, settings.pad_id), mask, jnp.where(mask, logp, 0.0), jnp.where(mask, entropy, 0.0),
        ended=(stop & mask).any(-1), filled=limits > 0,
    )  # fmt: skip


def sample_continuous(
    params: decoder.Params,
    prompts: Int[Array, "N P"],
    length: Int[Array, " N"],
    rows: Int[Array, "N S"],
    key: Key[Array, ""],
    limits: Int[Array, "N S"] | None = None,
    *,
    model: ModelConfig,
    settings: Sampling,
    slots: int,
    queues: int = 1,
    shard: decoder.Shard = decoder.no_shard,
) -> tuple[Rollout, Usage]:
    """What `sample` returns for these arguments, by at most `slots` rows at a time, and how well the slots were used.

    limits: the most tokens of each row, at most settings.max_response (the default); a row of 0 is not filled.
    queues: the devices that share the rows (`parallel.mesh.row_devices`); it must divide N and `slots`.
    """
    count, columns = prompts.shape
    longest, b = settings.max_response, rows.size // queues
    if count % queues or slots % queues or slots < 1:
        raise ValueError(f"{queues} queues (devices that share rows) must divide {count} prompts and {slots} slots")
    g = min(slots // queues, b)
    params = jax.tree.map(lambda x: x.astype(model.compute_dtype), params)
    limits = jnp.full(rows.shape, longest, jnp.int32) if limits is None else limits
    first = _first(model, params, prompts, length, rows, limits, key, settings, queues, slots, shard)
    unstacked = decoding.unstack_layers(model, params)
    stops = jnp.asarray(settings.stop_ids, jnp.int32)
    ring = ring_columns(longest)
    last_start = (b - 1) * (longest - 1) // g  # no later: until then all other rows keep all slots busy

    def running(state):
        return (state[1].row < b).any()

    def advance(state):
        step, slots, queue, held, cache, log, busy = state
        drawn, cache = _decode(model, unstacked, first, settings, shard, step, slots, held, cache)
        log = tuple(jax.lax.dynamic_update_slice(x, d[None], (step, 0)) for x, d in zip(log, drawn, strict=True))
        token, count = drawn[0].reshape(queues, g), slots.count + 1
        over = (token[..., None] == stops).any(-1) | (count >= _pick(first.limits, slots.row))
        busy = busy + (slots.row < b).sum()
        slots = _Slots(jnp.where(over, b, slots.row), count, token)
        slots, queue, held = _refill(first, step + 1, slots, queue, held)
        return step + 1, slots, queue, held, cache, log, busy

    def empty(width):
        spec = ("batch", "kv_heads", None, None)
        return jax.tree.map(lambda x: shard(x, spec), decoding.empty_cache(model, queues * g, width))

    idle = _Slots(*(jnp.full((queues, g), value, jnp.int32) for value in (b, 0, settings.pad_id)))
    queue = _Queue(jnp.zeros(queues, jnp.int32), jnp.zeros((queues, b), jnp.int32))
    start = *_refill(first, jnp.int32(0), idle, queue, empty(columns)), empty(ring)
    log = tuple(jnp.zeros((last_start + ring, queues * g), dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32))
    steps, _, queue, *_, log, busy = jax.lax.while_loop(running, advance, (jnp.int32(0), *start, log, jnp.int32(0)))
    usage = Usage(jnp.int32(queues * g), steps, busy)
    return _gather(first, queue, log, settings), usage
