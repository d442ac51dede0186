"""Sampling: one prefill per prompt, its cache shared by the samples, decoding in a while_loop until all rows have ended."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Float32, Int, Int32, Key

from hir_jax.model import decoder, decoding
from hir_jax.model.config import ModelConfig
from hir_jax.sampler.noise import exponentials
from hir_jax.types import Array, Rollout

MASKED = -1e30
INVERSE_BLOCK = 256  # words


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; hashable, a static argument of `sample`.

    temperature 0 is greedy. top_k = 0 and top_p = 1 are off. `policy_temperature` is the temperature of the returned log-probs
    and entropies (the trainer's), which are over the full vocabulary, whatever words may be drawn. `method`: gumbel (`_race`) or
    inverse_cdf (`_invert`). `widths`: response lengths at which the cache of `sample` grows, so that earlier steps read fewer
    columns. They change no token.
    """

    max_response: int
    stop_ids: tuple[int, ...]
    pad_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    policy_temperature: float = 1.0
    method: str = "gumbel"
    widths: tuple[int, ...] = ()

    @property
    def all_widths(self) -> tuple[int, ...]:
        """`widths` below max_response in order, and max_response."""
        return (*sorted(w for w in self.widths if w < self.max_response), self.max_response)


def row_keys(key: Key[Array, ""], rows: Int[Array, " B"]) -> Key[Array, " B"]:
    """One key for each row id; with `key` from (seed, step), a row's noise is a function of (seed, step, row, position)."""
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


def _race(logits: Array, keys: Array) -> Array:
    """One word per row from softmax(logits), i32[B]: the largest of weight / exponential, which is Gumbel-max without its
    two logarithms (exp of logit + Gumbel noise). Words less likely than e^-87 times the likeliest are never drawn."""
    words = logits.shape[-1]
    weight = jnp.exp(logits - logits.max(-1, keepdims=True))
    # the barrier keeps the noise from being computed once for each of the two reductions; both together are faster than
    # an argmax on CPU. A row of NaN, which nothing equals, gives the last word.
    race = jax.lax.optimization_barrier(weight / exponentials(keys, words))
    return jnp.where(race == race.max(-1, keepdims=True), jnp.arange(words), words - 1).min(-1)


def _invert(logits: Array, keys: Array) -> Array:
    """One word per row from softmax(logits), i32[B], by inverting its distribution function at one uniform number a row:
    fewer random numbers than `_race`, but a rounding difference flips a word far more often (about 2e-3 a token against
    3e-6), and on a mesh the sums run over a split vocabulary. First a block of words, then a word of it, so that there is
    no running sum over all V."""
    words = logits.shape[-1]
    weight = jnp.exp(logits - logits.max(-1, keepdims=True))
    padded = jnp.pad(weight, ((0, 0), (0, -words % INVERSE_BLOCK)))
    blocks = rearrange(padded, "b (block word) -> b block word", word=INVERSE_BLOCK)

    def find(mass, point):
        """The first index whose running sum exceeds `point`, which is kept below the whole; and the sum before it."""
        above = jnp.cumsum(mass, axis=-1)
        point = jnp.minimum(point, jnp.nextafter(above[:, -1:], jnp.float32(0)))
        index = (above <= point).sum(-1, keepdims=True)
        before = jnp.take_along_axis(above - mass, index, axis=-1)
        return index, jnp.maximum(point - before, 0.0)

    mass = blocks.sum(-1)
    uniform = jax.vmap(jax.random.uniform)(keys)[:, None]
    block, rest = find(mass, uniform * mass.sum(-1, keepdims=True))
    word, _ = find(jnp.take_along_axis(blocks, block[..., None], axis=1)[:, 0], rest)
    return jnp.minimum(block * INVERSE_BLOCK + word, words - 1)[:, 0]


DRAWS = {"gumbel": _race, "inverse_cdf": _invert}


def draw(
    logits: Float32[Array, "B V"], keys: Key[Array, " B"], position: Int[Array, ""] | int, settings: Sampling
) -> tuple[Int32[Array, " B"], Float32[Array, " B"], Float32[Array, " B"]]:
    """One token a row (see DRAWS; the likeliest at temperature 0), with its log-prob and the policy's entropy (nats). logits are
    not yet divided by the temperature."""
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
        token = DRAWS[settings.method](_restrict(logits / settings.temperature, settings), at)
    logp = jnp.take_along_axis(policy, token[:, None], axis=-1) - log_total
    return token.astype(jnp.int32), logp[:, 0], entropy


class Context(NamedTuple):
    """Everything that stays the same while a batch is decoded."""

    params: decoder.Params  # from `decoding.unstack_layers`
    prompts: decoding.Cache  # their keys and values
    length: Array  # i32[N]: of the prompts
    keys: Array  # key[B]


class Progress(NamedTuple):
    """How far a batch has been decoded."""

    t: Array  # i32[]: tokens of each response so far, counting those behind its end
    token: Array  # i32[B]: the last one
    done: Array  # bool[B]
    out: tuple[Array, ...]  # tokens, mask, log-prob, entropy of the Rollout, [B, R] each


def _emit(
    context: Context, progress: Progress, hidden: Array, model: ModelConfig, settings: Sampling, shard
) -> Progress:
    """Draws the t-th token of the responses and writes it down for the rows that still run."""
    t, _, done, out = progress
    logits = shard(decoder.logits(model, context.params, hidden), ("batch", "vocab"))
    token, logp, entropy = draw(logits, context.keys, t, settings)
    token = jnp.where(done, settings.pad_id, token)
    column = (token, ~done, jnp.where(done, 0.0, logp), jnp.where(done, 0.0, entropy))
    out = tuple(jax.lax.dynamic_update_slice(o, c[:, None], (0, t)) for o, c in zip(out, column, strict=True))
    stops = jnp.asarray(settings.stop_ids, jnp.int32)
    return Progress(t + 1, token, done | (token[:, None] == stops).any(-1), out)


def begin(
    params: decoder.Params,
    prompts: Int[Array, "N P"],
    length: Int[Array, " N"],
    rows: Int[Array, "N S"],
    key: Key[Array, ""],
    *,
    model: ModelConfig,
    settings: Sampling,
    shard: decoder.Shard = decoder.no_shard,
) -> tuple[Context, Progress, decoding.Cache]:
    """The first token of every response, and an empty cache of their own, for `advance`; arguments as for `sample`."""
    columns, samples, steps = prompts.shape[1], rows.shape[1], settings.max_response
    params = jax.tree.map(lambda x: x.astype(model.compute_dtype), params)
    start = columns - length[:, None]
    index = jnp.arange(columns)
    valid = index >= start
    hidden, cache = decoding.prefill(model, params, prompts, jnp.maximum(index - start, 0), valid, shard)
    context = Context(
        decoding.unstack_layers(model, params),
        cache,
        length,
        row_keys(key, rows.reshape(-1)),
    )
    empty = Progress(
        jnp.int32(0), jnp.full(rows.size, settings.pad_id, jnp.int32), jnp.zeros(rows.size, bool),
        (
            jnp.full((rows.size, steps), settings.pad_id, jnp.int32), jnp.zeros((rows.size, steps), bool),
            jnp.zeros((rows.size, steps), jnp.float32), jnp.zeros((rows.size, steps), jnp.float32),
        ),
    )  # fmt: skip
    progress = _emit(context, empty, repeat(hidden, "n d -> (n s) d", s=samples), model, settings, shard)
    return context, progress, decoding.empty_cache(model, rows.size, 0)


def advance(
    context: Context,
    progress: Progress,
    cache: decoding.Cache,
    *,
    width: int,
    model: ModelConfig,
    settings: Sampling,
    shard: decoder.Shard = decoder.no_shard,
) -> tuple[Progress, decoding.Cache]:
    """Decodes until every response has `width` tokens or all have ended, with a cache of as many columns."""
    spec = ("batch", "kv_heads", None, None)
    cache = jax.tree.map(lambda x: shard(x, spec), decoding.widen_cache(model, cache, width))

    def running(state):
        return (state[0].t < width) & ~state[0].done.all()

    def step(state):
        progress, cache = state
        t, token = progress.t, progress.token
        length = repeat(context.length, "n -> (n s)", s=token.size // context.length.size)
        hidden, cache = decoding.decode_step(
            model, context.params, token, length + t - 1, t - 1, context.prompts, context.length, cache,
            jnp.full_like(token, t), shard,
        )  # fmt: skip
        return _emit(context, progress, hidden, model, settings, shard), cache

    return jax.lax.while_loop(running, step, (progress, cache))


def finished(progress: Progress) -> Rollout:
    """The Rollout so far: complete in the rows that are done, and in all of them at the last width."""
    return Rollout(*progress.out, ended=progress.done, filled=jnp.ones_like(progress.done))


def sample(
    params: decoder.Params,
    prompts: Int[Array, "N P"],
    length: Int[Array, " N"],
    rows: Int[Array, "N S"],
    key: Key[Array, ""],
    *,
    model: ModelConfig,
    settings: Sampling,
    shard: decoder.Shard = decoder.no_shard,
) -> Rollout:
    """S responses to each of N prompts: a Rollout of B = N * S rows, row n * S + s being sample s of prompt n.

    prompts: right-aligned; rows: ids that choose each row's noise; params stacked.
    Log-probs and entropies are float32 and agree with the learner's (tested: 1e-4).
    """
    fixed = {"model": model, "settings": settings, "shard": shard}
    context, progress, cache = begin(params, prompts, length, rows, key, **fixed)
    for width in settings.all_widths:
        progress, cache = advance(context, progress, cache, width=width, **fixed)
    return finished(progress)
