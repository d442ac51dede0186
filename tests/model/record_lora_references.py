"""Records what peft computes for the adapters of lora_cases.py, for machines without torch and peft.

    PYTHONPATH=. .venv/bin/python tests/model/record_lora_references.py

Needs torch and `pip install --no-deps peft==0.21.2 accelerate==1.15.0`. Writes tests/model/references/lora_references.npz.
"""

import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
from lora_cases import LORA_CASES, PROMPT, case_batch, random_adapters
from model_cases import CASES, DATA, case_tokens, write_model
from record_references import KEPT, load_torch, torch_greedy, torch_logits

PATHS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def load_peft(directory: Path, name: str):
    """The case's model with peft's own adapters in it, theirs filled with the case's numbers."""
    settings = LORA_CASES[name]
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=[PATHS[target].split(".")[1] for target in settings.targets],
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(load_torch(directory), config)
    trained = dict(named_adapters(model))
    given = random_adapters(name)["layers"]
    assert trained.keys() == {(key, layer) for key in given for layer in range(CASES[name].num_layers)}
    with torch.no_grad():
        for (key, layer), parameter in trained.items():
            parameter.copy_(torch.tensor(given[key][layer].T))
    return model


def named_adapters(model):
    """((q_lora_a, 0), parameter), ... of all that peft would train."""
    ours = {path: name for name, path in PATHS.items()}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            place, factor = path.removeprefix("base_model.model.model.layers.").split(".lora_")
            layer, _, module = place.partition(".")
            yield (f"{ours[module]}_lora_{factor[0].lower()}", int(layer)), parameter


def torch_gradients(model, name: str) -> dict[str, np.ndarray]:
    """Gradient of the mean negative log-prob of the case's response tokens, in our layout."""
    tokens = torch.tensor(case_batch(name).tokens, dtype=torch.long)
    logp = torch.log_softmax(model(tokens).logits[:, PROMPT - 1 : -1].float(), -1)
    (-logp.gather(-1, tokens[:, PROMPT:, None]).mean()).backward()
    found = {}
    for (key, layer), parameter in sorted(named_adapters(model)):
        found.setdefault(key, []).append(parameter.grad.numpy().T)
        assert len(found[key]) == layer + 1
    return {key: np.stack(layers) for key, layers in found.items()}


def record() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in LORA_CASES:
            model, tokens = load_peft(write_model(Path(folder) / name, CASES[name]), name), case_tokens(CASES[name])
            found[f"{name}/logits"] = torch_logits(model, tokens)[:, -KEPT:]
            found[f"{name}/greedy"] = torch_greedy(model, tokens[:, :8])
            found |= {f"{name}/gradients/{key}": value for key, value in torch_gradients(model, name).items()}
    np.savez_compressed(DATA / "lora_references.npz", **found)


if __name__ == "__main__":
    record()
