"""Reads and writes Hugging Face model directories: config.json, generation_config.json, safetensors, tokenizer.

Nothing in a directory is executed or unpickled: weights are read from safetensors only, and trust_remote_code is never set.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hir_jax import bucket, paths, textfiles
from hir_jax.model import decoder
from hir_jax.model.config import FAMILIES, ModelConfig, RopeScaling
from hir_jax.model.files import weights
from hir_jax.model.files.weights import HF_NAMES, CheckpointError, Index, refuse_lfs_pointer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
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


# ---- config ------------------------------------------------------------------------------------------------------


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


# ---- weights -----------------------------------------------------------------------------------------------------


class SafetensorsSource:
    """The tensors of a directory's model.safetensors, or of the shards that its index names, read slice by slice."""

    def __init__(self, directory: Path):
        self.path = str(directory)
        self._handles = {}
        self._file_of: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        index = directory / INDEX
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(_plain_name(file) for file in weight_map.values()):
                raise CheckpointError(f"{index}: has no weight_map of tensors and file names; download the file again")
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
        refuse_lfs_pointer(path)
        try:
            handle = safe_open(str(path), framework="numpy")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: not a whole safetensors file ({error}); it is truncated or no such file: download it again"
            ) from None
        self._handles[path.name] = handle
        for name in handle.keys():  # noqa: SIM118 (not a dict)
            tensor = handle.get_slice(name)
            if tensor.get_dtype() not in _DTYPES:
                raise CheckpointError(
                    f"{path}: {name} has the dtype {tensor.get_dtype()}, only {', '.join(_DTYPES)} are read; quantised weights "
                    "are not supported"
                )
            self._file_of[name] = path.name
            self.shapes[name] = tuple(tensor.get_shape())

    def read(self, name: str, index: Index) -> np.ndarray:
        return self._handles[self._file_of[name]].get_slice(name)[index]


_DTYPES = ("F64", "F32", "F16", "BF16")
_COMPARED = 4096  # rows at a time


def _plain_name(file: object) -> bool:
    return isinstance(file, str) and Path(file).name == file != ""


def really_tied(config: ModelConfig, source: weights.TensorSource) -> ModelConfig:
    """The config, with `tie_embeddings` False if the file holds an output matrix that differs from the embedding. As in
    transformers 5.23, the weights then override config.json."""
    names = HF_NAMES["embed"], HF_NAMES["unembed"]
    if not config.tie_embeddings or any(name not in source.shapes for name in names):
        return config
    rows = source.shapes[names[0]][0]
    parts = [(slice(start, min(start + _COMPARED, rows)), slice(None)) for start in range(0, rows, _COMPARED)]
    same = source.shapes[names[0]] == source.shapes[names[1]] and all(
        np.array_equal(*(source.read(name, part) for name in names)) for part in parts
    )
    return config if same else dataclasses.replace(config, tie_embeddings=False)


def ignorable(config: ModelConfig):
    """A function of a name: whether some checkpoints hold this tensor beside the parameters (rotary tables, a tied output
    matrix)."""

    def ignored(name: str) -> bool:
        return name.endswith("rotary_emb.inv_freq") or (config.tie_embeddings and name == HF_NAMES["unembed"])

    return ignored


def load_params(path: str | Path, config: ModelConfig, param_dtype="float32", shardings=None) -> decoder.Params:
    """The parameters of a directory, loaded to their shards (`weights.load_tree`). Raises CheckpointError."""
    source = SafetensorsSource(Path(path))
    return weights.load_tree(config, source, HF_NAMES, ignorable(config), param_dtype, shardings)


# ---- writing -----------------------------------------------------------------------------------------------------


def _write_weights(path: Path, config: ModelConfig, params: decoder.Params, dtype: str, shard_bytes: int) -> None:
    """Writes one model.safetensors, or shards of at most `shard_bytes` (or of one larger tensor) and an index."""
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
    for file, names in zip(files, shards, strict=True):  # `tensors` comes in the order of `expected_shapes`
        save_file(dict(next(tensors) for _ in names), path / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(path / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map})


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def refuse_filled(path: Path) -> None:
    """Raises CheckpointError unless the path does not exist or is an empty directory."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path}: exists and is not empty; nothing is overwritten, name another directory")


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Libraries in Rust write weights and tokenizers; the system's errors that they report become OSErrors that name `path`."""
    try:
        yield
    except Exception as error:
        code = re.search(r"os error (\d+)", str(error))
        if not code:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yields a directory to fill, which is renamed to `path` when that is done and removed if it fails. For a path in a bucket it
    lies in TMPDIR and is put up at the end, config.json last. Raises CheckpointError (`refuse_filled`), and OSError if something
    cannot be written."""
    refuse_filled(path)
    if paths.in_bucket(path):
        with tempfile.TemporaryDirectory(prefix="hir_jax_") as directory:
            with _os_errors(Path(directory)):
                yield Path(directory)
            bucket.put_directory(Path(directory), path)
        return
    unfinished = path.with_name(path.name + ".unfinished")
    if unfinished.exists():
        raise CheckpointError(f"{unfinished}: left by a save that was cut off; remove it")
    unfinished.mkdir(parents=True)
    try:
        with _os_errors(path):
            yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
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
    kept: Kept | None = None,
) -> None:
    """Writes a directory that transformers loads: config, weights in `dtype` (LoRA adapters merged in float32), generation
    config, tokenizer.

    tokenizer: a transformers tokenizer, or None to write only weights and configs. kept: of the checkpoint that training
    started from; None: only the tokenizer's begin token. The directory must not exist, or must be empty; it appears only when
    it is complete. Raises CheckpointError.
    """
    with new_directory(paths.at(path)) as unfinished:
        pad_id = None if tokenizer is None else tokenizer.pad_token_id
        if tokenizer is not None:
            tokenizer.save_pretrained(str(unfinished))
            kept = kept or Kept(tokenizer.bos_token_id)
        kept = kept or Kept()
        write_json(unfinished / "config.json", config_json(config, stop_ids, pad_id, dtype, kept.bos_id))
        generation = {} if kept.bos_id is None else {"bos_token_id": kept.bos_id}
        generation |= dict(kept.generation) | {"eos_token_id": list(stop_ids)}
        generation |= {} if pad_id is None else {"pad_token_id": pad_id}
        write_json(unfinished / "generation_config.json", generation)
        _write_weights(unfinished, config, params, dtype, shard_bytes)
