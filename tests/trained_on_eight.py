"""Two short runs of the small config on eight virtual devices, (data, fsdp, tensor) = (2, 2, 2), in a process of its own.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 PYTHONPATH=.:tests python tests/trained_on_eight.py DIR

DIR/full trains all parameters, DIR/lora adapters. Supervised, so that nothing but the update is compiled; the base model of
DIR/lora is the model that DIR/full ends with.
"""

import sys
from pathlib import Path

from small_runs import small_config

from hir_jax.train import train

FULL = {
    "method": "sft", "rollout__max_response": 48, "total_steps": 3, "checkpoint_every": 2, "learner__learning_rate": 1e-2,
    "model__num_layers": 2, "data__size": 4,
}  # fmt: skip
LORA = FULL | {"lora__rank": 4, "lora__alpha": 8.0, "lora__base_dtype": "float32"}


def configs(folder: Path, **mesh):
    """(of DIR/full, of DIR/lora)."""
    return small_config(**FULL, **mesh), small_config(**LORA, model__checkpoint=str(folder / "full" / "model"), **mesh)


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    for name, config in zip(("full", "lora"), configs(directory, mesh__fsdp=2, mesh__tensor=2), strict=True):
        train(config, directory / name)
