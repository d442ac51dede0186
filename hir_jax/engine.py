"""A config's model and tokenizer, and the host's side of its compiled functions: arrays in, NumPy out.

Programs talk to the device through an Engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hir_jax import fused
from hir_jax.constraints import on_device, responses
from hir_jax.functions import EVALUATE, INIT, SAMPLE, SELECT, Functions
from hir_jax.instructions import lexicon
from hir_jax.instructions.roles import Encoded, PartShapes, chat_frame, prompt_batch
from hir_jax.learner.update import init_state
from hir_jax.models import decoder, hf, lora
from hir_jax.models.checkpoint import open_checkpoint
from hir_jax.models.config import ModelConfig
from hir_jax.models.tokenizer import ids_of, read_tokenizer, warn_of_unused_ends
from hir_jax.parallel import mesh as meshes
from hir_jax.pathflags import expanded
from hir_jax.rollout.sample import Sampling, finished
from hir_jax.types import InputError, PromptBatch, Replays, Rollout, TrainBatch, TrainState, Verdicts

_BYTES_PER_TOKEN = 8  # room for text on the device; English has 3 to 5
_PROBE_TOKENS = 32  # of a prompt's end, to see whether a policy gives finite log-probs


def bucket(length: int, buckets: Sequence[int], longest: int) -> int:
    """The smallest of `buckets` (and `longest`) that holds `length` columns."""
    return min(b for b in (*buckets, longest) if b >= length)


def _random_model(config, words: int) -> ModelConfig:
    m = config.model
    return ModelConfig(
        family="llama", vocab_size=words, hidden_size=m.hidden_size,
        intermediate_size=m.intermediate_size, num_layers=m.num_layers, num_heads=m.num_heads,
        num_kv_heads=m.num_heads, head_dim=m.hidden_size // m.num_heads,
        max_position=config.data.max_prompt + config.rollout.max_response,
    )  # fmt: skip


class Engine(Functions):
    """Model, tokenizer and compiled functions."""

    def __init__(self, config, devices=None):
        self._checkpoint = open_checkpoint(config.model.checkpoint) if config.model.checkpoint else None
        if self._checkpoint:
            self.tokenizer = self._checkpoint.tokenizer
            stop_ids = tuple(self._checkpoint.stop_ids)
            model = self._checkpoint.config
        else:
            name = expanded(config.model.tokenizer)
            self.tokenizer = lexicon.build_tokenizer() if name == "lexicon" else read_tokenizer(Path(name))
            if self.tokenizer.eos_token_id is None:
                raise InputError(
                    f"config.model.tokenizer = {name!r}: it names no eos_token, with which a response ends"
                )
            stop_ids = (self.tokenizer.eos_token_id,)
            model = _random_model(config, ids_of(self.tokenizer))
        m = config.model
        self.frame = chat_frame(self.tokenizer, m.chat_template_args.to_dict(), m.system_prompt)
        warn_of_unused_ends(self.tokenizer, self.frame.chat.end_of_turn, stop_ids)
        pad = self.tokenizer.pad_token_id
        super().__init__(config, model, stop_ids, stop_ids[0] if pad is None else pad, devices)
        meshes.connect(self.mesh)
        self.reward_settings = {
            "fractional": config.method in ("clr", "hir_clr"),
            "successes_only": config.method == "rft",
            "mask_truncated": config.learner.mask_truncated,
        }

    @property
    def end_id(self) -> int:
        """The token that ends a response in supervised pairs: the one that ends a turn in the chat template, or the first stop id
        where neither the template nor the tokenizer has one."""
        found = self.frame.chat.end_of_turn
        return self.stop_ids[0] if found is None else found

    @property
    def kept(self) -> hf.Kept:
        """What the checkpoint's configs say of sampling, to be written again with the trained model."""
        return self._checkpoint.kept if self._checkpoint else hf.Kept(self.tokenizer.bos_token_id)

    # ---- parameters, state

    def _load(self, dtype) -> decoder.Params:
        """The checkpoint's parameters, straight to their shards; random ones if the config names none."""
        dtype = jnp.dtype(dtype)
        if self._checkpoint:
            return self._checkpoint.load_params(dtype, self.param_shardings)
        make = jax.jit(decoder.init, static_argnums=(0, 2), out_shardings=self.param_shardings)
        return make(self.model, self.key(INIT), dtype)

    @cached_property
    def frozen(self) -> decoder.Params | None:
        """The model that LoRA's adapters stand beside, which no step changes; None without LoRA."""
        return self._load(self.config.lora.base_dtype) if self.lora else None

    def load_params(self) -> decoder.Params:
        """The model that training starts from, and the reference policy; with LoRA `frozen` itself, no copy of it."""
        return self.frozen if self.lora else self._load(self.config.model.param_dtype)

    @cached_property
    def base(self) -> dict[str, str | int]:
        """Where `frozen` is from, and its checksum, for checkpoints, which do not hold it. {} where it is random or None."""
        if not (self.lora and self._checkpoint):
            return {}
        return {"base": self._checkpoint.origin, "base_checksum": int(lora.checksum(self.frozen))}

    def refuse_other_base(self, meta: dict) -> None:
        """InputError if the checkpoint that `meta` is of was trained beside other frozen weights than are here now."""
        if meta.get("base_checksum") != self.base.get("base_checksum"):
            raise InputError(
                f"config.model.checkpoint = {self.config.model.checkpoint!r}: its weights are not those that the run's LoRA "
                f"adapters were trained beside ({meta.get('base')}); put them back"
            )

    def policy(self, trained: decoder.Params) -> decoder.Params:
        """The whole model of a TrainState's `params`, for `score` and `for_sampling`; nothing is copied."""
        return lora.join(self.frozen, trained)

    def init_state(self, params: decoder.Params) -> TrainState:
        """Step 0 from given parameters."""
        shardings = jax.tree.map(lambda s: s.sharding, self.abstract_state)
        make = jax.jit(lambda p: init_state(self._initial(p), self.settings), out_shardings=shardings)
        return make(params)

    # ---- verification on the device, and whole steps there

    @cached_property
    def token_bytes(self) -> on_device.TokenBytes:
        """What each token adds to a text. InputError for a tokenizer of which that cannot be said."""
        return on_device.token_bytes(self.tokenizer, self.model.vocab_size)

    @cached_property
    def _table(self) -> on_device.TokenBytes:
        """The same on the devices, where every step needs it."""
        return meshes.put(meshes.replicated(self.mesh), self.token_bytes)

    @cached_property
    def _text_width(self) -> int:
        """Bytes of a response that are looked at; a longer text is left to the host."""
        return self.config.rollout.max_response * min(self.token_bytes.longest, _BYTES_PER_TOKEN)

    @property
    def _thinking(self) -> bool | None:
        """As `on_device.verify` wants it."""
        return self.frame.thinks if self.config.model.strip_thinking else None

    @cached_property
    def _verify(self):
        fixed = {"width": self._text_width, "thinking": self._thinking}
        return jax.jit(partial(on_device.verify, **fixed), out_shardings=meshes.rows(self.mesh))

    @cached_property
    def _train_step(self):
        plan = fused.Plan(
            self._sampler, self.model, self.settings, self.rollout_sampling, self.replays, self._selection, self.reward_settings,
            self.first_samples, self.samples, self._text_width, self._thinking, self.shard, meshes.row_devices(self.mesh),
        )  # fmt: skip
        state = jax.tree.map(lambda s: s.sharding, self.abstract_state)
        whole, rows = meshes.replicated(self.mesh), meshes.rows(self.mesh)
        return jax.jit(
            partial(fused.train_step, plan=plan), donate_argnums=0, out_shardings=(state, whole, rows, rows, whole)
        )

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
        return prompt_batch(rows, shapes, columns, self.pad_id)

    def sample(self, params, prompts: PromptBatch, rows: np.ndarray, key, settings: Sampling) -> Rollout:
        """NumPy Rollout of rows.size responses; params: `for_sampling`; rows: i32[N, S], ids that choose each row's noise."""
        given = prompts.tokens, prompts.length, rows.astype(np.int32)
        tokens, length, rows = meshes.put_rows(self.sampler_mesh, given)
        with jax.set_mesh(self.sampler_mesh):
            return meshes.fetch(self.sampler_mesh, self._sample(params, tokens, length, rows, key, settings=settings))

    def sample_in_parts(
        self, params, prompts: PromptBatch, rows: np.ndarray, key, settings: Sampling
    ) -> Iterator[tuple[Rollout, np.ndarray]]:
        """The same Rollout after each of `rollout.response_buckets`, as soon as it is there, with the rows that are complete
        since the one before, bool[B]. The devices go on decoding meanwhile: all parts are asked for at once."""
        if self.config.rollout.slots or self.config.rollout.cache_bytes or self.config.rollout.tensor:
            whole = self.sample(params, prompts, rows, key, settings)
            yield whole, np.ones(rows.size, bool)
            return
        arrays = self._rows((prompts.tokens, prompts.length, rows.astype(np.int32)))
        with jax.set_mesh(self.mesh):
            context, progress, cache = self._begin(params, *arrays, key, settings=settings)
            parts = []
            for width in settings.all_widths:
                progress, cache = self._advance(context, progress, cache=cache, width=width, settings=settings)
                parts.append(meshes.gather(self.mesh, finished(progress)))
        del context, progress, cache
        before = np.zeros(rows.size, bool)
        for i, part in enumerate(parts):
            part = jax.device_get(part)
            complete = part.ended | (i == len(parts) - 1)
            yield part, complete & ~before
            before = complete

    def score(self, params, tokens, prompt_length, response_mask) -> np.ndarray:
        """Log-probs f32[B, R] of responses under `params`."""
        arrays = self._rows((tokens, prompt_length, response_mask))
        with jax.set_mesh(self.mesh):
            return self.fetch(self._score(params, *arrays))

    def is_finite(self, params, prompts: PromptBatch) -> bool:
        """Whether a policy gives finite log-probs: of one token behind the end of each prompt. Shapes are those of a step."""
        columns = prompts.tokens.shape[1]
        tokens = np.full((len(prompts.tokens), columns + self.config.rollout.max_response), self.pad_id, np.int32)
        tokens[:, :columns] = prompts.tokens
        mask = np.zeros((len(tokens), self.config.rollout.max_response), bool)
        mask[:, 0] = True
        given = tokens, np.minimum(prompts.length, _PROBE_TOKENS), mask
        logp = self.score(params, *(np.repeat(x, self.samples, axis=0) for x in given))
        return bool(np.isfinite(logp).all())

    def relabel(
        self,
        prompts: PromptBatch,
        rollout: Rollout,
        ref_logp,
        importance,
        reward,
        weight,
        verdicts: Verdicts,
        replays: Replays,
    ) -> TrainBatch:
        """The TrainBatch, on device, of B = N * samples slots."""
        arrays = self._rows(
            (prompts.tokens, prompts.length, prompts.parts, rollout, ref_logp, importance, reward, weight, verdicts)
        )
        with jax.set_mesh(self.mesh):
            return self._relabel(*arrays, replays)

    def pairs(self, prompts: PromptBatch, rollout: Rollout, verdicts: Verdicts, replays: Replays) -> TrainBatch:
        """Preference pairs for DPO, on device; reference log-probs are still 0."""
        arrays = self._rows((prompts, rollout, verdicts))
        with jax.set_mesh(self.mesh):
            return self._pairs(*arrays, replays)

    def select(self, rollout: Rollout, verdicts: Verdicts, step: int, rounds: int) -> Replays:
        """Which of B = N * samples slots are replayed in the step after `step`; `rounds`: e of `select.missing_rounds`."""
        key = self.key(SELECT, step)
        return jax.device_get(self._select(rollout, verdicts, np.int32(step), key, rounds=np.int32(rounds)))

    def verify(self, conditions: on_device.Conditions, rollout: Rollout) -> Verdicts:
        """NumPy Verdicts of what can be decided on the device; conditions: of the N prompts."""
        conditions, tokens, mask = self._rows((conditions, rollout.tokens, rollout.mask))
        with jax.set_mesh(self.mesh):
            return self.fetch(self._verify(self._table, conditions, tokens, mask))

    def train_step(
        self, state: TrainState, ref_params, prompts: PromptBatch, conditions: on_device.Conditions, step: int
    ) -> tuple[TrainState, dict[str, float], Rollout, Verdicts, Replays]:
        """`fused.train_step`; `state` is donated."""
        prompts, conditions = self._rows((prompts, conditions))
        keys = self.key(SAMPLE, step), self.key(SELECT, step)
        with jax.set_mesh(self.mesh):
            state, *rest = self._train_step(state, ref_params, prompts, conditions, self._table, *keys, self.frozen)
        metrics, *seen = self.fetch(rest)
        return state, {name: float(value) for name, value in metrics.items()}, *seen

    def update(self, state: TrainState, batch: TrainBatch) -> tuple[TrainState, dict[str, float]]:
        """One training step; `state` is donated."""
        batch = self._rows(batch)
        with jax.set_mesh(self.mesh):
            state, metrics = self._update(state, batch, self.frozen)
        return state, {name: float(value) for name, value in jax.device_get(metrics).items()}

    # ---- text

    def texts(self, rollout: Rollout) -> list[str]:
        """Responses as text, special tokens stripped; "" for empty slots."""
        return responses.decode(
            self.tokenizer, [row[mask] for row, mask in zip(rollout.tokens, rollout.mask, strict=True)]
        )

    def answers(self, rollout: Rollout) -> list[str]:
        """The texts that are checked: with `model.strip_thinking` without the reasoning before an answer."""
        texts, begun = self.texts(rollout), self.frame.thinks
        return [responses.without_thinking(t, begun) for t in texts] if self.config.model.strip_thinking else texts

    def respond(
        self, params, rows: Sequence[Encoded], temperature: float, samples: int = 1, progress=lambda done: None
    ) -> Rollout:
        """`samples` responses to each row, in order, greedy at temperature 0; at most `config.data.eval_batch` at a time.
        `progress` is called with the number of rows done. params: a `policy`."""
        self._check_lengths(rows)  # all of them before the first is answered
        params = self.for_sampling(params)
        together = min(samples, self.config.data.eval_batch)  # of one prompt
        size = max(1, self.config.data.eval_batch // together)
        settings, found = self.sampling(temperature), []
        for start in range(0, len(rows), size):
            part = list(rows[start : start + size])
            padded = part + [part[0]] * (size - len(part))  # one shape for all
            ids = np.arange(start * samples, (start + size) * samples).reshape(size, samples)
            prompts, several = self.prompts(padded, PartShapes.of(padded, max(len(r.segments) for r in padded))), []
            for first in range(0, samples, together):  # the last may repeat some: one shape for all
                some = ids[:, np.minimum(np.arange(first, first + together), samples - 1)]
                rollout = self.sample(params, prompts, some, self.key(EVALUATE), settings)
                several.append(jax.tree.map(lambda x: x.reshape(size, together, *x.shape[1:]), rollout))
            whole = jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :samples], *several)
            found.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), whole))
            progress(start + len(part))
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(rows) * samples], *found)
