"""Shapes of published checkpoints, with which functions are compiled without downloading one (`hir_jax.aot`).

Each entry holds the keys of the checkpoint's own config.json and generation_config.json on which a compiled function depends,
as published on the Hugging Face hub. `hf_config.parse_config` reads them like a downloaded file.
"""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from hir_jax.model.config import ModelConfig
from hir_jax.model.files import hf_config
from hir_jax.model.files.weights import CheckpointError

_QWEN_ENDS = {"eos_token_id": [151645, 151643], "pad_token_id": 151643}

# hub id -> keys of config.json, and of generation_config.json (eos_token_id, pad_token_id)
PUBLISHED: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.2-3B-Instruct": {
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "eos_token_id": [128_001, 128_008, 128_009], "pad_token_id": None,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2", "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1_000_000.0, **_QWEN_ENDS,
    },
    "Qwen/Qwen3-4B-Instruct-2507": {
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 262_144, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_theta": 5_000_000.0,
        **_QWEN_ENDS,
    },
    "Qwen/Qwen3-4B": {
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_theta": 1_000_000.0,
        **_QWEN_ENDS,
    },
}  # fmt: skip


class Outline(NamedTuple):
    """The properties of a checkpoint on which compiled functions depend."""

    config: ModelConfig
    stop_ids: tuple[int, ...]
    pad_id: int


def outline(hub_id: str) -> Outline:
    """The Outline of a published checkpoint. Raises CheckpointError if it is not in the table."""
    if hub_id not in PUBLISHED:
        near = difflib.get_close_matches(hub_id, PUBLISHED, 1, cutoff=0.4)
        raise CheckpointError(
            f"{hub_id}: its shape is not known here; known: {', '.join(PUBLISHED)}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    raw = PUBLISHED[hub_id]
    stops = tuple(raw["eos_token_id"])
    pad = raw["pad_token_id"]
    return Outline(hf_config.parse_config(raw, hub_id), stops, stops[0] if pad is None else pad)
