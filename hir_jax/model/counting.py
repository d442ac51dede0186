"""The least that sampling and learning must compute and read: FLOPs, bytes, and a lower bound on the seconds.

Counted analytically, for tokens without padding. Only matrix products count, without those that remat repeats.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from hir_jax.model.config import ModelConfig


def layer_weights(model: ModelConfig) -> int:
    """Entries of one layer's matrices."""
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    return 2 * model.hidden_size * (heads + kv_heads) + 3 * model.hidden_size * model.intermediate_size


def forward_flops(model: ModelConfig, tokens: int, unembedded: int, pairs: int) -> int:
    """FLOPs of the matrix products of a forward pass: 2 a weight and token, 4 a channel of each (query, key) pair.

    tokens: through the layers; unembedded: those of them that are projected to the vocabulary; pairs: sum over tokens of the
    columns that each attends to. Norms, soft-max, rotation and look-ups are not counted.
    """
    weights = model.num_layers * layer_weights(model) * tokens + model.hidden_size * model.vocab_size * unembedded
    return 2 * weights + 4 * model.num_heads * model.head_dim * model.num_layers * pairs


def causal_pairs(first: int, last: int) -> int:
    """Sum of the context sizes of the first-th to the last-th token, each counting itself."""
    return (last * (last + 1) - first * (first - 1)) // 2


def prefill_flops(model: ModelConfig, lengths: Sequence[int]) -> int:
    """FLOPs of each prompt once, for any number of samples, with one projection to the vocabulary."""
    return sum(forward_flops(model, n, 1, causal_pairs(1, n)) for n in map(int, lengths))


def rollout_flops(model: ModelConfig, lengths: Sequence[int], samples: int, new_tokens: int) -> int:
    """FLOPs of prefilling each prompt once, then of new_tokens - 1 passes a row (the last token is drawn, never read)."""
    steps = new_tokens - 1
    decode = (forward_flops(model, steps, steps, causal_pairs(n + 1, n + steps)) for n in map(int, lengths))
    return prefill_flops(model, lengths) + samples * sum(decode)


def learner_flops(model: ModelConfig, lengths: Sequence[int], responses: int | Sequence[int]) -> int:
    """FLOPs of forward and backward (twice the forward) for prompts of these lengths, each followed by `responses` tokens.

    For one token this is 6 a weight, and attention; the last token of a sequence predicts nothing and is left out.
    """
    forward = 0
    for length, response in zip(lengths, np.broadcast_to(responses, len(lengths)), strict=True):
        tokens = int(length) + int(response) - 1
        forward += forward_flops(model, tokens, int(response), causal_pairs(1, tokens))
    return 3 * forward


def weight_bytes(model: ModelConfig) -> int:
    """Bytes of the matrices that a decode step reads, in the compute dtype: the layers' and the output projection."""
    entries = model.num_layers * layer_weights(model) + model.hidden_size * model.vocab_size
    return entries * jnp.dtype(model.compute_dtype).itemsize


def cache_bytes(model: ModelConfig) -> int:
    """Bytes of the keys and values of one token in all layers, in the compute dtype."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * jnp.dtype(model.compute_dtype).itemsize


def decode_floor_seconds(
    model: ModelConfig, lengths: Sequence[int], samples: int, generated: int, flops_per_s: float, bytes_per_s: float
) -> tuple[float, float]:
    """(seconds of the FLOPs, seconds of the bytes) of the decode step for the `generated`-th token of all rows, which are
    `samples` for each prompt of these lengths. The floor is the larger of the two.

    Bytes: every weight once, the cache of each prompt once, since its samples share it, and that of each row's own tokens once.
    """
    rows, prompts = samples * len(lengths), sum(map(int, lengths))
    flops = forward_flops(model, rows, rows, samples * prompts + rows * generated)
    cached = prompts + rows * generated
    return flops / flops_per_s, (weight_bytes(model) + cached * cache_bytes(model)) / bytes_per_s


def rollout_floor_seconds(
    model: ModelConfig, lengths: Sequence[int], samples: int, new_tokens: int, flops_per_s: float, bytes_per_s: float
) -> float:
    """Seconds of the prefill at the peak of matrix products; plus, for each decode step, the larger of computing and reading."""
    rates = flops_per_s, bytes_per_s
    steps = (max(decode_floor_seconds(model, lengths, samples, t, *rates)) for t in range(1, new_tokens))
    return prefill_flops(model, lengths) / flops_per_s + sum(steps)
