"""The tokenizers of Llama 3.1, Qwen2.5, Qwen3 and Llama 2, which `make tokenizers` puts on the disk; without them a test is
skipped."""

import functools
import json
import os
import tempfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hir_jax_tokenizers"
DIRECTORY = Path(os.environ.get("HIR_JAX_TOKENIZERS") or _CACHE)
NAMES = ("llama3_1", "qwen2_5", "qwen3", "llama2", "llama2_normalizer")
# The package of Llama 2 has no chat template; this one renders a user turn like Meta's reference code.
LLAMA2_CHAT = (
    "{% for m in messages %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' if m.role == 'user' "
    "else ' ' + m.content | trim + ' ' + eos_token }}{% endfor %}"
)


@functools.cache
def load(name: str):
    """A tokenizer with its chat template. "qwen2_5" is Qwen3's without its last four added tokens; "llama2_normalizer" is
    Llama 2's as the tokenizers library reads it, with a normalizer that adds a space before a text."""
    package = {"qwen2_5": "qwen3", "llama2_normalizer": "llama2"}.get(name, name)
    directory = DIRECTORY / package
    if not (directory / "tokenizer.json").is_file():
        pytest.skip(f"no tokenizer in {directory}: `make tokenizers` fetches it")
    if name == "qwen2_5":
        return _without_the_last_four(directory)
    if name == "llama2_normalizer":
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(directory / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
        )
    else:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    if package == "llama2":
        tokenizer.chat_template = LLAMA2_CHAT
    return tokenizer


def _without_the_last_four(directory: Path):
    whole = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    for token in whole["added_tokens"][-4:]:
        del settings["added_tokens_decoder"][str(token["id"])]
    del whole["added_tokens"][-4:]
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
        (Path(name) / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
