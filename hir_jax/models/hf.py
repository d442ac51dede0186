"""Hugging Face model directories: config.json, generation_config.json, safetensors, tokenizer. Read and written.

Nothing in a directory is run or unpickled: weights come from safetensors only, and trust_remote_code is never set.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hir_jax import textfiles
from hir_jax.models import decoder, weights
from hir_jax.models.config import FAMILIES, ModelConfig, RopeScaling
from hir_jax.models.weights import HF_NAMES, CheckpointError, Index

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError naming the file (and line)."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; a Hugging Face model directory has one")
    try:
        found = textfiles.read_json(path)
    except textfiles.RowError as error:
        raise CheckpointError(f"{error}; download the file again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, not an object; download the file again")
    return found


# ---- config ------------------------------------------------------------------------------------------------------


def _rope(raw: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """theta and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = rope.get("rope_theta", raw.get("rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise CheckpointError(f"{where}: rope type {kind!r} is not supported, only 'default' and 'llama3'")
    fields = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [field for field in fields if field not in rope]
    if missing:
        raise CheckpointError(f"{where}: llama3 rope scaling lacks {', '.join(missing)}")
    return float(theta), RopeScaling(*(float(rope[field]) for field in fields[:3]), int(rope[fields[3]]))


def _refuse_unsupported(raw: Mapping[str, Any], where: str) -> None:
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(f"{where}: model_type {family!r} is not supported, only {', '.join(FAMILIES)}")
    unsupported = {
        "sliding window attention": raw.get("use_sliding_window")
        or any(kind != "full_attention" for kind in raw.get("layer_types") or ()),
        f"hidden_act {raw.get('hidden_act')!r}": raw.get("hidden_act", "silu") != "silu",
        "mlp_bias": raw.get("mlp_bias"),
        # For these two families transformers puts a bias on the output projection too; Qwen2 never asks for this key.
        "attention_bias": family != "qwen2" and raw.get("attention_bias"),
        "partial_rotary_factor": float(raw.get("partial_rotary_factor") or 1.0) != 1.0,
        "quantization_config": raw.get("quantization_config"),
    }
    for feature, present in unsupported.items():
        if present:
            raise CheckpointError(f"{where}: {feature} is not supported by this decoder; choose another checkpoint")


def parse_config(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """The ModelConfig of a config.json. where: the file, for messages. Raises CheckpointError by feature's name."""
    _refuse_unsupported(raw, where)
    required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    missing = [key for key in required if not isinstance(raw.get(key), int)]
    if missing:
        raise CheckpointError(f"{where}: lacks {', '.join(missing)}; is this the config.json of a language model?")
    family, heads = raw["model_type"], raw["num_attention_heads"]
    head_dim = raw.get("head_dim") or (128 if family == "qwen3" else raw["hidden_size"] // heads)
    theta, scaling = _rope(raw, where)
    try:
        return ModelConfig(
            family=family,
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            rope_theta=theta,
            rope_scaling=scaling,
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            max_position=raw.get("max_position_embeddings", 2048),
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None


def config_json(config: ModelConfig, stop_ids: Sequence[int], pad_id: int | None, dtype: str) -> dict[str, Any]:
    """A config.json that transformers 4 and 5 read (5 turns the rope keys of 4 into its own)."""
    raw = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_position,
        "eos_token_id": list(stop_ids),
        "pad_token_id": pad_id,
        "dtype": dtype,
    }
    scaling = config.rope_scaling
    if scaling is not None:
        raw["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    return raw


def read_stop_ids(directory: Path) -> tuple[int, ...]:
    """The ids that end a response: `eos_token_id` (one or a list) of generation_config.json, else of config.json."""
    generation = directory / "generation_config.json"
    for path in (generation, directory / "config.json"):
        found = read_json(path).get("eos_token_id") if path.exists() else None
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    raise CheckpointError(f"{generation}: no eos_token_id here or in config.json; add one, sampling must know its end")


def read_tokenizer(directory: Path):
    """The tokenizer of a directory, with its chat template (transformers' AutoTokenizer, no code of the directory)."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{directory}: its tokenizer does not load ({error}); the directory needs tokenizer.json and "
            "tokenizer_config.json"
        ) from None


# ---- weights -----------------------------------------------------------------------------------------------------


class SafetensorsSource:
    """The tensors of a directory's model.safetensors, or of the shards its index names, read slice by slice."""

    def __init__(self, directory: Path):
        self.path = str(directory)
        self._handles = {}
        self._file_of: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        index = directory / INDEX
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(f"{index}: has no weight_map; download the file again")
            files = sorted(set(weight_map.values()))
        else:
            files = [WEIGHTS]
        for name in files:
            self._open(directory / name)
        if index.exists():
            lacking = [name for name, file in weight_map.items() if self._file_of.get(name) != file]
            if lacking:
                shown = ", ".join(lacking[: weights.SHOWN])
                raise CheckpointError(f"{index}: tensors not in the file it names: {shown}; download both again")

    def _open(self, path: Path) -> None:
        if not path.exists():
            pickled = sorted(p.name for p in path.parent.glob("*.bin"))
            hint = f"; {pickled[0]} is a pickle, which is never read: convert it" if pickled else ""
            raise CheckpointError(f"{path}: no such file; download it{hint}")
        try:
            handle = safe_open(str(path), framework="numpy")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: not a whole safetensors file ({error}); it is truncated or no such file: download it again"
            ) from None
        self._handles[path.name] = handle
        for name in handle.keys():  # noqa: SIM118 (not a dict)
            self._file_of[name] = path.name
            self.shapes[name] = tuple(handle.get_slice(name).get_shape())

    def read(self, name: str, index: Index) -> np.ndarray:
        return self._handles[self._file_of[name]].get_slice(name)[index]


def ignorable(config: ModelConfig):
    """Tensors that some checkpoints hold beside the parameters: rotary tables, and a tied output matrix."""

    def ignored(name: str) -> bool:
        return name.endswith("rotary_emb.inv_freq") or (config.tie_embeddings and name == HF_NAMES["unembed"])

    return ignored


def load_params(path: str | Path, config: ModelConfig, param_dtype="float32", shardings=None) -> decoder.Params:
    """The parameters in a directory, straight to their shards (see weights.load_tree). Raises CheckpointError."""
    source = SafetensorsSource(Path(path))
    return weights.load_tree(config, source, HF_NAMES, ignorable(config), param_dtype, shardings)


# ---- hub ---------------------------------------------------------------------------------------------------------


def is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def download(hub_id: str) -> Path:
    """The local directory of a hub model: safetensors, configs and tokenizer files only. Raises CheckpointError."""
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


# ---- writing -----------------------------------------------------------------------------------------------------


def _write_weights(path: Path, config: ModelConfig, params: decoder.Params, dtype: str, shard_bytes: int) -> None:
    """One model.safetensors, or shards of at most `shard_bytes` (or one tensor) each and an index."""
    shards: list[list[str]] = [[]]
    sizes = [0]
    for name, shape in weights.expected_shapes(config, HF_NAMES).items():
        size = weights.byte_size(shape, dtype)
        if shards[-1] and sizes[-1] + size > shard_bytes:
            shards.append([])
            sizes.append(0)
        shards[-1].append(name)
        sizes[-1] += size
    files = [WEIGHTS]
    if len(shards) > 1:
        files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    tensors = weights.named_tensors(config, params, HF_NAMES, dtype)
    for file, names in zip(files, shards, strict=True):  # both run through the tree in the same order
        save_file(dict(next(tensors) for _ in names), path / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(path / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map})


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def refuse_filled(path: Path) -> None:
    """Raises CheckpointError unless a directory may be written there: nothing is there, or an empty one."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path}: exists and is not empty; nothing is overwritten, name another directory")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which is named `path` only when that is done. Raises CheckpointError (`refuse_filled`), and OSError
    where something cannot be written; nothing stays then."""
    refuse_filled(path)
    unfinished = path.with_name(path.name + ".unfinished")
    if unfinished.exists():
        raise CheckpointError(f"{unfinished}: left by a save that was cut off; remove it")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        code = re.search(r"os error (\d+)", str(error))  # so say the libraries that write weights and tokenizers
        if not code:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    if path.exists():
        path.rmdir()
    unfinished.rename(path)


def save(
    path: str | Path,
    config: ModelConfig,
    params: decoder.Params,
    tokenizer,
    stop_ids: Sequence[int],
    dtype: str = "float32",
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a directory that transformers loads: config, weights in `dtype` (LoRA adapters merged in float32), generation
    config, tokenizer.

    tokenizer: a transformers tokenizer, or None for weights and configs alone. The directory must not exist or be
    empty; it appears only when complete. Raises CheckpointError.
    """
    with new_directory(Path(path)) as unfinished:
        pad_id = None if tokenizer is None else tokenizer.pad_token_id
        if tokenizer is not None:
            tokenizer.save_pretrained(str(unfinished))
        write_json(unfinished / "config.json", config_json(config, stop_ids, pad_id, dtype))
        generation = {"eos_token_id": list(stop_ids)} | ({} if pad_id is None else {"pad_token_id": pad_id})
        write_json(unfinished / "generation_config.json", generation)
        _write_weights(unfinished, config, params, dtype, shard_bytes)
