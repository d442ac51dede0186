"""Hindsight instruction Replay in JAX: reinforcement learning that replays failed responses as successes of easier requests.

For a notebook: `load_config`, `load_data`, `Engine`, `Verifier`, `roll_out`, `render`, `register`, `Constraint`, `Instruction`
(examples/hir_in_one_page.ipynb). They are imported on first use, so that workers that check texts do not import jax.
"""

import importlib
import os

# transformers is used only for its tokenizers, so its warning that torch is not installed does not matter.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

_NAMES = {
    "load_config": "config.load_file",
    "load_data": "data.dataset.load",
    "Engine": "engine.Engine",
    "Verifier": "checks.verifier.Verifier",
    "roll_out": "rollouts.roll_out",
    "render": "data.templates.render",
    "register": "checks.registry.register",
    "Constraint": "types.Constraint",
    "Instruction": "types.Instruction",
}
__all__ = list(_NAMES)


def __getattr__(name: str):
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _NAMES[name].rpartition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
