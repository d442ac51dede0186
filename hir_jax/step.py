"""One training step as three pure functions of arrays: `sample`, `check` and `learn`.

    rollout = sample(for_sampling(params), prompts, ids, key)
    verdicts = check(table, conditions, rollout)                 # or on the host: rollouts.py
    state, metrics, replays = learn(state, frozen, ref_params, prompts, rollout, verdicts, rounds, key)

N prompts have `StepSettings.samples` slots each, B = N * samples rows; slot b belongs to prompt b // samples. Nothing inside
these functions goes to the host. Sampling again where failures to replay are lacking, and checks that need text, are the
host's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Bool, Int, Key

from hir_jax.checks.device.conditions import Conditions
from hir_jax.checks.device.verify import TokenBytes, verify
from hir_jax.hir import buffer as buffers
from hir_jax.hir import select
from hir_jax.hir.dapo import overlong_penalty
from hir_jax.hir.methods import METHODS, Method
from hir_jax.hir.pairs import choose_pairs, pair_batch
from hir_jax.hir.relabel import relabel
from hir_jax.learner.losses import truncated_importance
from hir_jax.learner.settings import LearnerSettings
from hir_jax.learner.update import response_logprobs, update
from hir_jax.model import counting, decoder, lora
from hir_jax.model.config import ModelConfig
from hir_jax.model.decode_attention import cache_columns
from hir_jax.parallel import mesh as meshes
from hir_jax.sampler import continuous
from hir_jax.sampler import sample as plain
from hir_jax.sampler.sample import Sampling
from hir_jax.types import Array, Buffer, PromptBatch, Replays, Rollout, TrainBatch, TrainState, Verdicts


@dataclass(frozen=True, eq=False)
class StepSettings:
    """Everything that is the same in every step; bound to the functions below before they are jitted."""

    config: Any  # ConfigDict
    model: ModelConfig  # as the learner computes it
    pad_id: int
    stop_ids: tuple[int, ...]
    mesh: jax.sharding.Mesh
    sampler_mesh: jax.sharding.Mesh
    text_width: int = 0  # bytes of a response that `check` looks at
    thinking: bool | None = None  # see `device.verify`

    @property
    def samples(self) -> int:
        """Slots of a prompt, m + k."""
        return self.config.rollout.m + self.config.replay.k

    @property
    def first_samples(self) -> int:
        """How many of them are sampled at first: m; all where nothing is replayed or taken from a buffer."""
        return self.config.rollout.m if self.replays or self.buffers else self.samples

    @property
    def method(self) -> Method:
        return METHODS[self.config.method]

    @property
    def replays(self) -> bool:
        """Whether failures are replayed."""
        return self.method.replays and self.config.replay.k > 0

    @property
    def buffers(self) -> bool:
        """Whether successes of earlier steps are trained on again."""
        return self.config.buffer.rows > 0

    @property
    def selects(self) -> bool:
        """Whether failures are selected: to be replayed, or for preference pairs of two instructions."""
        return self.replays or (self.method.loss == "dpo" and self.config.learner.dpo_pairs != "response")

    @property
    def keeps_reference(self) -> bool:
        """Whether the update needs the reference policy's log-probs."""
        loss = self.method.loss
        return loss == "dpo" or (loss == "policy" and self.config.learner.kl > 0)

    @cached_property
    def learner(self) -> LearnerSettings:
        """What the update depends on."""
        return LearnerSettings.of(self.config)

    @property
    def sampler_model(self) -> ModelConfig:
        """The model in the sampler's dtype."""
        return replace(self.model, compute_dtype=self.config.rollout.dtype or self.model.compute_dtype)

    @property
    def shard(self) -> meshes.ActivationShard:
        return meshes.ActivationShard(self.mesh)

    @property
    def sampler_shard(self) -> meshes.ActivationShard:
        return meshes.ActivationShard(self.sampler_mesh)

    @property
    def learning(self) -> dict[str, Any]:
        """Static arguments of `update` and `response_logprobs`."""
        multiple = meshes.row_devices(self.mesh)
        return {"model": self.model, "settings": self.learner, "shard": self.shard, "multiple": multiple}

    @property
    def queues(self) -> int:
        """Devices that share rows while sampling."""
        return meshes.row_devices(self.sampler_mesh)

    @property
    def kv_ways(self) -> int:
        """Devices that share the key heads of a row while sampling."""
        return self.sampler_shard.ways("kv_heads", self.model.num_kv_heads)

    def sampling(self, temperature: float, *, top_k: int = 0, top_p: float = 1.0) -> Sampling:
        rollout = self.config.rollout
        return Sampling(
            rollout.max_response, self.stop_ids, self.pad_id, temperature, top_k, top_p,
            policy_temperature=rollout.temperature, method=rollout.method, widths=tuple(rollout.response_buckets),
        )  # fmt: skip

    @property
    def rollout_sampling(self) -> Sampling:
        """How training samples are drawn."""
        rollout = self.config.rollout
        return self.sampling(rollout.temperature, top_k=rollout.top_k, top_p=rollout.top_p)

    def slots(self, prompts: int, columns: int, samples: int, longest: int) -> int:
        """Rows decoded at a time: `rollout.slots`, but not more than `rollout.cache_bytes` hold; 0: all rows, without slots."""
        rollout, ways = self.config.rollout, self.queues
        if not rollout.cache_bytes:
            return rollout.slots
        token_bytes = counting.cache_bytes(self.sampler_model) // self.kv_ways
        sizes = (columns, longest, continuous.ring_columns(longest))
        columns, response, ring = (cache_columns(self.model.attention, size) for size in sizes)
        share = continuous.Share(prompts // ways, columns, samples, response, ring, token_bytes)
        within = continuous.slots_within(rollout.cache_bytes, share) * ways
        return min(filter(None, (rollout.slots, within)), default=0)


def for_sampling(params: decoder.Params, *, settings: StepSettings) -> decoder.Params:
    """Parameters in the sampler's dtype and layout, once for all calls of a step.

    Cast first: the barrier keeps XLA from moving the cast behind the exchange, which would then be of twice the bytes. From
    fsdp to tensor half-way first: left to itself XLA gathers whole stacks on every device and cuts its part out of them.
    """
    params = jax.tree.map(lambda x: x.astype(settings.sampler_model.compute_dtype), params)
    if not settings.config.rollout.tensor:
        return params
    params, axes = jax.lax.optimization_barrier(params), lora.param_axes(settings.model, params)
    if settings.mesh.shape["data"] == 1:  # else a device's part is not where its neighbours of the other mesh are
        params = settings.sampler_shard.parameters(params, axes, meshes.HALF_WAY_RULES)
    return settings.sampler_shard.parameters(params, axes)


def sample(
    params: decoder.Params,
    prompts: Int[Array, "N P"],
    length: Int[Array, " N"],
    ids: Int[Array, "N S"],
    key: Key[Array, ""],
    *,
    sampling: Sampling,
    settings: StepSettings,
) -> Rollout:
    """S responses to each of N prompts of `length` tokens. params: `for_sampling`; ids choose each row's noise."""
    fixed = {"model": settings.sampler_model, "shard": settings.sampler_shard, "settings": sampling}
    slots = settings.slots(*prompts.shape, ids.shape[1], sampling.max_response)
    if not slots:
        return plain.sample(params, prompts, length, ids, key, **fixed)
    return continuous.sample_continuous(
        params, prompts, length, ids, key, slots=slots, queues=settings.queues, **fixed
    )[0]


def check(
    table: TokenBytes,
    conditions: Conditions,
    tokens: Int[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    settings: StepSettings,
) -> Verdicts:
    """Verdicts on responses, on what the device can decide; conditions: of the N prompts."""
    return verify(table, conditions, tokens, mask, width=settings.text_width, thinking=settings.thinking)


def learn(
    state: TrainState,
    frozen: decoder.Params | None,
    ref_params: decoder.Params | None,
    prompts: PromptBatch,
    rollout: Rollout,
    verdicts: Verdicts,
    rounds: Int[Array, ""] | int,
    key: Key[Array, ""],
    *,
    settings: StepSettings,
) -> tuple[TrainState, dict[str, Array], Replays]:
    """Selection, rewards, relabelling and the update: the new state, metrics, and what was replayed.

    frozen: with LoRA the weights that the state's adapters are trained beside (`lora.join`); they are the reference policy if
    ref_params is None. rollout, verdicts: B rows. rounds: how many further samples of each prompt were drawn in place of
    replays (`select.missing_rounds`). key: for a random selection.
    """
    params = lora.join(frozen, state.params)
    reference = (frozen if ref_params is None else ref_params) if settings.keeps_reference else None
    replays = select_replays(rollout, verdicts, state.step, rounds, key, settings=settings)
    if settings.method.loss == "dpo":
        batch, metrics = preference_batch(reference, prompts, rollout, verdicts, replays, settings=settings), {}
    else:
        batch, metrics = policy_batch(params, reference, prompts, rollout, verdicts, replays, settings=settings)
    if state.buffer is not None:
        batch, buffer, found = train_again(params, batch, state.buffer, state.step, settings=settings)
        state, metrics = state._replace(buffer=buffer), metrics | found
    state, learned = update(state, batch, frozen, **settings.learning)
    return state, learned | metrics, replays


def select_replays(
    rollout: Rollout,
    verdicts: Verdicts,
    step: Int[Array, ""] | int,
    rounds: Int[Array, ""] | int,
    key: Key[Array, ""],
    *,
    settings: StepSettings,
) -> Replays:
    """The (k - rounds) * N failures with the largest F(y), in the update after `step`; K = 0 if the method selects none."""
    if not settings.selects:
        return Replays(jnp.zeros(0, jnp.int32), jnp.zeros(0), jnp.zeros(0, bool))
    config = settings.config
    return select.select(
        rollout, verdicts, step, key, config.replay, rounds=rounds, slots=settings.samples,
        horizon=config.total_steps, mask_truncated=config.learner.mask_truncated,
    )  # fmt: skip


def sample_rewards(rollout: Rollout, verdicts: Verdicts, *, settings: StepSettings) -> tuple[Array, Array]:
    """Reward and weight, f32[B] each, of the method's samples; see `select.rewards`."""
    return select.rewards(
        rollout, verdicts,
        fractional=settings.method.fractional, successes_only=settings.method.successes_only,
        mask_truncated=settings.config.learner.mask_truncated,
    )  # fmt: skip


def policy_batch(
    params: decoder.Params | None,
    reference: decoder.Params | None,
    prompts: PromptBatch,
    rollout: Rollout,
    verdicts: Verdicts,
    replays: Replays,
    *,
    settings: StepSettings,
) -> tuple[TrainBatch, dict[str, Array]]:
    """Samples and replays with rewards and log-probs, and metrics of the correction.

    With `rollout.old_logp` "trainer" (as the released code) the trainer's log-probs take the place of the sampler's; their ratio
    corrects the loss if there is a `learner.importance_cap`. With `replay.behaviour` "rewritten" a replay's pi_old and pi_ref are
    given q', so that the ratio starts at 1 and the KL compares the same conditional; as released, both are given q, under
    which y was sampled.
    """
    config = settings.config
    reward, weight = sample_rewards(rollout, verdicts, settings=settings)
    logprobs, metrics = partial(response_logprobs, **settings.learning), {}
    ref_logp, importance = jnp.zeros_like(rollout.sampler_logp), jnp.ones_like(rollout.sampler_logp)
    own = repeat(prompts.tokens, "n p -> (n s) p", s=settings.samples)
    whole = jnp.concatenate([own, rollout.tokens], axis=1)
    given = whole, repeat(prompts.length, "n -> (n s)", s=settings.samples), rollout.mask
    if reference is not None:
        ref_logp = logprobs(reference, *given)
    if settings.learner.recomputes_old:
        trainer, cap = logprobs(params, *given), settings.learner.importance_cap
        importance, metrics = truncated_importance(trainer, rollout.sampler_logp, rollout.mask, cap)
        rollout = rollout._replace(sampler_logp=trainer)
    batch = relabel(
        prompts.tokens, prompts.length, prompts.parts, rollout, ref_logp, importance, reward, weight, verdicts, replays,
        samples=settings.samples, pad_id=settings.pad_id, mini_batches=settings.learner.mini_batches,
    )  # fmt: skip
    if config.learner.overlong_tokens:  # of originals and replays alike: it depends on y alone
        length, longest = batch.response_mask.sum(-1), config.rollout.max_response
        penalty = overlong_penalty(length, longest, config.learner.overlong_tokens)
        batch = batch._replace(reward=batch.reward + penalty)
        metrics["overlong_penalty"] = (penalty * batch.weight).sum() / jnp.maximum(batch.weight.sum(), 1.0)
    if config.replay.behaviour == "rewritten" and settings.replays:
        given = batch.tokens, batch.prompt_length, batch.response_mask
        for name, weights in {"behaviour_logp": params, "ref_logp": reference}.items():
            if weights is not None:
                fresh = logprobs(weights, *given)
                batch = batch._replace(**{name: jnp.where(batch.is_replay[:, None], fresh, getattr(batch, name))})
    return batch, metrics


def train_again(
    params: decoder.Params, batch: TrainBatch, buffer: Buffer, step: Int[Array, ""] | int, *, settings: StepSettings
) -> tuple[TrainBatch, Buffer, dict[str, Array]]:
    """The batch with up to k * N buffered rows in the places that hold no sample, the buffer with the step's successes, and
    metrics.

    A token of a buffered row has the weight min(pi_now / pi_old, `buffer.cap`) in the loss, truncated importance sampling over
    the steps since it was sampled; pi_now, the policy before the update, becomes its pi_old.
    """
    config, responses = settings.config, batch.response_mask.shape[1]
    places = batch.weight.shape[0] // settings.samples * config.replay.k
    kept = buffers.without_old(buffer, step, config.buffer.max_age)
    rows = buffers.youngest(kept, batch.tokens.shape[1] - responses, places, buffers.vacant(batch).sum())
    mask, taken = rows.response_mask, rows.born >= 0
    now = response_logprobs(params, rows.tokens, rows.prompt_length, mask, **settings.learning)
    importance, _ = truncated_importance(now, rows.behaviour_logp, mask, config.buffer.cap)
    filled = buffers.add(kept, batch, step)
    metrics = {
        "buffered": taken.sum(),
        "buffer_rows": (filled.born >= 0).sum(),
        "buffer_age": jnp.where(taken, step - rows.born, 0).sum() / jnp.maximum(taken.sum(), 1),
        "buffer_ratio": jnp.where(mask, importance, 0.0).sum() / jnp.maximum(mask.sum(), 1),
    }
    joined = buffers.join(batch, rows, now, importance, mini_batches=settings.learner.mini_batches)
    return joined, filled, metrics


def preference_batch(
    reference: decoder.Params,
    prompts: PromptBatch,
    rollout: Rollout,
    verdicts: Verdicts,
    replays: Replays,
    *,
    settings: StepSettings,
) -> TrainBatch:
    """The preference pairs of a step, for DPO, with the reference's log-prob of each row."""
    learner, samples = settings.config.learner, settings.samples
    how = {"mask_truncated": learner.mask_truncated, "mini_batches": learner.mini_batches}
    pairs = choose_pairs(rollout, verdicts, replays, learner.dpo_pairs, samples=samples, **how)
    batch = pair_batch(prompts, rollout, verdicts, pairs, samples=samples, pad_id=settings.pad_id)
    given = batch.tokens, batch.prompt_length, batch.response_mask
    return batch._replace(ref_logp=response_logprobs(reference, *given, **settings.learning))


def put_slots(whole, part, prompts: int, first: int):
    """`whole`, trees of [prompts * slots, ...] arrays, with `part` in the slots from `first` on of every prompt. NumPy arrays
    give NumPy arrays."""

    def one(a, b):
        a, b = (rearrange(x, "(n s) ... -> n s ...", n=prompts) for x in (a, b))
        parts = a[:, :first], b, a[:, first + b.shape[1] :]
        joined = (np if isinstance(b, np.ndarray) else jnp).concatenate(parts, axis=1)
        return rearrange(joined, "n s ... -> (n s) ...")

    return jax.tree.map(one, whole, part)


def empty_slots(rows: int, columns: int, constraints: int, pad_id: int) -> tuple[Rollout, Verdicts]:
    """Rows without a sample."""
    zeros, none = np.zeros((rows, columns), np.float32), np.zeros((rows, constraints), bool)
    tokens, flags = np.full((rows, columns), pad_id, np.int32), np.zeros(rows, bool)
    return Rollout(tokens, zeros.astype(bool), zeros, zeros, ended=flags, filled=flags), Verdicts(none, none, none)


def whole_step(
    state: TrainState,
    frozen: decoder.Params | None,
    ref_params: decoder.Params | None,
    prompts: PromptBatch,
    table: TokenBytes,
    conditions: Conditions,
    sample_key: Array,
    select_key: Array,
    *,
    settings: StepSettings,
) -> tuple[TrainState, dict[str, Array], Replays, Rollout, Verdicts]:
    """learn . check . sample, for constraints that the device decides; what lacks is not sampled again (`replay.fill` "mask")."""
    count, slots = prompts.tokens.shape[0], settings.samples
    ids = jnp.arange(count * slots).reshape(count, slots)[:, : settings.first_samples]
    params = for_sampling(lora.join(frozen, state.params), settings=settings)
    found = sample(
        params, prompts.tokens, prompts.length, ids, sample_key, sampling=settings.rollout_sampling, settings=settings
    )
    met = check(table, conditions, found.tokens, found.mask, settings=settings)
    empty = empty_slots(count * slots, found.mask.shape[1], met.present.shape[1], settings.pad_id)
    rollout, verdicts = put_slots(empty, (found, met), count, 0)
    given = prompts, rollout, verdicts, jnp.int32(0), select_key
    state, metrics, replays = learn(state, frozen, ref_params, *given, settings=settings)
    return state, metrics, replays, rollout, verdicts
