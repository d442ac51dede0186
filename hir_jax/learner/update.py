"""The update: gradients of a TrainBatch in micro-batches, AdamW, skipping non-finite gradients."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Bool, Float32, Int

from hir_jax.learner import losses, packing
from hir_jax.learner.advantages import advantages
from hir_jax.learner.logprobs import head_params, over_chunks, token_logprobs
from hir_jax.learner.settings import LearnerSettings, optimizer
from hir_jax.model import backward, decoder, lora
from hir_jax.model.config import ModelConfig
from hir_jax.types import Array, TrainBatch, TrainState


def init_state(params: decoder.Params, settings: LearnerSettings) -> TrainState:
    """Step 0 from given parameters; zero moments."""
    return TrainState(jnp.int32(0), params, optimizer(settings).init(params), jnp.int32(0))


def _packed(
    tokens, prompt_length, response_mask, keep, model: ModelConfig, settings: LearnerSettings, shard, multiple: int
):
    """The packing of a batch, its places and sizes, and i32[G, K, W] of tokens and of the tokens behind them. Prompts are shared
    where the attention can do so."""
    rows, columns = tokens.shape
    width = packing.bin_columns(columns, settings.pack_columns)
    size = packing.sizes(rows, columns - 1, width, multiple, settings.micro_batch_tokens)
    shares = model.attention == "plain"
    group = packing.same_prompts(tokens[:, : columns - response_mask.shape[1]], prompt_length) if shares else None
    packed, places = packing.pack(prompt_length, response_mask, keep, size, columns, multiple, group)

    def put(x):
        return shard(x, ("batch", None, "length")) if x.ndim else x

    packed = jax.tree.map(put, packed)
    now, following = (put(tokens[packed.row, packed.column + i]) for i in (0, 1))
    return packed, places, size, now, following


def _bins(tokens, packed: packing.Packed, longest: int, start, count: int, shard) -> tuple[list[Array], dict]:
    """The arguments of `hidden_states` after the parameters, for `count` bins a device from `start` on. tokens: i32[G, K, W], of
    rows with up to `longest` columns."""

    def cut(x):
        x = jax.lax.dynamic_slice_in_dim(x, start, count, axis=1)
        return shard(rearrange(x, "g k w -> (g k) w"), ("batch", "length"))

    given = [*map(cut, (tokens, packed.position, packed.segment)), shard]
    if packed.prompt is None:
        return given, {"longest": longest, "prompts": None}
    return given, {"longest": None, "prompts": cut(packed.prompt)}  # a prompt may be at the other end of a bin


def _by_device(hidden: Array, devices: int, shard) -> Array:
    """dtype[G, count * W, D] of [G * count, W, D]."""
    return shard(rearrange(hidden, "(g k) w d -> g (k w) d", g=devices), ("batch", "length", "embed"))


def _flat(x: Array, start, count: int) -> Array:
    """[G, count * W] of [G, K, W]: the columns of `count` bins from `start` on."""
    return rearrange(jax.lax.dynamic_slice_in_dim(x, start, count, axis=1), "g k w -> g (k w)")


def response_logprobs(
    params: decoder.Params,
    tokens: Int[Array, "B PR"],
    prompt_length: Int[Array, " B"],
    response_mask: Bool[Array, "B R"],
    *,
    model: ModelConfig,
    settings: LearnerSettings,
    shard: decoder.Shard = decoder.no_shard,
    multiple: int = 1,
) -> Float32[Array, "B R"]:
    """Log-probs of given responses under `params`, 0 outside the mask.

    tokens: P + R columns, prompts right-aligned in the first P; prompt_length: at least 1; response_mask: left-aligned.
    `multiple` is the number of devices that share rows.
    """
    tokens, prompt_length, response_mask = map(jnp.asarray, (tokens, prompt_length, response_mask))
    keep = jnp.ones(tokens.shape[0], bool)
    packed, places, size, now, following = _packed(
        tokens, prompt_length, response_mask, keep, model, settings, shard, multiple
    )
    matrix = decoder.unembed_matrix(model, head_params(model, params, shard))

    def chunk(carry, hidden, real, target):
        logp = token_logprobs(hidden, target, matrix, settings.temperature, shard)[0]
        return carry, jnp.where(real, shard(logp, ("batch", "length")), 0.0)

    def micro_batch(logp, start):
        given, options = _bins(now, packed, tokens.shape[1] - 1, start, size.micro, shard)
        hidden = _by_device(decoder.hidden_states(model, params, *given, **options), multiple, shard)
        predicts, target = (_flat(x, start, size.micro) for x in (packed.predicts, following))
        empty = jnp.zeros(predicts.shape, jnp.float32)
        _, found = over_chunks(predicts, model.vocab_size, hidden, target, chunk, empty, None)
        found = rearrange(found, "g (k w) -> g k w", k=size.micro)
        return jax.lax.dynamic_update_slice_in_dim(logp, found, start, axis=1)

    logp = shard(jnp.zeros(now.shape, jnp.float32), ("batch", None, "length"))
    logp, _ = packing.over_micro_batches(packed.used, size, micro_batch, logp)
    return packing.unpack(logp, places, response_mask)


class _Tokens(NamedTuple):
    """The loss's inputs at each column that predicts a response token."""

    target: Array  # i32
    weight: Array  # f32, in metrics
    share: Array  # f32, in the loss
    behaviour_logp: Array  # f32
    ref_logp: Array  # f32
    advantage: Array  # f32
    importance: Array  # f32
    is_replay: Array  # bool


# How much a token of a row counts in L = sum_b share_b sum_t l_bt, with w_b the weight of row b, n_b its tokens and R the columns
# of a response.
#   token:    share_b = w_b / sum_c(w_c n_c), the mean over all tokens of the mini-batch (the released run; DAPO)
#   sequence: share_b = w_b / (n_b sum_c w_c), over rows the mean over a row's tokens (GRPO)
#   constant: share_b = w_b / (R sum_c w_c), over rows the sum over a row's tokens, divided by R (Dr. GRPO)
AVERAGES = {
    "token": lambda w, n, columns: w / jnp.maximum((n * w).sum(), 1.0),
    "sequence": lambda w, n, columns: w / jnp.maximum(w.sum(), 1.0) / jnp.maximum(n, 1),
    "constant": lambda w, n, columns: w / jnp.maximum(w.sum(), 1.0) / columns,
}


def _loss(head, hidden, real, fields: _Tokens, frozen_head, model: ModelConfig, settings: LearnerSettings, shard):
    """The share of some tokens in the loss of the mini-batch, and sums for metrics. The loss of a token, l_t, is with

    sft:    -log pi(y_t | x, y_<t), of given pairs, or of the run's own successes (rft, rejection sampling)
    dpo:    -A_t log pi(y_t | x, y_<t), with A_t what `_preferences` gives: its gradient is DPO's
    policy: importance_t * `losses.policy_loss`, plus kl * `losses.kl_loss` with kl_in = "loss"
    """
    matrix = decoder.unembed_matrix(model, frozen_head | head)
    logp, entropy = token_logprobs(hidden, fields.target, matrix, settings.temperature, shard)
    logp, entropy = (shard(x, ("batch", "length")) for x in (logp, entropy))
    weight, share = (jnp.where(real, x, 0.0) for x in (fields.weight, fields.share))
    fixed = jax.lax.stop_gradient(logp)
    seen = {"entropy": entropy, "nll": -fixed}
    if settings.loss == "sft":
        loss = -logp
    elif settings.loss == "dpo":
        loss = -fields.advantage * logp
    else:
        loss, found = losses.policy_loss(
            logp, fields.behaviour_logp, fields.advantage,
            clip_low=settings.clip_low, clip_high=settings.clip_high, dual_clip=settings.dual_clip,
        )  # fmt: skip
        loss *= fields.importance
        if settings.kl and settings.kl_in == "loss":
            distance = losses.kl_loss(logp, fields.ref_logp, settings.kl_estimator)
            loss += settings.kl * distance
            found["kl_ref"] = distance
        change = fixed - fields.behaviour_logp
        outside = (change > jnp.log1p(settings.clip_high)) | (change < jnp.log1p(-settings.clip_low))
        seen |= found | {"gap": jnp.abs(change), "replay_outside": outside & fields.is_replay}
        seen["original_gap"] = jnp.abs(change) * ~fields.is_replay
    total = (loss * share).sum()
    sums = {name: jax.lax.stop_gradient((value * weight).sum()) for name, value in seen.items()}
    return total, sums | {"loss": jax.lax.stop_gradient(total)}


def gradients(
    params: decoder.Params,
    batch: TrainBatch,
    advantage: Float32[Array, "B R"],
    frozen: decoder.Params | None = None,
    *,
    model: ModelConfig,
    settings: LearnerSettings,
    shard: decoder.Shard = decoder.no_shard,
    multiple: int = 1,
) -> tuple[decoder.Params, dict[str, Array]]:
    """Gradient of the batch's loss (see AVERAGES) by `params`, and its metrics; packing and micro-batches change nothing but
    cost. `frozen`: the parameters beside them for which none is computed (see `lora.join`).

    Among the metrics are `padding`, the share of computed columns that no row of weight above 0 fills, and `shared`, the share of
    these rows' columns that are not computed because another row has the same prompt.
    """
    batch, advantage = jax.tree.map(jnp.asarray, (batch, advantage))
    columns, responses = batch.tokens.shape[1], batch.response_mask.shape[1]
    tokens_total = jnp.maximum((batch.response_mask * batch.weight[:, None]).sum(), 1.0)
    packed, places, size, now, following = _packed(
        batch.tokens, batch.prompt_length, batch.response_mask, batch.weight > 0, model, settings, shard, multiple
    )
    share = batch.weight
    if settings.loss != "dpo":
        share = AVERAGES[settings.average](batch.weight, batch.response_mask.sum(-1), responses)
    # the predicted token's place among the responses
    at = packed.row, jnp.maximum(packed.column + 1 + responses - columns, 0)
    fields = _Tokens(
        following,
        batch.weight[packed.row],
        share[packed.row],
        batch.behaviour_logp[at],
        batch.ref_logp[at],
        advantage[at],
        batch.importance[at],
        batch.is_replay[packed.row],
    )
    fields = jax.tree.map(lambda x: shard(x, ("batch", None, "length")), fields)
    frozen_head = head_params(model, frozen or {}, shard)
    loss = partial(_loss, frozen_head=frozen_head, model=model, settings=settings, shard=shard)
    compute = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    head, axes = head_params(model, params, shard), lora.param_axes(model, params)

    def chunk(carry, hidden, real, fields):
        d_heads, sums = carry
        (_, more), (d_head, d_hidden) = compute(head, hidden, real, fields)
        return jax.tree.map(jnp.add, (d_heads, sums), (d_head, more)), shard(d_hidden, ("batch", "length", "embed"))

    def micro_batch(carry, start):
        grads, d_heads, sums = carry
        given, options = _bins(now, packed, columns - 1, start, size.micro, shard)
        hidden, pull = backward.hidden_states(model, params, frozen, *given, **options)
        hidden, back = jax.vjp(lambda x: _by_device(x, multiple, shard), hidden)
        predicts, part = jax.tree.map(lambda x: _flat(x, start, size.micro), (packed.predicts, fields))
        empty = shard(jnp.zeros_like(hidden), ("batch", "length", "embed"))
        (d_heads, sums), d_hidden = over_chunks(predicts, model.vocab_size, hidden, part, chunk, empty, (d_heads, sums))
        return shard.parameters(pull(*back(d_hidden), grads), axes), d_heads, sums

    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, 1), x.dtype), fields)
    hidden = jax.ShapeDtypeStruct((1, 1, model.hidden_size), model.compute_dtype)
    shapes = jax.eval_shape(compute, head, hidden, jax.ShapeDtypeStruct((1, 1), bool), one)[0][1]
    zeros, sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, shapes))
    # The output matrix's gradient is summed in the layout of `head`, split by words, and joins the others at the end.
    d_heads = head_params(dataclasses.replace(model, compute_dtype="float32"), zeros, shard)
    zeros = shard.parameters(zeros, axes)
    (grads, d_heads, sums), computed = packing.over_micro_batches(
        packed.used, size, micro_batch, (zeros, d_heads, sums)
    )
    joined = {name: (grads[name] + d_heads[name]).astype(grads[name].dtype) for name in head}
    grads = shard.parameters(grads | joined, axes)
    replay_tokens = (batch.response_mask * (batch.weight * batch.is_replay)[:, None]).sum()
    metrics = {"loss": sums.pop("loss")}
    if settings.loss == "policy":
        original_tokens = (batch.response_mask * (batch.weight * ~batch.is_replay)[:, None]).sum()
        metrics["replay_outside_clip"] = sums.pop("replay_outside") / jnp.maximum(replay_tokens, 1.0)
        metrics["original_gap"] = sums.pop("original_gap") / jnp.maximum(original_tokens, 1.0)
    filled, lengths = places.length.sum(), batch.prompt_length + batch.response_mask.sum(-1) - 1
    metrics["padding"] = 1 - filled / jnp.maximum(computed * multiple * size.columns, 1)
    metrics["shared"] = 1 - filled / jnp.maximum(jnp.where(places.length > 0, lengths, 0).sum(), 1)
    return grads, metrics | {name: value / tokens_total for name, value in sums.items()}


def _preferences(params, batch: TrainBatch, *, settings: LearnerSettings, **fixed) -> tuple[Array, dict[str, Array]]:
    """The coefficient of each log-prob in DPO's gradient, f32[B, R], and metrics; takes a pass over the batch."""
    given = batch.tokens, batch.prompt_length, batch.response_mask
    logp = response_logprobs(params, *given, settings=settings, **fixed)
    gain = jnp.where(batch.response_mask, logp - batch.ref_logp, 0.0).sum(-1)
    chosen, rejected = rearrange(gain, "(pair two) -> two pair", two=2)
    loss, coefficient = losses.preference_coefficients(chosen, rejected, settings.dpo_beta)
    valid = rearrange(batch.weight, "(pair two) -> pair two", two=2).min(-1)
    share = valid / jnp.maximum(valid.sum(), 1.0)
    signed = jnp.stack([coefficient, -coefficient], -1) * share[:, None]
    metrics = {"loss": loss, "preferred": chosen > rejected, "margin": settings.dpo_beta * (chosen - rejected)}
    metrics = {name: (value * share).sum() for name, value in metrics.items()} | {"pairs": valid.sum()}
    signed = rearrange(signed, "pair two -> (pair two) 1")
    return jnp.broadcast_to(signed, batch.response_mask.shape), metrics


def update(
    state: TrainState,
    batch: TrainBatch,
    frozen: decoder.Params | None = None,
    *,
    model: ModelConfig,
    settings: LearnerSettings,
    shard: decoder.Shard = decoder.no_shard,
    multiple: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """One training step on a TrainBatch: advantages of the whole batch, then `mini_batches` optimiser updates in row order.
    With loss "dpo" rows 2j and 2j + 1 are a pair, the better one first (see `hir.pairs`). `frozen`: as for `gradients`.

    An update with a non-finite gradient norm leaves parameters and moments as they were and is counted in `skipped`.
    Metrics are means over the updates; `multiple` is the number of devices that share the batch axis. If pi_old is the
    sampler's, `sampler_gap` is the mean absolute gap between trainer and sampler on the originals of the first mini-batch,
    whose log-probs are computed before any update.
    """
    transform = optimizer(settings)
    values = jnp.zeros_like(batch.behaviour_logp)
    if settings.loss == "policy":
        how = {"baseline": settings.baseline, "std_floor": settings.std_floor}
        values = advantages(batch, settings.estimator, settings.kl if settings.kl_in == "reward" else 0.0, **how)
    rows = batch.tokens.shape[0]
    if rows % settings.mini_batches:
        raise ValueError(f"{rows} rows do not split into learner.mini_batches = {settings.mini_batches} equal parts")
    parts = jax.tree.map(
        lambda x: rearrange(x, "(part b) ... -> part b ...", part=settings.mini_batches), (batch, values)
    )
    fixed = {"model": model, "settings": settings, "shard": shard, "multiple": multiple}

    def one(carry, part):
        params, opt_state, skipped = carry
        preferred = {}
        if settings.loss == "dpo":
            values, preferred = _preferences(lora.join(frozen, params), part[0], **fixed)
            part = part[0], values
        grads, metrics = gradients(params, *part, frozen, **fixed)
        metrics |= preferred
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm)
        changes, new_opt_state = transform.update(grads, opt_state, params)
        new_params = optax.apply_updates(params, changes)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (new_params, new_opt_state), (params, opt_state)
        )
        return (params, opt_state, skipped + ~finite), metrics | {"grad_norm": norm}

    carry, history = jax.lax.scan(one, (state.params, state.opt_state, state.skipped), parts)
    params, opt_state, skipped = carry
    first_gap = history.pop("original_gap", None)
    metrics = {name: values.mean() for name, values in history.items()} | {"updates_skipped": skipped}
    if settings.loss == "policy" and not settings.recomputes_old:
        metrics["sampler_gap"] = first_gap[0]
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state, skipped=skipped), metrics
