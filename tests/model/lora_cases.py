"""Random adapters beside models of model_cases.py, and a batch to take gradients of; reproducible without torch."""

import dataclasses

import numpy as np
from model_cases import CASES, case_tokens

from hir_jax.model import decoder
from hir_jax.model.config import MATRICES, ModelConfig
from hir_jax.model.lora import LoraSettings
from hir_jax.types import TrainBatch

PROMPT, RESPONSE = 10, 14  # columns
LORA_CASES = {
    "llama_scaled_untied": LoraSettings(4, 16.0, MATRICES),
    "qwen2": LoraSettings(3, 8.0, ("down", "q", "v")),
}


def case_model(name: str) -> ModelConfig:
    return dataclasses.replace(CASES[name], lora_scaling=LORA_CASES[name].scaling)


def random_adapters(name: str) -> dict:
    """Neither factor is zero, and their share shows in the logits."""
    rng, adapters = np.random.default_rng(3), {}
    for target in sorted(LORA_CASES[name].targets):
        layers, inputs, outputs = decoder.matrix_shape(CASES[name], target)
        rank = LORA_CASES[name].rank
        adapters[f"{target}_lora_a"] = 0.15 * rng.standard_normal((layers, inputs, rank), dtype=np.float32)
        adapters[f"{target}_lora_b"] = 0.15 * rng.standard_normal((layers, rank, outputs), dtype=np.float32)
    return {"layers": adapters}


def case_batch(name: str) -> TrainBatch:
    """Three rows of full prompts and responses for supervised fitting: the loss is the mean over all response tokens."""
    tokens = case_tokens(CASES[name], 3, PROMPT + RESPONSE)
    zeros, ones = np.zeros((3, RESPONSE), np.float32), np.ones(3, np.float32)
    return TrainBatch(
        tokens, np.full(3, PROMPT, np.int32), zeros == 0, zeros, zeros, zeros + 1, ones, ones,
        group=np.arange(3, dtype=np.int32), is_replay=np.zeros(3, bool),
    )  # fmt: skip
