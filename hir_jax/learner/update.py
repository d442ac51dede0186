"""The update: gradients of a TrainBatch in micro-batches, AdamW, skipping non-finite gradients."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from hir_jax.learner import losses
from hir_jax.learner.advantages import advantages
from hir_jax.learner.logprobs import response_logprobs
from hir_jax.models import decoder
from hir_jax.models.config import ModelConfig
from hir_jax.types import Array, TrainBatch, TrainState

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class LearnerSettings:
    """The `learner` group of the config as a hashable static argument; `kl`, clips and schedule as named there."""

    loss: str = "policy"  # policy | sft
    estimator: str = "reinforce_plus_plus"
    temperature: float = 1.0
    kl: float = 0.001
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    mini_batches: int = 1
    micro_batch_tokens: int = 8192
    learning_rate: float = 1e-6
    schedule: str = "constant"
    warmup_steps: int = 0
    decay_steps: int = 0  # optimiser updates after which a linear or cosine schedule has reached 0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    max_grad_norm: float = 1.0


def learning_rate(settings: LearnerSettings) -> optax.Schedule:
    """Learning rate by optimiser update: linear warm-up, then constant, or linear or cosine decay to 0."""
    peak, rest = settings.learning_rate, max(1, settings.decay_steps - settings.warmup_steps)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
    }
    if settings.schedule not in after:
        raise ValueError(f"unknown learner.schedule {settings.schedule!r}; known: {', '.join(SCHEDULES)}")
    warmup = optax.linear_schedule(0.0, peak, max(1, settings.warmup_steps))
    return optax.join_schedules([warmup, after[settings.schedule]()], [settings.warmup_steps])


def optimizer(settings: LearnerSettings) -> optax.GradientTransformation:
    """AdamW behind clipping by global norm; weight decay on every parameter (as the released run)."""
    return optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.adamw(
            learning_rate(settings), settings.beta1, settings.beta2, eps=1e-8, weight_decay=settings.weight_decay
        ),
    )


def init_state(params: decoder.Params, settings: LearnerSettings) -> TrainState:
    """Step 0 from given parameters; zero moments."""
    return TrainState(jnp.int32(0), params, optimizer(settings).init(params), jnp.int32(0))


def micro_batches(batch, rows: int, multiple: int, micro_rows: int):
    """A tree of [rows, ...] arrays as [M, micro, ...], padded with zeros (weight 0); micro is a multiple of `multiple`.

    Rows are dealt out so that a device keeps the rows it holds when the batch axis is sharded.
    """
    size = max(multiple, micro_rows // multiple * multiple)
    count = -(-rows // size)
    size = -(-rows // (count * multiple)) * multiple  # as even as possible

    def split(x):
        x = jnp.pad(x, ((0, count * size - rows),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(size, count, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)


def _join(x: Array, rows: int) -> Array:
    """Inverse of `micro_batches` for one array."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:rows]


def score_responses(
    params: decoder.Params,
    tokens: Array,
    prompt_length: Array,
    response_mask: Array,
    *,
    model: ModelConfig,
    settings: LearnerSettings,
    shard: decoder.Shard = decoder.no_shard,
    multiple: int = 1,
) -> Array:
    """Log-probs f32[B, R] of given responses under `params` (the reference policy's, or the behaviour's under q')."""
    rows = tokens.shape[0]
    parts = micro_batches(
        (tokens, prompt_length, response_mask), rows, multiple, settings.micro_batch_tokens // tokens.shape[1]
    )
    logp = jax.lax.map(
        lambda part: response_logprobs(params, *part, model=model, temperature=settings.temperature, shard=shard)[0],
        parts,
    )
    return _join(logp, rows)


def _loss(params, part, advantage, tokens_total, model: ModelConfig, settings: LearnerSettings, shard):
    """One micro-batch's share of the mini-batch loss, and sums for metrics."""
    logp, entropy = response_logprobs(
        params, part.tokens, part.prompt_length, part.response_mask,
        model=model, temperature=settings.temperature, shard=shard,
    )  # fmt: skip
    mask = part.response_mask * part.weight[:, None]
    if settings.loss == "sft":
        total, sums = losses.nll_loss(logp, mask), {}
    else:
        total, sums = losses.policy_loss(
            logp, part.behaviour_logp, advantage, mask,
            clip_low=settings.clip_low, clip_high=settings.clip_high, dual_clip=settings.dual_clip,
        )  # fmt: skip
        gap = jnp.abs(jax.lax.stop_gradient(logp) - part.behaviour_logp)
        outside = (gap > jnp.log1p(settings.clip_high)) * mask
        sums |= {"gap": (gap * mask).sum(), "replay_outside": (outside * part.is_replay[:, None]).sum()}
    sums |= {"entropy": (entropy * mask).sum(), "nll": -(jax.lax.stop_gradient(logp) * mask).sum()}
    return total / tokens_total, sums


def gradients(
    params: decoder.Params,
    batch: TrainBatch,
    advantage: Array,
    *,
    model: ModelConfig,
    settings: LearnerSettings,
    shard: decoder.Shard = decoder.no_shard,
    multiple: int = 1,
) -> tuple[decoder.Params, dict[str, Array]]:
    """Gradient of the token-mean loss over the batch and its metrics; micro-batches change nothing but memory."""
    rows, columns = batch.tokens.shape
    tokens_total = jnp.maximum((batch.response_mask * batch.weight[:, None]).sum(), 1.0)
    parts = micro_batches((batch, advantage), rows, multiple, settings.micro_batch_tokens // columns)
    compute = jax.value_and_grad(_loss, has_aux=True)

    def one(part):
        (loss, sums), grads = compute(params, *part, tokens_total, model, settings, shard)
        return grads, sums | {"loss": loss}

    if parts[1].shape[0] == 1:
        grads, sums = one(jax.tree.map(lambda x: x[0], parts))
    else:
        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (grads, sums), _ = jax.lax.scan(
            lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None), zero, parts
        )
    replay_tokens = (batch.response_mask * (batch.weight * batch.is_replay)[:, None]).sum()
    metrics = {"loss": sums.pop("loss")}
    outside = sums.pop("replay_outside", None)
    if outside is not None:
        metrics["replay_outside_clip"] = outside / jnp.maximum(replay_tokens, 1.0)
    return grads, metrics | {name: value / tokens_total for name, value in sums.items()}


def update(
    state: TrainState,
    batch: TrainBatch,
    *,
    model: ModelConfig,
    settings: LearnerSettings,
    shard: decoder.Shard = decoder.no_shard,
    multiple: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """One training step on a TrainBatch: advantages of the whole batch, then `mini_batches` optimiser updates in row order.

    An update with a non-finite gradient norm leaves parameters and moments as they were and is counted in `skipped`.
    Metrics are means over the updates; `multiple` is the number of devices that share the batch axis.
    """
    transform = optimizer(settings)
    values = jnp.zeros_like(batch.behaviour_logp)
    if settings.loss == "policy":
        values = advantages(batch, settings.estimator, settings.kl)
    rows = batch.tokens.shape[0]
    if rows % settings.mini_batches:
        raise ValueError(f"{rows} rows do not split into learner.mini_batches = {settings.mini_batches} equal parts")
    size = rows // settings.mini_batches
    params, opt_state, skipped = state.params, state.opt_state, state.skipped
    history = []
    for start in range(0, rows, size):
        part, advantage = jax.tree.map(lambda x, s=start: x[s : s + size], (batch, values))
        grads, metrics = gradients(
            params, part, advantage, model=model, settings=settings, shard=shard, multiple=multiple
        )
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm)
        changes, new_opt_state = transform.update(grads, opt_state, params)
        new_params = optax.apply_updates(params, changes)
        params, opt_state = jax.tree.map(
            lambda new, old, ok=finite: jnp.where(ok, new, old), (new_params, new_opt_state), (params, opt_state)
        )
        skipped += ~finite
        history.append(metrics | {"grad_norm": norm})
    metrics = {name: jnp.stack([h[name] for h in history]).mean() for name in history[0]}
    metrics["updates_skipped"] = skipped
    return TrainState(state.step + 1, params, opt_state, skipped), metrics
