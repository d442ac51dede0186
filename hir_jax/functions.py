"""The compiled functions of one config, for one model over one mesh, with the shapes and layouts of their arguments.

They are the pure ones of rollout, replay and learner. Nothing here needs the weights, a tokenizer or the devices themselves:
`python -m hir_jax.aot` compiles them for devices that are elsewhere.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from hir_jax.learner.update import LearnerSettings, init_state, score_responses, update
from hir_jax.models import counting, decoder, lora
from hir_jax.models.config import ModelConfig
from hir_jax.models.decode_attention import cache_columns
from hir_jax.parallel import mesh as meshes
from hir_jax.replay import select
from hir_jax.replay.pairs import choose_pairs, pair_batch
from hir_jax.replay.relabel import relabel
from hir_jax.rollout.continuous import Share, ring_columns, sample_continuous, slots_within
from hir_jax.rollout.sample import Sampling, advance, begin, sample
from hir_jax.types import InputError, TrainState

ATTENTION = {"tpu": "splash", "gpu": "triton"}  # by platform; see models/attention.py
INIT, SAMPLE, SELECT, EVALUATE, ADAPT = range(5)  # purposes of random keys


def old_logp(config) -> str:
    """Whose log-prob pi_old is, "sampler" or "trainer": `rollout.old_logp`, or if that is empty the trainer's where the
    sampler's weights have another dtype."""
    same = config.rollout.dtype in ("", config.model.compute_dtype)
    return config.rollout.old_logp or ("sampler" if same else "trainer")


def learner_settings(config) -> LearnerSettings:
    """The `learner` group and what else the update depends on."""
    group = {k: v for k, v in config.learner.items() if k not in ("mask_truncated", "dpo_pairs")}
    loss = {"sft": "sft", "rft": "sft", "dpo": "dpo"}.get(config.method, "policy")
    return LearnerSettings(
        loss=loss,
        old_logp=old_logp(config),
        temperature=1.0 if loss == "sft" else config.rollout.temperature,
        decay_steps=0 if config.learner.schedule == "constant" else config.total_steps * config.learner.mini_batches,
        **group,
    )


def _laid_out(shapes, shardings):
    return jax.tree.map(lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), shapes, shardings)


class Functions:
    """`samples` is the number of slots a prompt has: m, or m + k."""

    def __init__(self, config, model: ModelConfig, stop_ids: tuple[int, ...], pad_id: int, devices=None):
        """devices: those of the mesh; all that jax sees, where None."""
        self.config, self.stop_ids, self.pad_id = config, stop_ids, pad_id
        self.mesh = meshes.make_mesh(**config.mesh, devices=devices)
        self.shard = meshes.ActivationShard(self.mesh)
        sampler = {"data": -1, "fsdp": 1, "tensor": config.rollout.tensor} if config.rollout.tensor else config.mesh
        self.sampler_mesh = meshes.make_mesh(**sampler, devices=devices)
        self.sampler_shard = meshes.ActivationShard(self.sampler_mesh)
        attention = ATTENTION.get(self.mesh.devices.flat[0].platform, "plain")
        how = {"compute_dtype": config.model.compute_dtype, "remat": config.model.remat, "attention": attention}
        self.model = dataclasses.replace(model, **how)
        self.lora = None
        if config.lora.rank:
            self.lora = lora.LoraSettings(config.lora.rank, config.lora.alpha, tuple(config.lora.targets))
            self.model = dataclasses.replace(self.model, lora_scaling=self.lora.scaling)
        self.samples = config.rollout.m + config.replay.k
        dtype = config.rollout.dtype or self.model.compute_dtype
        self.sampler_model = dataclasses.replace(self.model, compute_dtype=dtype)
        self.replays = config.method in ("hir", "hir_clr") and config.replay.k > 0
        self.pairs_instructions = config.method == "dpo" and config.learner.dpo_pairs != "response"
        self.first_samples = config.rollout.m if self.replays else self.samples  # without replay all slots are sampled
        self.settings = learner_settings(config)
        r = config.rollout
        self.rollout_sampling = self.sampling(r.temperature, top_k=r.top_k, top_p=r.top_p)

    def key(self, purpose: int, step: int = 0) -> jax.Array:
        """The random key of a purpose at a step; nothing else is random."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.config.seed), purpose), step)

    @cached_property
    def param_shardings(self):
        return meshes.parameter_shardings(
            self.mesh, decoder.param_axes(self.model), decoder.abstract_params(self.model)
        )

    def _initial(self, params: decoder.Params) -> decoder.Params:
        """What is trained, at step 0 from given parameters: a copy of them (the state will be donated), or new adapters."""
        if self.lora is None:
            return jax.tree.map(jnp.copy, params)
        return lora.init(self.model, self.lora, self.key(ADAPT), jnp.dtype(self.config.model.param_dtype))

    @property
    def abstract_frozen(self) -> decoder.Params | None:
        """Shapes and shardings of the weights that LoRA's adapters stand beside; None without LoRA."""
        if self.lora is None:
            return None
        shapes = decoder.abstract_params(self.model, jnp.dtype(self.config.lora.base_dtype))
        return _laid_out(shapes, self.param_shardings)

    @cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the TrainState, for restoring one."""
        given = decoder.abstract_params(self.model, self.config.model.param_dtype)
        shapes = jax.eval_shape(lambda p: init_state(self._initial(p), self.settings), given)
        axes = lora.param_axes(self.model, shapes.params)
        trained = meshes.parameter_shardings(self.mesh, axes, shapes.params)
        shardings = meshes.state_shardings(self.mesh, shapes, trained)
        return _laid_out(shapes, shardings)

    def _sampler_params(self, params: decoder.Params) -> decoder.Params:
        """Parameters in the sampler's dtype and layout. Cast first: the barrier keeps XLA from moving the cast behind the
        exchange, which would then be of twice the bytes. From fsdp to tensor half-way first: left to itself XLA gathers whole
        stacks on every device and cuts its part out of them."""
        params = jax.tree.map(lambda x: x.astype(self.sampler_model.compute_dtype), params)
        if not self.config.rollout.tensor:
            return params
        params, axes = jax.lax.optimization_barrier(params), lora.param_axes(self.model, params)
        if self.mesh.shape["data"] == 1:  # else a device's part is not where its neighbours of the other mesh are
            params = self.sampler_shard.parameters(params, axes, meshes.HALF_WAY_RULES)
        return self.sampler_shard.parameters(params, axes)

    @cached_property
    def _reshard(self):
        return jax.jit(self._sampler_params)

    @cached_property
    def _cast(self):
        return jax.jit(lambda x: x.astype(self.sampler_model.compute_dtype))

    def for_sampling(self, params: decoder.Params) -> decoder.Params:
        """A model's parameters as `_sample` takes them: in the sampler's layout and dtype, once for all calls of a step. Without
        a layout of its own what has the dtype is not copied (LoRA's frozen weights, say)."""
        if self.config.rollout.tensor:
            return self._reshard(params)
        dtype = self.sampler_model.compute_dtype
        return jax.tree.map(lambda x: x if x.dtype == dtype else self._cast(x), params)

    def abstract_sampler_params(self, params: decoder.Params) -> decoder.Params:
        """Shapes and shardings of what `for_sampling` makes of those, which are returned where it does not copy them."""
        if self.config.rollout.tensor:
            shapes, axes = jax.eval_shape(self._sampler_params, params), lora.param_axes(self.model, params)
            return _laid_out(shapes, meshes.parameter_shardings(self.sampler_mesh, axes, shapes))
        dtype = jnp.dtype(self.sampler_model.compute_dtype)
        cast = partial(jax.ShapeDtypeStruct, dtype=dtype)
        return jax.tree.map(lambda x: x if x.dtype == dtype else cast(x.shape, sharding=x.sharding), params)

    @cached_property
    def _decode(self):
        """`sample`, or the same in slots, with parameters from `_sampler_params`."""
        fixed = {"model": self.sampler_model, "shard": self.sampler_shard}
        if self.config.rollout.slots % self.queues:
            raise InputError(
                f"config.rollout.slots = {self.config.rollout.slots} must be a multiple of the {self.queues} devices that share "
                "rows"
            )

        def sample_rows(params, prompts, length, rows, key, *, settings):
            given = params, prompts, length, rows, key
            slots = self.slots(*prompts.shape, rows.shape[1], settings.max_response)
            if not slots:
                return sample(*given, settings=settings, **fixed)
            return sample_continuous(*given, settings=settings, slots=slots, queues=self.queues, **fixed)[0]

        return sample_rows

    def _sampler(self, params, *given, settings):
        """`_decode` with parameters as they are kept."""
        return self._decode(self._sampler_params(params), *given, settings=settings)

    @property
    def queues(self) -> int:
        """Devices that share rows while sampling."""
        return meshes.row_devices(self.sampler_mesh)

    @property
    def kv_ways(self) -> int:
        """Devices that share the key heads of a row while sampling."""
        return self.sampler_shard.ways("kv_heads", self.model.num_kv_heads)

    def slots(self, prompts: int, columns: int, samples: int, longest: int) -> int:
        """Rows decoded at a time: `rollout.slots`, but not more than `rollout.cache_bytes` hold; 0: all rows, without slots."""
        r, ways = self.config.rollout, self.queues
        if not r.cache_bytes:
            return r.slots
        token_bytes = counting.cache_bytes(self.sampler_model) // self.kv_ways
        sizes = (cache_columns(self.model.attention, size) for size in (columns, longest, ring_columns(longest)))
        columns, response, ring = sizes
        share = Share(prompts // ways, columns, samples, response, ring, token_bytes)
        within = slots_within(r.cache_bytes, share) * ways
        return min(filter(None, (r.slots, within)), default=0)

    @cached_property
    def _sample(self):
        return jax.jit(self._decode, static_argnames="settings", out_shardings=meshes.rows(self.sampler_mesh))

    @cached_property
    def _begin(self):
        return jax.jit(partial(begin, model=self.sampler_model, shard=self.shard), static_argnames="settings")

    @cached_property
    def _advance(self):
        fixed = {"model": self.sampler_model, "shard": self.shard}
        return jax.jit(partial(advance, **fixed), static_argnames=("width", "settings"))

    @cached_property
    def _score(self):
        fixed = {"model": self.model, "settings": self.settings, "shard": self.shard}
        return jax.jit(
            partial(score_responses, **fixed, multiple=meshes.row_devices(self.mesh)),
            out_shardings=meshes.rows(self.mesh),
        )

    @cached_property
    def _relabel(self):
        fixed = {"samples": self.samples, "pad_id": self.pad_id, "mini_batches": self.settings.mini_batches}
        return jax.jit(partial(relabel, **fixed), out_shardings=meshes.rows(self.mesh))

    @cached_property
    def _select(self):
        return jax.jit(partial(select.select, **self._selection))

    @property
    def _selection(self) -> dict:
        """How failures are selected."""
        config = self.config
        return {
            "config": config.replay, "slots": self.samples, "horizon": config.total_steps,
            "mask_truncated": config.learner.mask_truncated,
        }  # fmt: skip

    @cached_property
    def _pairs(self):
        def run(prompts, rollout, verdicts, replays):
            learner = self.config.learner
            how = {"mask_truncated": learner.mask_truncated, "mini_batches": learner.mini_batches}
            found = choose_pairs(rollout, verdicts, replays, learner.dpo_pairs, samples=self.samples, **how)
            return pair_batch(prompts, rollout, verdicts, found, samples=self.samples, pad_id=self.pad_id)

        return jax.jit(run, out_shardings=meshes.rows(self.mesh))

    @cached_property
    def _update(self):
        fixed = {"model": self.model, "settings": self.settings, "shard": self.shard}
        state = jax.tree.map(lambda s: s.sharding, self.abstract_state)
        return jax.jit(
            partial(update, **fixed, multiple=meshes.row_devices(self.mesh)),
            donate_argnums=0,
            out_shardings=(state, meshes.replicated(self.mesh)),
        )

    @property
    def jitted(self) -> dict[str, Any]:
        """The compiled functions of a step by name; nothing has been compiled yet."""
        return {
            "reshard": self._reshard, "sample": self._sample, "score": self._score, "select": self._select,
            "relabel": self._relabel, "update": self._update,
        }  # fmt: skip

    def sampling(self, temperature: float, *, top_k: int = 0, top_p: float = 1.0) -> Sampling:
        return Sampling(
            self.config.rollout.max_response, self.stop_ids, self.pad_id, temperature, top_k, top_p,
            policy_temperature=self.config.rollout.temperature, method=self.config.rollout.method,
            widths=tuple(self.config.rollout.response_buckets),
        )  # fmt: skip
