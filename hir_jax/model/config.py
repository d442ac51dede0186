"""The shape of a decoder, and how it is computed: all that a compiled function depends on, as hashable values."""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = ("llama", "qwen2", "qwen3")
COMPUTE_DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "full", "dots")
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")  # of a layer
ATTENTION = ("plain", "splash", "triton")


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency-dependent stretching of rotary positions ("llama3" in config.json).

    Wavelengths shorter than original_max_position / high_freq_factor stay, those longer than
    original_max_position / low_freq_factor are divided by `factor`, the ones between are interpolated.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def __post_init__(self):
        if not self.high_freq_factor > self.low_freq_factor > 0:
            raise ValueError(
                f"rope scaling needs high_freq_factor > low_freq_factor > 0, not {self.high_freq_factor} and "
                f"{self.low_freq_factor}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A Llama, Qwen2 or Qwen3 decoder. Hashable: pass it to jax.jit as a static argument.

    The three families differ in `attention_bias` (Qwen2: bias on q, k, v), `qk_norm` (Qwen3: RMS norm of each head of q
    and k before the rotation) and `head_dim` (free in Qwen3). `compute_dtype` is the dtype of activations and matmul inputs;
    norms, rotation, softmax and logits are float32 in any case. `remat` says what the backward pass of a layer
    recomputes: "none" (nothing), "dots" (all but matrix products, attention scores among them: Hq*T*T values a row and
    layer), "full" (all: only each layer's input is kept). "dots" is the fastest on CPU, where what the other saves is
    copied in and out of the scan over layers. `attention` is the implementation, by platform (model/attention.py).
    `lora_scaling` is alpha / rank of LoRA adapters, where the parameters hold any.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = True
    attention_bias: bool = False
    qk_norm: bool = False
    max_position: int = 2048
    compute_dtype: str = "float32"
    remat: str = "dots"
    lora_scaling: float = 1.0
    attention: str = "plain"

    def __post_init__(self):
        known = {
            "family": FAMILIES, "compute_dtype": COMPUTE_DTYPES, "remat": REMAT_POLICIES, "attention": ATTENTION,
        }  # fmt: skip
        for name, allowed in known.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model {name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs of channels")
