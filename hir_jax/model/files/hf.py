"""Writes Hugging Face model directories, and reads their weights; `hf_config` reads their settings.

Nothing in a directory is executed or unpickled: weights are read from safetensors only, and trust_remote_code is never set.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hir_jax import bucket, paths
from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.model.files import weights
from hir_jax.model.files.hf_config import Kept, config_json, read_json
from hir_jax.model.files.weights import HF_NAMES, CheckpointError, Index, refuse_lfs_pointer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


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
