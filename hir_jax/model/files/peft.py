"""Writes LoRA adapters as a directory that Hugging Face's `peft` loads: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from hir_jax import paths
from hir_jax.model import decoder
from hir_jax.model.files import hf
from hir_jax.model.lora import LoraSettings


def _module(name: str) -> str:
    """peft's module path of a layer's matrix, with {} for the layer's number."""
    return f"base_model.model.{hf.HF_NAMES['layers'][name].removesuffix('.weight')}"


def adapter_config(settings: LoraSettings, base: str | None) -> dict:
    """The adapter_config.json; other keys have peft's defaults. base: directory or hub id of the base model, or None."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "target_modules": [_module(name).rsplit(".", 1)[1] for name in settings.targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def save(
    path: str | Path,
    params: decoder.Params,
    settings: LoraSettings,
    base: str | None,
    tokenizer,
    dtype: str = "float32",
) -> None:
    """Writes the adapters in `params` and the tokenizer to a directory that must not exist, or must be empty. Raises
    CheckpointError."""
    tensors = {}
    for name in settings.targets:
        for factor in "ab":  # peft's are [r, in] and [out, r]
            stacked = np.asarray(params["layers"][f"{name}_lora_{factor}"]).astype(jnp.dtype(dtype))
            for layer, array in enumerate(stacked):
                tensors[f"{_module(name).format(layer)}.lora_{factor.upper()}.weight"] = np.ascontiguousarray(array.T)
    with hf.new_directory(paths.at(path)) as unfinished:
        tokenizer.save_pretrained(str(unfinished))
        hf.write_json(unfinished / "adapter_config.json", adapter_config(settings, base))
        save_file(tensors, unfinished / "adapter_model.safetensors", metadata={"format": "pt"})
