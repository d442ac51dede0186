"""The compiled functions of a step for one config, model and mesh, and the host's side of them: arrays in, NumPy out.

Programs talk to the devices through an Engine. `python -m hir_jax.aot` makes one for devices that are elsewhere: nothing is
loaded or compiled before it is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hir_jax import step as steps
from hir_jax.backbone import Backbone, open_backbone
from hir_jax.checks.device.conditions import Conditions
from hir_jax.checks.device.verify import TokenBytes, token_bytes
from hir_jax.data.batches import PartShapes, prompt_batch
from hir_jax.data.segments import Encoded
from hir_jax.hir import buffer as buffers
from hir_jax.learner.update import init_state, response_logprobs, update
from hir_jax.model import decoder, lora
from hir_jax.parallel import mesh as meshes
from hir_jax.sampler.sample import Sampling, advance, begin, finished
from hir_jax.step import StepSettings
from hir_jax.types import InputError, PromptBatch, Replays, Rollout, TrainBatch, TrainState, Verdicts

ATTENTION = {"tpu": "splash", "gpu": "triton"}  # by platform; see model/attention.py
INIT, SAMPLE, SELECT, EVALUATE, ADAPT = range(5)  # purposes of random keys
_BYTES_PER_TOKEN = 8  # room for text on the device; English has 3 to 5
_PROBE_TOKENS = 32  # of a prompt's end, to see whether a policy gives finite log-probs


def bucket(length: int, buckets: Sequence[int], longest: int) -> int:
    """The smallest of `buckets` (and `longest`) that holds `length` columns."""
    return min(b for b in (*buckets, longest) if b >= length)


def _laid_out(shapes, shardings):
    return jax.tree.map(lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), shapes, shardings)


class Engine:
    """`settings` bind the functions of a step to the config; `backbone` holds model shape, tokenizer and weights."""

    def __init__(self, config, devices=None, backbone: Backbone | None = None):
        """devices: the mesh's, by default all that jax sees; backbone: by default the one that the config names."""
        self.config, self.backbone = config, backbone or open_backbone(config)
        self.mesh = meshes.make_mesh(**config.mesh, devices=devices)
        sampler = {"data": -1, "fsdp": 1, "tensor": config.rollout.tensor} if config.rollout.tensor else config.mesh
        self.sampler_mesh = meshes.make_mesh(**sampler, devices=devices)
        attention = ATTENTION.get(self.mesh.devices.flat[0].platform, "plain")
        if attention == "triton" and importlib.util.find_spec("tokamax") is None:
            raise InputError("attention on a GPU needs the package tokamax: pip install 'tokamax>=0.0.12'")
        how = {"compute_dtype": config.model.compute_dtype, "remat": config.model.remat, "attention": attention}
        self.lora = None
        if config.lora.rank:
            self.lora = lora.LoraSettings(config.lora.rank, config.lora.alpha, tuple(config.lora.targets))
            how["lora_scaling"] = self.lora.scaling
        self.model = dataclasses.replace(self.backbone.model, **how)
        self.settings = StepSettings(
            config, self.model, self.backbone.pad_id, self.backbone.stop_ids, self.mesh, self.sampler_mesh,
            thinking=self.backbone.thinking,
        )  # fmt: skip
        if config.rollout.slots % self.settings.queues:
            raise InputError(
                f"config.rollout.slots = {config.rollout.slots} must be a multiple of the {self.settings.queues} devices that "
                "share rows"
            )
        if set(self.mesh.devices.flat) <= set(jax.devices()):
            meshes.connect(self.mesh)

    def key(self, purpose: int, step: int = 0) -> jax.Array:
        """The random key of a purpose at a step; nothing else is random."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.config.seed), purpose), step)

    # ---- parameters, state

    @cached_property
    def param_shardings(self):
        return meshes.parameter_shardings(
            self.mesh, decoder.param_axes(self.model), decoder.abstract_params(self.model)
        )

    def _load(self, dtype) -> decoder.Params:
        return self.backbone.load(self.model, jnp.dtype(dtype), self.param_shardings, self.key(INIT))

    @cached_property
    def frozen(self) -> decoder.Params | None:
        """With LoRA, the model without its adapters, which no step changes; None without LoRA."""
        return self._load(self.config.lora.base_dtype) if self.lora else None

    def load_params(self) -> decoder.Params:
        """The model that training starts from, and the reference policy; with LoRA `frozen` itself, no copy of it."""
        return self.frozen if self.lora else self._load(self.config.model.param_dtype)

    @cached_property
    def base(self) -> dict[str, str | int]:
        """Origin and checksum of `frozen`, which checkpoints record because they do not hold it; {} if it is random or None."""
        if not (self.lora and self.backbone.checkpoint):
            return {}
        return {"base": self.backbone.checkpoint.origin, "base_checksum": int(lora.checksum(self.frozen))}

    def refuse_other_base(self, meta: dict) -> None:
        """InputError if the checkpoint with this `meta` was trained with other frozen weights than the ones loaded now."""
        if meta.get("base_checksum") != self.base.get("base_checksum"):
            raise InputError(
                f"config.model.checkpoint = {self.config.model.checkpoint!r}: its weights are not those that the run's LoRA "
                f"adapters were trained beside ({meta.get('base')}); put them back"
            )

    def policy(self, trained: decoder.Params) -> decoder.Params:
        """The whole model of a TrainState's `params`, for `logprobs` and `for_sampling`; nothing is copied."""
        return lora.join(self.frozen, trained)

    def init_state(self, params: decoder.Params) -> TrainState:
        """Step 0 from given parameters."""
        shardings = jax.tree.map(lambda s: s.sharding, self.abstract_state)
        return jax.jit(self._first_state, out_shardings=shardings)(params)

    def _first_state(self, params: decoder.Params) -> TrainState:
        state, config = init_state(self._initial(params), self.settings.learner), self.config
        if not self.settings.buffers:
            return state
        sizes = config.buffer.rows, config.data.max_prompt, config.rollout.max_response
        return state._replace(buffer=buffers.empty(*sizes))

    def _initial(self, params: decoder.Params) -> decoder.Params:
        """The trained parameters of step 0: a copy of the given ones (the state will be donated), or new adapters."""
        if self.lora is None:
            return jax.tree.map(jnp.copy, params)
        return lora.init(self.model, self.lora, self.key(ADAPT), jnp.dtype(self.config.model.param_dtype))

    @property
    def abstract_frozen(self) -> decoder.Params | None:
        """Shapes and shardings of `frozen`; None without LoRA."""
        if self.lora is None:
            return None
        shapes = decoder.abstract_params(self.model, jnp.dtype(self.config.lora.base_dtype))
        return _laid_out(shapes, self.param_shardings)

    @cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the TrainState, for restoring one."""
        given = decoder.abstract_params(self.model, self.config.model.param_dtype)
        shapes = jax.eval_shape(self._first_state, given)
        axes = lora.param_axes(self.model, shapes.params)
        trained = meshes.parameter_shardings(self.mesh, axes, shapes.params)
        shardings = meshes.state_shardings(self.mesh, shapes, trained)
        return _laid_out(shapes, shardings)

    # ---- the functions, compiled for the mesh; none is compiled before its first call

    @cached_property
    def _reshard(self):
        return jax.jit(partial(steps.for_sampling, settings=self.settings))

    @cached_property
    def _cast(self):
        return jax.jit(lambda x: x.astype(self.settings.sampler_model.compute_dtype))

    def for_sampling(self, params: decoder.Params) -> decoder.Params:
        """A model's parameters as `sample` takes them, once for all calls of a step. If trainer and sampler share a layout,
        arrays already in the sampler's dtype are not copied (LoRA's frozen weights, say)."""
        if self.config.rollout.tensor:
            return self._reshard(params)
        dtype = self.settings.sampler_model.compute_dtype
        return jax.tree.map(lambda x: x if x.dtype == dtype else self._cast(x), params)

    def abstract_sampler_params(self, params: decoder.Params) -> decoder.Params:
        """Shapes and shardings of the result of `for_sampling`; arrays that it does not copy are returned themselves."""
        if self.config.rollout.tensor:
            shapes = jax.eval_shape(partial(steps.for_sampling, settings=self.settings), params)
            axes = lora.param_axes(self.model, params)
            return _laid_out(shapes, meshes.parameter_shardings(self.sampler_mesh, axes, shapes))
        dtype = jnp.dtype(self.settings.sampler_model.compute_dtype)
        cast = partial(jax.ShapeDtypeStruct, dtype=dtype)
        return jax.tree.map(lambda x: x if x.dtype == dtype else cast(x.shape, sharding=x.sharding), params)

    @cached_property
    def _sample(self):
        bound = partial(steps.sample, settings=self.settings)
        return jax.jit(bound, static_argnames="sampling", out_shardings=meshes.rows(self.sampler_mesh))

    @cached_property
    def _begin(self):
        fixed = {"model": self.settings.sampler_model, "shard": self.settings.shard}
        return jax.jit(partial(begin, **fixed), static_argnames="settings")

    @cached_property
    def _advance(self):
        fixed = {"model": self.settings.sampler_model, "shard": self.settings.shard}
        return jax.jit(partial(advance, **fixed), static_argnames=("width", "settings"))

    @cached_property
    def _on_device(self) -> StepSettings:
        """`settings` for checks on the device. InputError for a tokenizer whose tokens cannot be read as bytes."""
        width = self.config.rollout.max_response * min(self.token_bytes.longest, _BYTES_PER_TOKEN)
        return dataclasses.replace(self.settings, text_width=width)

    @cached_property
    def _check(self):
        return jax.jit(partial(steps.check, settings=self._on_device), out_shardings=meshes.rows(self.mesh))

    @cached_property
    def _logprobs(self):
        return jax.jit(partial(response_logprobs, **self.settings.learning), out_shardings=meshes.rows(self.mesh))

    @cached_property
    def _update(self):
        bound, outputs = partial(update, **self.settings.learning), (self._state_shardings, self._whole)
        return jax.jit(bound, donate_argnums=0, out_shardings=outputs)

    @cached_property
    def _learn(self):
        bound, outputs = partial(steps.learn, settings=self.settings), (self._state_shardings, self._whole, self._whole)
        return jax.jit(bound, donate_argnums=0, out_shardings=outputs)

    @cached_property
    def _whole_step(self):
        rows = meshes.rows(self.mesh)
        outputs = self._state_shardings, self._whole, self._whole, rows, rows
        return jax.jit(partial(steps.whole_step, settings=self._on_device), donate_argnums=0, out_shardings=outputs)

    @property
    def _whole(self):
        return meshes.replicated(self.mesh)

    @property
    def _state_shardings(self):
        return jax.tree.map(lambda s: s.sharding, self.abstract_state)

    @property
    def jitted(self) -> dict[str, Any]:
        """The compiled functions of a step by name, and the parts of `learn` that have work to do."""
        return {
            "reshard": self._reshard, "sample": self._sample, "learn": self._learn, "logprobs": self._logprobs,
            "update": self._update,
        }  # fmt: skip

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """The bytes that each token adds to a text. InputError for a tokenizer whose tokens cannot be read as bytes."""
        return token_bytes(self.backbone.tokenizer, self.model.vocab_size)

    @cached_property
    def _table(self) -> TokenBytes:
        """`token_bytes` on the devices, where every step needs them."""
        return meshes.put(self._whole, self.token_bytes)

    # ---- the host's side

    def _rows(self, tree):
        return meshes.put_rows(self.mesh, tree)

    def fetch(self, tree):
        """NumPy of arrays on the mesh, the whole of them in every process."""
        return meshes.fetch(self.mesh, tree)

    def _check_lengths(self, rows: Sequence[Encoded]) -> None:
        limit = self.config.data.max_prompt
        for row in rows:
            if row.longest > limit:
                raise InputError(
                    f"{row.instruction.source}: the prompt takes {row.longest} tokens and config.data.max_prompt is {limit}: "
                    f"give --config.data.max_prompt={row.longest} or more, or leave the row out"
                )

    def prompts(self, rows: Sequence[Encoded], shapes: PartShapes) -> PromptBatch:
        """NumPy PromptBatch in the smallest prompt bucket that holds every rewriting of the rows."""
        data = self.config.data
        self._check_lengths(rows)
        columns = bucket(max(r.longest for r in rows), data.prompt_buckets, data.max_prompt)
        return prompt_batch(rows, shapes, columns, self.settings.pad_id)

    def sample(self, params, prompts: PromptBatch, rows: np.ndarray, key, sampling: Sampling) -> Rollout:
        """NumPy Rollout of rows.size responses; params: `for_sampling`; rows: i32[N, S], ids that choose each row's noise."""
        given = prompts.tokens, prompts.length, rows.astype(np.int32)
        tokens, length, rows = meshes.put_rows(self.sampler_mesh, given)
        with jax.set_mesh(self.sampler_mesh):
            return meshes.fetch(self.sampler_mesh, self._sample(params, tokens, length, rows, key, sampling=sampling))

    def sample_in_parts(
        self, params, prompts: PromptBatch, rows: np.ndarray, key, sampling: Sampling
    ) -> Iterator[tuple[Rollout, np.ndarray]]:
        """The same Rollout after each of `rollout.response_buckets`, as soon as it is there, with the rows that are complete
        since the one before, bool[B]. The devices go on decoding meanwhile: all parts are asked for at once."""
        if self.config.rollout.slots or self.config.rollout.cache_bytes or self.config.rollout.tensor:
            whole = self.sample(params, prompts, rows, key, sampling)
            yield whole, np.ones(rows.size, bool)
            return
        arrays = self._rows((prompts.tokens, prompts.length, rows.astype(np.int32)))
        with jax.set_mesh(self.mesh):
            context, progress, cache = self._begin(params, *arrays, key, settings=sampling)
            parts = []
            for width in sampling.all_widths:
                progress, cache = self._advance(context, progress, cache=cache, width=width, settings=sampling)
                parts.append(meshes.gather(self.mesh, finished(progress)))
        del context, progress, cache
        before = np.zeros(rows.size, bool)
        for i, part in enumerate(parts):
            part = jax.device_get(part)
            complete = part.ended | (i == len(parts) - 1)
            yield part, complete & ~before
            before = complete

    def logprobs(self, params, tokens, prompt_length, response_mask) -> np.ndarray:
        """Log-probs f32[B, R] of responses under `params`."""
        arrays = self._rows((tokens, prompt_length, response_mask))
        with jax.set_mesh(self.mesh):
            return self.fetch(self._logprobs(params, *arrays))

    def is_finite(self, params, prompts: PromptBatch) -> bool:
        """Whether a policy gives finite log-probs, tried on one token after each prompt, in the shapes of a step."""
        columns = prompts.tokens.shape[1]
        tokens = np.full(
            (len(prompts.tokens), columns + self.config.rollout.max_response), self.settings.pad_id, np.int32
        )
        tokens[:, :columns] = prompts.tokens
        mask = np.zeros((len(tokens), self.config.rollout.max_response), bool)
        mask[:, 0] = True
        given = tokens, np.minimum(prompts.length, _PROBE_TOKENS), mask
        logp = self.logprobs(params, *(np.repeat(x, self.settings.samples, axis=0) for x in given))
        return bool(np.isfinite(logp).all())

    def check(self, conditions: Conditions, rollout: Rollout) -> Verdicts:
        """NumPy Verdicts of what can be decided on the device; conditions: of the N prompts."""
        conditions, tokens, mask = self._rows((conditions, rollout.tokens, rollout.mask))
        with jax.set_mesh(self.mesh):
            return self.fetch(self._check(self._table, conditions, tokens, mask))

    def learn(
        self,
        state: TrainState,
        ref_params,
        prompts: PromptBatch,
        rollout: Rollout,
        verdicts: Verdicts,
        rounds: int,
        step: int,
    ) -> tuple[TrainState, dict[str, float], Replays]:
        """`step.learn` in the step after `step`; `state` is donated."""
        given = *self._rows((prompts, rollout, verdicts)), np.int32(rounds), self.key(SELECT, step)
        with jax.set_mesh(self.mesh):
            state, *rest = self._learn(state, self.frozen, ref_params, *given)
        metrics, replays = self.fetch(rest)
        return state, {name: float(value) for name, value in metrics.items()}, replays

    def whole_step(
        self, state: TrainState, ref_params, prompts: PromptBatch, conditions: Conditions, step: int
    ) -> tuple[TrainState, dict[str, float], Replays, Rollout, Verdicts]:
        """`step.whole_step`; `state` is donated."""
        prompts, conditions = self._rows((prompts, conditions))
        keys = self.key(SAMPLE, step), self.key(SELECT, step)
        with jax.set_mesh(self.mesh):
            state, *rest = self._whole_step(state, self.frozen, ref_params, prompts, self._table, conditions, *keys)
        metrics, *seen = self.fetch(rest)
        return state, {name: float(value) for name, value in metrics.items()}, *seen

    def update(self, state: TrainState, batch: TrainBatch) -> tuple[TrainState, dict[str, float]]:
        """One training step; `state` is donated."""
        batch = self._rows(batch)
        with jax.set_mesh(self.mesh):
            state, metrics = self._update(state, batch, self.frozen)
        return state, {name: float(value) for name, value in jax.device_get(metrics).items()}

    def respond(
        self, params, rows: Sequence[Encoded], temperature: float, samples: int = 1, progress=lambda done: None
    ) -> Rollout:
        """`samples` responses to each row, in order, greedy at temperature 0; at most `config.data.eval_batch` at a time.
        `progress` is called with the number of rows done. params: a `policy`."""
        self._check_lengths(rows)  # all of them before the first is answered
        params = self.for_sampling(params)
        together = min(samples, self.config.data.eval_batch)  # of one prompt
        size = max(1, self.config.data.eval_batch // together)
        sampling, found = self.settings.sampling(temperature), []
        for start in range(0, len(rows), size):
            part = list(rows[start : start + size])
            padded = part + [part[0]] * (size - len(part))  # one shape for all
            ids = np.arange(start * samples, (start + size) * samples).reshape(size, samples)
            prompts, several = self.prompts(padded, PartShapes.of(padded, max(len(r.segments) for r in padded))), []
            for first in range(0, samples, together):  # the last may repeat some: one shape for all
                some = ids[:, np.minimum(np.arange(first, first + together), samples - 1)]
                rollout = self.sample(params, prompts, some, self.key(EVALUATE), sampling)
                several.append(jax.tree.map(lambda x: x.reshape(size, together, *x.shape[1:]), rollout))
            whole = jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :samples], *several)
            found.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), whole))
            progress(start + len(part))
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(rows) * samples], *found)
