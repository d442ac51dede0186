"""Sampling: one prefill per prompt, its cache expanded to the samples, decoding in a while_loop until all rows have ended."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from hir_jax.models import decoder
from hir_jax.models.config import ModelConfig
from hir_jax.rollout.noise import exponentials
from hir_jax.types import Array, Rollout

MASKED = -1e30


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; hashable, a static argument of `sample`.

    temperature 0 is greedy. top_k = 0 and top_p = 1 are off. `policy_temperature` is that of the log-probs and entropies
    returned (the trainer's), which are over the full vocabulary whatever is drawn from.
    """

    max_response: int
    stop_ids: tuple[int, ...]
    pad_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    policy_temperature: float = 1.0


def row_keys(key: jax.Array, rows: Array) -> jax.Array:
    """One key per row id; with `key` from (seed, step), a row's noise is a function of (seed, step, row, position)."""
    return jax.vmap(partial(jax.random.fold_in, key))(rows)


def _restrict(logits: Array, settings: Sampling) -> Array:
    """Masks what top-k and top-p (nucleus: the smallest set of likeliest words whose mass reaches top_p) leave out."""
    if settings.top_k:
        kth = jax.lax.top_k(logits, min(settings.top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < kth, MASKED, logits)
    if settings.top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        mass = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
        last = (mass < settings.top_p).sum(-1, keepdims=True)  # index of the word that reaches the mass
        threshold = jnp.take_along_axis(ordered, jnp.minimum(last, logits.shape[-1] - 1), axis=-1)
        logits = jnp.where(logits < threshold, MASKED, logits)
    return logits


def _race(logits: Array, keys: jax.Array) -> Array:
    """One word per row from softmax(logits), i32[B]: the largest of weight / exponential, which is Gumbel-max without its
    two logarithms (exp of logit + Gumbel noise). Words less likely than e^-87 times the likeliest are never drawn."""
    words = logits.shape[-1]
    weight = jnp.exp(logits - logits.max(-1, keepdims=True))
    # the barrier keeps the noise from being computed once for each of the two reductions; both together are faster than
    # an argmax on CPU. A row of NaN, which nothing equals, gives the last word.
    race = jax.lax.optimization_barrier(weight / exponentials(keys, words))
    return jnp.where(race == race.max(-1, keepdims=True), jnp.arange(words), words - 1).min(-1)


def draw(logits: Array, keys: jax.Array, position: Array, settings: Sampling) -> tuple[Array, Array, Array]:
    """One token per row (see `_race`; the likeliest at temperature 0), with its log-prob and the policy's entropy (nats).

    logits: f32[B, V], untempered; keys: key[B]; position: i32[]. Returns i32[B], f32[B], f32[B].
    """
    policy = logits / settings.policy_temperature
    top = policy.max(-1, keepdims=True)
    weight = jnp.exp(policy - top)
    total = weight.sum(-1, keepdims=True)
    log_total = top + jnp.log(total)
    entropy = (log_total - (weight * policy).sum(-1, keepdims=True) / total)[:, 0]
    if settings.temperature == 0.0:
        token = logits.argmax(-1)
    else:
        at = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, position)
        token = _race(_restrict(logits / settings.temperature, settings), at)
    logp = jnp.take_along_axis(policy, token[:, None], axis=-1) - log_total
    return token.astype(jnp.int32), logp[:, 0], entropy


def sample(
    params: decoder.Params,
    prompts: Array,
    length: Array,
    rows: Array,
    key: jax.Array,
    *,
    model: ModelConfig,
    settings: Sampling,
    shard: decoder.Shard = decoder.no_shard,
) -> Rollout:
    """S responses to each of N prompts: a Rollout of B = N * S rows, row n * S + s being sample s of prompt n.

    prompts: i32[N, P], right-aligned; length: i32[N]; rows: i32[N, S], ids that choose each row's noise; params stacked.
    Log-probs and entropies are float32 and agree with the learner's (tested: 1e-4).
    """
    count, columns = prompts.shape
    samples, steps = rows.shape[1], settings.max_response
    params = jax.tree.map(lambda x: x.astype(model.compute_dtype), params)
    index = jnp.arange(columns)
    valid = index >= columns - length[:, None]
    positions = jnp.maximum(index - (columns - length[:, None]), 0)
    hidden, cache = decoder.prefill(model, params, prompts, positions, valid, shard)
    cache = decoder.expand_cache(cache, samples, steps)
    unstacked = decoder.unstack_layers(params)
    keys = row_keys(key, rows.reshape(-1))
    prompt_valid = jnp.pad(jnp.repeat(valid, samples, axis=0), ((0, 0), (0, steps)))
    prompt_length = jnp.repeat(length, samples, axis=0)
    stops = jnp.asarray(settings.stop_ids, jnp.int32)

    def emit(t, hidden, done, out):
        """Draws the t-th token of the response and writes it down for the rows that still run."""
        logits = shard(decoder.logits(model, unstacked, hidden), ("batch", "vocab"))
        token, logp, entropy = draw(logits, keys, t, settings)
        token = jnp.where(done, settings.pad_id, token)
        column = (token, ~done, jnp.where(done, 0.0, logp), jnp.where(done, 0.0, entropy))
        out = tuple(jax.lax.dynamic_update_slice(o, c[:, None], (0, t)) for o, c in zip(out, column, strict=True))
        return token, done | (token[:, None] == stops).any(-1), out

    def running(state):
        t, _, done, _, _ = state
        return (t < steps) & ~done.all()

    def advance(state):
        t, token, done, cache, out = state
        written = (jnp.arange(columns + steps) >= columns) & (jnp.arange(columns + steps) < columns + t)
        hidden, cache = decoder.decode_step(
            model, unstacked, token, prompt_length + t - 1, columns + t - 1, prompt_valid | written, cache, shard
        )
        token, done, out = emit(t, hidden, done, out)
        return t + 1, token, done, cache, out

    rows_total = count * samples
    out = (
        jnp.full((rows_total, steps), settings.pad_id, jnp.int32),
        jnp.zeros((rows_total, steps), bool),
        jnp.zeros((rows_total, steps), jnp.float32),
        jnp.zeros((rows_total, steps), jnp.float32),
    )
    token, done, out = emit(0, jnp.repeat(hidden, samples, axis=0), jnp.zeros(rows_total, bool), out)
    *_, done, _, out = jax.lax.while_loop(running, advance, (1, token, done, cache, out))
    tokens, mask, logp, entropy = out
    return Rollout(tokens, mask, logp, entropy, ended=done, filled=jnp.ones(rows_total, bool))
