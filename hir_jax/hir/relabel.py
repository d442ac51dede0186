"""Rewriting prompts on device: the hindsight instruction q' as a gather over tokens tokenised by roles."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Bool, Float32, Int, Int32

from hir_jax.types import Array, PromptParts, Replays, Rollout, TrainBatch, Verdicts


def assemble(
    parts: PromptParts, keep: Bool[Array, "B C"], columns: int, pad_id: int
) -> tuple[Int32[Array, "B {columns}"], Int32[Array, " B"]]:
    """Prompts that hold the kept constraints, right-aligned, and their lengths.

    parts: of the B rows' prompts (leading axis B). Equals tokenising the rewritten instruction rendered
    with the row's template, provided it fits (`Encoded.longest <= columns`, checked when data is loaded).
    """
    rows, _, _, width = parts.segments.shape
    keep = keep & parts.present
    ordinal = jnp.cumsum(keep, -1) - 1
    is_last = ordinal == keep.sum(-1, keepdims=True) - 1
    role = 2 * jnp.clip(ordinal, 0, parts.ordinals[:, None] - 1) + is_last
    pick = role[:, :, None, None]
    segment = jnp.take_along_axis(parts.segments, pick, axis=2)[:, :, 0]  # i32[B, C, S]
    length = jnp.take_along_axis(parts.segment_length, pick[..., 0], axis=2)[:, :, 0] * keep
    used = jnp.concatenate(
        [
            jnp.arange(parts.head.shape[1]) < parts.head_length[:, None],
            rearrange(jnp.arange(width) < length[..., None], "b c s -> b (c s)"),
            jnp.arange(parts.tail.shape[1]) < parts.tail_length[:, None],
        ],
        axis=1,
    )
    source = jnp.concatenate([parts.head, rearrange(segment, "b c s -> b (c s)"), parts.tail], axis=1)
    total = used.sum(-1)
    target = jnp.where(used, jnp.cumsum(used, -1) - 1 + columns - total[:, None], columns)  # unused: dropped
    empty = jnp.full((rows, columns), pad_id, source.dtype)
    tokens = jax.vmap(lambda out, at, values: out.at[at].set(values, mode="drop"))(empty, target, source)
    return tokens, total.astype(jnp.int32)


def dealt(count: Int[Array, ""] | int, rows: int, parts: int) -> Int32[Array, " places"]:
    """An order of `rows` places, the first `count` of which are filled: each of the `parts` equal parts gets its share
    of the filled ones, in their order, and behind them its share of the empty ones. The shares differ by one at most; where
    all places are filled, nothing changes its place."""
    place = jnp.arange(rows, dtype=jnp.int32)
    part, within = place // (rows // parts), place % (rows // parts)
    share = count // parts + (part < count % parts)
    before = part * (count // parts) + jnp.minimum(part, count % parts)  # filled places in the parts before
    empty = count + part * (rows // parts) - before + within - share
    return jnp.where(within < share, before + within, empty)


def relabel(
    prompts: Int[Array, "N P"],
    prompt_length: Int[Array, " N"],
    parts: PromptParts,
    rollout: Rollout,
    ref_logp: Float32[Array, "B R"],
    importance: Float32[Array, "B R"],
    reward: Float32[Array, " B"],
    weight: Float32[Array, " B"],
    verdicts: Verdicts,
    replays: Replays,
    *,
    samples: int,
    pad_id: int,
    mini_batches: int = 1,
) -> TrainBatch:
    """Originals and replays as one TrainBatch of B rows, each replay (q', y) behind its source row.

    B = N * samples slots, slot b of prompt b // samples; replays: K places. Slots without a sample and replays that are not
    valid leave places at weight 0, which are dealt out evenly to the `mini_batches` equal parts, at the end of each (see
    `dealt`). A replay keeps the response tokens and the log-probs of its source; its reward is R(q', y) = 1, beside the
    source's R(q, y) = ILA (hir) or CLA (hir_clr) (see `select.rewards`).
    """
    slots = rollout.mask.shape[0]
    group = jnp.arange(slots) // samples
    row = replays.row
    rewritten, rewritten_length = assemble(
        jax.tree.map(lambda x: x[group[row]], parts), verdicts.satisfied[row], prompts.shape[1], pad_id
    )
    source = jnp.concatenate([jnp.arange(slots), row])
    is_replay = jnp.arange(slots + row.shape[0]) >= slots
    present = jnp.concatenate([rollout.filled, replays.valid])
    order = jnp.lexsort((is_replay, source, ~present))[:slots][dealt(present.sum(), slots, mini_batches)]
    source, is_replay, present = source[order], is_replay[order], present[order]

    def both(original, replay):
        return jnp.concatenate([original, replay])[order]

    mask = rollout.mask[source] & present[:, None]
    return TrainBatch(
        tokens=jnp.concatenate([both(prompts[group], rewritten), rollout.tokens[source]], axis=1),
        prompt_length=both(prompt_length[group], rewritten_length),
        response_mask=mask,
        behaviour_logp=jnp.where(mask, rollout.sampler_logp[source], 0.0),
        ref_logp=jnp.where(mask, ref_logp[source], 0.0),
        importance=importance[source],
        reward=jnp.where(is_replay, 1.0, reward[source]),
        weight=jnp.where(present, jnp.where(is_replay, 1.0, weight[source]), 0.0),
        group=group[source],
        is_replay=is_replay,
    )
