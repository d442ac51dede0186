"""Records what transformers computes for the models of model_cases.py and for SmolLM2, for machines without torch.

    PYTHONPATH=. .venv/bin/python tests/model/record_references.py

Needs torch. Writes tests/model/references/decoder_references.npz and tests/model/references/smollm2_references.npz.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from model_cases import CASES, DATA, GREEDY, PROMPT_TEXT, TIED, add_output_matrix, case_tokens, write_model
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from hir_jax.model.files.gguf import smollm2_wheel_path

KEPT = 24  # last columns whose logits are kept
KEPT_WORDS = 512  # of SmolLM2's, first words of the vocabulary


@torch.no_grad()
def torch_logits(model, tokens) -> np.ndarray:
    """f32[B, T, V]."""
    return model(torch.tensor(np.asarray(tokens), dtype=torch.long)).logits.float().numpy()


@torch.no_grad()
def torch_greedy(model, prompt, steps: int = GREEDY) -> np.ndarray:
    """i32[B, steps], not stopped by any token."""
    token, cache, out = torch.tensor(np.asarray(prompt), dtype=torch.long), None, []
    for _ in range(steps):
        result = model(token, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        token = result.logits[:, -1:].argmax(-1)
        out.append(token.numpy())
    return np.concatenate(out, axis=1).astype(np.int32)


def load_torch(directory):
    """A directory as transformers reads it, float32."""
    return AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32).eval()


def load_torch_gguf(path: Path):
    """SmolLM2's GGUF file as transformers dequantises and names it (its from_pretrained asks for accelerate first)."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, rope_parameters={"rope_type": "default", "rope_theta": 1e5}, rms_norm_eps=1e-5,
        max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)  # tied
    model.tie_weights()
    return model.eval()


def load_torch_gguf_tokenizer(path: Path):
    """transformers' tokenizer of SmolLM2's file, with the digit splitting that it loses put back."""
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def record_cases() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in CASES.items():
            model = load_torch(write_model(Path(folder) / name, config))
            tokens = case_tokens(config)
            found[f"{name}/logits"] = torch_logits(model, tokens)[:, -KEPT:]
            found[f"{name}/greedy"] = torch_greedy(model, tokens[:, :8])
        directory = write_model(Path(folder) / "not_tied", TIED)
        add_output_matrix(directory, same=False)
        found["not_tied/logits"] = torch_logits(load_torch(directory), case_tokens(TIED, length=8))[:, -1:]
    np.savez_compressed(DATA / "decoder_references.npz", **found)


def record_smollm2() -> None:
    path = smollm2_wheel_path()
    model = load_torch_gguf(path)
    prompt = np.asarray([load_torch_gguf_tokenizer(path)(PROMPT_TEXT)["input_ids"]], np.int32)
    np.savez_compressed(
        DATA / "smollm2_references.npz",
        prompt=prompt,
        logits=torch_logits(model, prompt)[:, -4:, :KEPT_WORDS],
        greedy=torch_greedy(model, prompt),
    )


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    record_cases()
    record_smollm2()
