"""Random small models of the three families, reproducible without torch, and greedy decoding with our own decoder."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from hir_jax.model import decoder, decoding
from hir_jax.model.config import ModelConfig, RopeScaling
from hir_jax.model.files import hf_config, weights

DATA = Path(__file__).with_name("references")
GREEDY = 64
PROMPT_TEXT = "Write a short story about a fox in 1997. Use exactly 3 sentences."

_small = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_layers": 3, "num_heads": 4, "head_dim": 8}
CASES = {
    "llama_scaled_untied": ModelConfig(
        family="llama", num_kv_heads=2, rope_theta=5e5, max_position=256, tie_embeddings=False,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64), **_small,
    ),
    "llama_tied": ModelConfig(family="llama", num_kv_heads=4, **_small),
    "qwen2": ModelConfig(family="qwen2", num_kv_heads=1, attention_bias=True, rms_norm_eps=1e-6, **_small),
    "qwen3": ModelConfig(
        family="qwen3", num_kv_heads=2, qk_norm=True, tie_embeddings=False, **(_small | {"head_dim": 12})
    ),
}  # fmt: skip


def random_tensors(config: ModelConfig, seed: int = 7) -> dict[str, np.ndarray]:
    """Tensors under their Hugging Face names, large enough that every part of the model shows in the logits."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in sorted(weights.expected_shapes(config, weights.HF_NAMES).items()):
        noise = rng.standard_normal(shape, dtype=np.float32)
        tensors[name] = 1.0 + 0.3 * noise if "norm" in name else 0.25 * noise
    return tensors


def write_model(directory: Path, config: ModelConfig) -> Path:
    """A Hugging Face directory of the random model, not written by `hf.save`."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(random_tensors(config), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(hf_config.config_json(config, [1], None, "float32")))
    return directory


# A tied model whose file may still hold an output matrix, with the vocabulary of `chat_cases`' Llama tokenizer.
TIED = dataclasses.replace(CASES["llama_tied"], vocab_size=264)


def add_output_matrix(directory: Path, same: bool) -> None:
    """Writes `lm_head.weight` into a directory of `write_model`: the embedding again, or its rows in another order."""
    tensors = load_file(directory / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.copy() if same else embedding[::-1].copy()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def case_tokens(config: ModelConfig, rows: int = 2, length: int = 100) -> np.ndarray:
    """i32[rows, length]; 100 columns reach past the original context of the scaled case."""
    return np.random.default_rng(11).integers(0, config.vocab_size, (rows, length)).astype(np.int32)


def positions_of(valid):
    """i32[B, T]: 0 at the first valid column."""
    return jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)


@partial(jax.jit, static_argnums=0)
def logits_of(config, params, tokens, valid):
    """Logits f32[B, T, V] of a full pass."""
    hidden = decoder.hidden_states(config, params, tokens, positions_of(valid), valid)
    return decoder.logits(config, params, hidden)


@partial(jax.jit, static_argnums=(0, 3))
def greedy(config, params, prompt, steps: int):
    """i32[N, steps]: the likeliest token each time, by prefill and decode_step in a while_loop. prompt: i32[N, P]."""
    rows, width = prompt.shape
    valid = jnp.ones((rows, width), bool)
    hidden, cache = decoding.prefill(config, params, prompt, positions_of(valid), valid)
    unstacked = decoding.unstack_layers(config, params)

    def pick(hidden):
        return jnp.argmax(decoder.logits(config, unstacked, hidden), axis=-1).astype(jnp.int32)

    def body(state):
        i, token, own, out = state
        position, lengths, count = (jnp.full(rows, n) for n in (width + i - 1, width, i))
        hidden, own = decoding.decode_step(config, unstacked, token, position, i - 1, cache, lengths, own, count)
        token = pick(hidden)
        return i + 1, token, own, out.at[:, i].set(token)

    token = pick(hidden)
    out = jnp.zeros((rows, steps), jnp.int32).at[:, 0].set(token)
    state = (jnp.int32(1), token, decoding.empty_cache(config, rows, steps), out)
    return jax.lax.while_loop(lambda s: s[0] < steps, body, state)[-1]
