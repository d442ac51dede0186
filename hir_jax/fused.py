"""The training step as one function: update . relabel . select . verify . sample, for constraints decided on the device.

The same pure functions that `step.py` strings together on the host. Nothing leaves the device in between, so what depends
on a count of failures (sampling more of them, `replay.fill = "resample"`) is not done here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hir_jax.constraints import on_device
from hir_jax.learner.losses import truncated_importance
from hir_jax.learner.update import LearnerSettings, score_responses, update
from hir_jax.models import decoder, lora
from hir_jax.models.config import ModelConfig
from hir_jax.replay import select
from hir_jax.replay.relabel import relabel
from hir_jax.rollout.sample import Sampling
from hir_jax.types import Array, PromptBatch, Replays, Rollout, TrainState, Verdicts


class Plan(NamedTuple):
    """What does not change from step to step. `slots` a prompt, of which the first `samples` are filled."""

    sampler: Callable[..., Rollout]  # `rollout.sample.sample` with its model
    model: ModelConfig
    learner: LearnerSettings
    sampling: Sampling
    replays: bool  # whether failures are replayed at all
    selection: dict  # how, arguments of `select.select`
    rewards: dict  # arguments of `select.rewards`
    samples: int
    slots: int
    text_width: int  # bytes of a response that are looked at
    thinking: bool | None = None  # see `on_device.verify`
    shard: decoder.Shard = decoder.no_shard
    multiple: int = 1  # devices that share rows


def in_slots(tree, prompts: int, slots: int, pad_id: int):
    """Rollout and Verdicts of N * S rows in the first S of `slots` places a prompt; the others are empty."""

    def spread(x, fill):
        x = x.reshape(prompts, -1, *x.shape[1:])
        widths = ((0, 0), (0, slots - x.shape[1])) + ((0, 0),) * (x.ndim - 2)
        return jnp.pad(x, widths, constant_values=fill).reshape(prompts * slots, *x.shape[2:])

    rollout, verdicts = jax.tree.map(lambda x: spread(x, jnp.zeros((), x.dtype)), tree)
    return rollout._replace(tokens=spread(tree[0].tokens, pad_id)), verdicts


def train_step(
    state: TrainState,
    ref_params: decoder.Params | None,
    prompts: PromptBatch,
    conditions: on_device.Conditions,
    table: on_device.TokenBytes,
    sample_key: Array,
    select_key: Array,
    frozen: decoder.Params | None,
    *,
    plan: Plan,
) -> tuple[TrainState, dict[str, Array], Rollout, Verdicts, Replays]:
    """One step on N prompts; `frozen`: the parameters beside those of the state (`lora.join`). Returns the new state, the
    learner's metrics, and rollout, verdicts of N * slots rows and replays as the step saw them."""
    count, pad_id = prompts.tokens.shape[0], plan.sampling.pad_id
    ids = jnp.arange(count * plan.slots).reshape(count, plan.slots)[:, : plan.samples]
    params = lora.join(frozen, state.params)
    rollout = plan.sampler(params, prompts.tokens, prompts.length, ids, sample_key, settings=plan.sampling)
    how = {"width": plan.text_width, "thinking": plan.thinking}
    verdicts = on_device.verify(table, conditions, rollout.tokens, rollout.mask, **how)
    rollout, verdicts = in_slots((rollout, verdicts), count, plan.slots, pad_id)
    replays = Replays(jnp.zeros(0, jnp.int32), jnp.zeros(0), jnp.zeros(0, bool))
    if plan.replays:
        replays = select.select(rollout, verdicts, state.step, select_key, rounds=0, **plan.selection)
    reward, weight = select.rewards(rollout, verdicts, **plan.rewards)
    fixed = {"model": plan.model, "settings": plan.learner, "shard": plan.shard, "multiple": plan.multiple}
    ref_logp, importance = jnp.zeros_like(rollout.sampler_logp), jnp.ones_like(rollout.sampler_logp)
    whole = jnp.concatenate([jnp.repeat(prompts.tokens, plan.slots, axis=0), rollout.tokens], axis=1)
    given = whole, jnp.repeat(prompts.length, plan.slots), rollout.mask
    if ref_params is not None:
        ref_logp = score_responses(ref_params, *given, **fixed)
    corrected = {}
    if plan.learner.scores_old:
        trainer = score_responses(params, *given, **fixed)
        cap = plan.learner.importance_cap
        importance, corrected = truncated_importance(trainer, rollout.sampler_logp, rollout.mask, cap)
        rollout = rollout._replace(sampler_logp=trainer)
    batch = relabel(
        prompts.tokens, prompts.length, prompts.parts, rollout, ref_logp, importance, reward, weight, verdicts, replays,
        samples=plan.slots, pad_id=pad_id, mini_batches=plan.learner.mini_batches,
    )  # fmt: skip
    if plan.selection["config"].behaviour == "rewritten":
        given = batch.tokens, batch.prompt_length, batch.response_mask
        for name, weights in {"behaviour_logp": params, "ref_logp": ref_params}.items():
            if weights is not None:
                fresh = score_responses(weights, *given, **fixed)
                batch = batch._replace(**{name: jnp.where(batch.is_replay[:, None], fresh, getattr(batch, name))})
    state, metrics = update(state, batch, frozen, **fixed)
    return state, metrics | corrected, rollout, verdicts, replays
