"""Opens the model that a run starts from, as its config's `model` group says: shape, tokenizer, chat template and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from hir_jax import paths
from hir_jax.checks import responses
from hir_jax.data.chat_frame import ChatFrame, chat_frame
from hir_jax.data.generate.tiny import lexicon
from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.model.files import hf_config
from hir_jax.model.files.checkpoint import Checkpoint, open_checkpoint
from hir_jax.model.files.tokenizer import ids_of, read_tokenizer, warn_of_unused_ends
from hir_jax.pathflags import expanded
from hir_jax.types import InputError, Rollout


@dataclass(frozen=True)
class Backbone:
    """A model with its tokenizer. `tokenizer`, `frame` and `checkpoint` are None if only shapes are needed (`hir_jax.aot`)."""

    model: ModelConfig
    stop_ids: tuple[int, ...]  # any of them ends a response
    pad_id: int
    tokenizer: Any = None  # a transformers tokenizer
    frame: ChatFrame | None = None
    checkpoint: Checkpoint | None = None  # None: random parameters
    strip_thinking: bool = True

    @property
    def end_id(self) -> int:
        """The token that ends a response in supervised pairs: the one that ends a turn (`Chat.end_of_turn`), or the first stop id
        if there is none."""
        found = self.frame.chat.end_of_turn
        return self.stop_ids[0] if found is None else found

    @property
    def kept(self) -> hf_config.Kept:
        """The begin token and sampling defaults of the checkpoint, to be written with the trained model."""
        return self.checkpoint.kept if self.checkpoint else hf_config.Kept(self.tokenizer.bos_token_id)

    @property
    def thinking(self) -> bool | None:
        """Whether the chat template opens `<think>` before a response; None if reasoning is checked like the rest."""
        return self.frame.thinks if self.frame and self.strip_thinking else None

    def load(self, model: ModelConfig, dtype, shardings, key: jax.Array) -> decoder.Params:
        """The checkpoint's parameters, or random ones from `key` if there is none, created in their shards."""
        if self.checkpoint:
            return self.checkpoint.load_params(dtype, shardings)
        return jax.jit(decoder.init, static_argnums=(0, 2), out_shardings=shardings)(model, key, dtype)

    def texts(self, rollout: Rollout) -> list[str]:
        """Responses as text without special tokens; "" for empty slots."""
        tokens: Sequence[np.ndarray] = [row[mask] for row, mask in zip(rollout.tokens, rollout.mask, strict=True)]
        return responses.decode(self.tokenizer, tokens)

    def answers(self, rollout: Rollout) -> list[str]:
        """The texts to check: responses, with `model.strip_thinking` without the reasoning before the answer."""
        texts = self.texts(rollout)
        if not self.strip_thinking:
            return texts
        return [responses.without_thinking(text, self.frame.thinks) for text in texts]


def open_backbone(config) -> Backbone:
    """The checkpoint that the config names, or a random model of the shape in `config.model`. Reads no weights."""
    m = config.model
    if m.checkpoint:
        checkpoint = open_checkpoint(m.checkpoint)
        tokenizer, stop_ids, model = checkpoint.tokenizer, tuple(checkpoint.stop_ids), checkpoint.config
    else:
        name, checkpoint = expanded(m.tokenizer), None
        tokenizer = lexicon.build_tokenizer() if name == "lexicon" else read_tokenizer(paths.local_copy(name))
        if tokenizer.eos_token_id is None:
            raise InputError(f"config.model.tokenizer = {name!r}: it names no eos_token, with which a response ends")
        stop_ids, model = (tokenizer.eos_token_id,), _random_model(config, ids_of(tokenizer))
    frame = chat_frame(tokenizer, m.chat_template_args.to_dict(), m.system_prompt)
    warn_of_unused_ends(tokenizer, frame.chat.end_of_turn, stop_ids)
    pad_id = stop_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Backbone(model, stop_ids, pad_id, tokenizer, frame, checkpoint, m.strip_thinking)


def _random_model(config, words: int) -> ModelConfig:
    m = config.model
    return ModelConfig(
        family="llama", vocab_size=words, hidden_size=m.hidden_size,
        intermediate_size=m.intermediate_size, num_layers=m.num_layers, num_heads=m.num_heads,
        num_kv_heads=m.num_heads, head_dim=m.hidden_size // m.num_heads,
        max_position=config.data.max_prompt + config.rollout.max_response,
    )  # fmt: skip
