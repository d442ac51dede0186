"""config.json and generation_config.json of Hugging Face model directories."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hir_jax import textfiles
from hir_jax.model.config import FAMILIES, ModelConfig, RopeScaling
from hir_jax.model.files.weights import CheckpointError, refuse_lfs_pointer

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# Keys of config.json and of its llama3 rope scaling -> fields of ModelConfig and RopeScaling
_SIZES = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size", "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads",
}  # fmt: skip
_SCALING = {
    "factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_position",
}  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError that names the file and, if known, the line."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; a Hugging Face model directory has one")
    try:
        refuse_lfs_pointer(path)
        found = textfiles.read_json(path)
    except textfiles.RowError as error:
        raise CheckpointError(f"{path}: not JSON ({error.__cause__ or error}); download the file again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, not an object; download the file again")
    return found


def _number(raw: Mapping[str, Any], key: str, where: str, default: float | None = None, kind: type = int) -> Any:
    """The positive number under `key`, as an int or a finite float; `default` if the key is absent."""
    value = raw.get(key, default)
    if type(value) not in ((int,) if kind is int else (int, float)) or not (0 < value < math.inf):
        wanted = "positive integer" if kind is int else "positive number"
        raise CheckpointError(f"{where}: {key} is {json.dumps(value, default=repr)}; it must be a {wanted}")
    return kind(value)


def _rope(raw: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """(theta, scaling), from `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (5). If both are there, only
    `rope_scaling` is used, as in transformers 5.23."""
    name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(name) or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{where}: {name} is {rope!r}; it must be an object")
    nested = [key for key, value in rope.items() if isinstance(value, dict)]
    if nested:
        raise CheckpointError(
            f"{where}: {name} has parts for layer types ({', '.join(nested)}), which is not supported"
        )
    theta = _number(rope if "rope_theta" in rope else raw, "rope_theta", where, 10_000.0, float)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(f"{where}: partial_rotary_factor is not supported by this decoder")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise CheckpointError(f"{where}: rope type {kind!r} is not supported, only 'default' and 'llama3'")
    if missing := [key for key in _SCALING if key not in rope]:
        raise CheckpointError(f"{where}: llama3 rope scaling lacks {', '.join(missing)}")
    *factors, length = _SCALING
    scaling = [_number(rope, key, where, kind=float) for key in factors]
    try:
        return theta, RopeScaling(*scaling, _number(rope, length, where))
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _refuse_unsupported(raw: Mapping[str, Any], where: str) -> None:
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(f"{where}: model_type {family!r} is not supported, only {', '.join(FAMILIES)}")
    layers = raw.get("layer_types") or []
    unsupported = {
        "sliding window attention": raw.get("use_sliding_window")
        or not isinstance(layers, list)
        or any(kind != "full_attention" for kind in layers),
        f"hidden_act {raw.get('hidden_act')!r}": raw.get("hidden_act", "silu") != "silu",
        "mlp_bias": raw.get("mlp_bias"),
        # In Llama and Qwen3 transformers then adds a bias to the output projection too; Qwen2 does not use this key.
        "attention_bias": family != "qwen2" and raw.get("attention_bias"),
        "partial_rotary_factor": (raw.get("partial_rotary_factor") or 1.0) != 1.0,
        "quantization_config": raw.get("quantization_config"),
    }
    for feature, present in unsupported.items():
        if present:
            raise CheckpointError(f"{where}: {feature} is not supported by this decoder; choose another checkpoint")


def parse_config(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """The ModelConfig of a config.json. where: the file, for messages. Raises CheckpointError that names what is unsupported."""
    _refuse_unsupported(raw, where)
    if missing := [key for key in _SIZES if raw.get(key) is None]:
        raise CheckpointError(f"{where}: lacks {', '.join(missing)}; is this the config.json of a language model?")
    optional = {key: raw[key] for key in ("head_dim", "num_key_value_heads") if raw.get(key) is not None}  # may be null
    family, sizes = raw["model_type"], {field: _number(raw, key, where) for key, field in _SIZES.items()}
    heads = sizes["num_heads"]
    head_dim = 128 if family == "qwen3" else sizes["hidden_size"] // heads
    theta, scaling = _rope(raw, where)
    tied = raw.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise CheckpointError(f"{where}: tie_word_embeddings is {json.dumps(tied)}; it must be true or false")
    try:
        return ModelConfig(
            family=family,
            **sizes,
            num_kv_heads=_number(optional, "num_key_value_heads", where, heads),
            head_dim=_number(optional, "head_dim", where, head_dim),
            rope_theta=theta,
            rope_scaling=scaling,
            rms_norm_eps=_number(raw, "rms_norm_eps", where, 1e-6, float),
            tie_embeddings=tied,
            attention_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            max_position=_number(raw, "max_position_embeddings", where, 2048),
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None


def config_json(
    config: ModelConfig, stop_ids: Sequence[int], pad_id: int | None, dtype: str, bos_id: int | None = None
) -> dict[str, Any]:
    """A config.json that transformers 4 and 5 read (5 converts the rope keys of 4)."""
    scaling = config.rope_scaling
    if scaling is not None:
        scaling = {"rope_type": "llama3"} | {key: getattr(scaling, field) for key, field in _SCALING.items()}
    return {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        **{key: getattr(config, field) for key, field in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_position,
        "bos_token_id": bos_id,  # written even if None, because transformers' default is 1
        "eos_token_id": list(stop_ids),
        "pad_token_id": pad_id,
        "dtype": dtype,
    }


def read_stop_ids(directory: Path) -> tuple[int, ...]:
    """The ids that end a response: `eos_token_id` (one id or a list) of generation_config.json, otherwise of config.json."""
    generation = directory / "generation_config.json"
    for path in (generation, directory / "config.json"):
        found = read_json(path).get("eos_token_id") if path.exists() else None
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not ids or any(type(i) is not int or i < 0 for i in ids):
            raise CheckpointError(
                f"{path}: eos_token_id is {found!r}; it must be a token id, or a list of at least one"
            )
        return tuple(ids)
    raise CheckpointError(f"{generation}: no eos_token_id here or in config.json; add one, sampling must know its end")


class Kept(NamedTuple):
    """Settings of a checkpoint that are written unchanged with the trained model: its begin token and sampling defaults."""

    bos_id: int | None = None
    generation: Mapping[str, Any] = {}  # of generation_config.json


# Sampling defaults that older checkpoints have in config.json
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


def read_kept(directory: Path) -> Kept:
    """Reads Kept from config.json and generation_config.json. Raises CheckpointError."""
    raw, generation = read_json(directory / "config.json"), directory / "generation_config.json"
    found = {key: raw[key] for key in _SAMPLING if key in raw}
    found |= read_json(generation) if generation.exists() else {}
    return Kept(raw.get("bos_token_id", found.get("bos_token_id")), found)
