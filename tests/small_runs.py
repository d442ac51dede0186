"""The tiny config made smaller still, and the training program in a process of its own; for the tests of the programs."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = "configs/tiny_hir.py"
# The configs may change what they like: every key that decides about time or about what is tested is set here.
SMALL = {
    "compilation_cache": "",
    "method": "hir",
    "model.checkpoint": "",
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "data.source": "witness",
    "data.constraint_ids": (),
    "data.size": 24,
    "data.eval_size": 4,
    "data.eval_batch": 4,
    "data.min_constraints": 3,
    "data.max_constraints": 4,
    "data.templates": ("type1",),
    "data.batch_prompts": 4,
    "data.max_prompt": 96,
    "data.prompt_buckets": (),
    "rollout.m": 2,
    "rollout.max_response": 12,
    "rollout.response_buckets": (),
    "replay.k": 1,
    "replay.fill": "resample",
    "constraints.workers": 0,
    "constraints.on_device": False,
    "learner.kl": 0.01,
    "learner.micro_batch_tokens": 200,
    "learner.mini_batches": 1,
    "learner.schedule": "constant",
    "total_steps": 2,
    "eval_every": 0,
    "eval_temperature": 0.0,
    "checkpoint_every": 100,
}


def small_config(**changes):
    """The config as train.py gets it; a key's dot is written as two underscores."""
    config = runpy.run_path(str(ROOT / CONFIG))["get_config"]()
    config.update_from_flattened_dict(SMALL | {key.replace("__", "."): value for key, value in changes.items()})
    return config


def arguments(workdir, **changes) -> list[str]:
    """Command-line arguments of the same."""
    flat = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"--config={CONFIG}", f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in flat.items())]


def start(workdir, **changes) -> subprocess.Popen:
    """`python -m hir_jax.train` on the small config."""
    command = [sys.executable, "-m", "hir_jax.train", *arguments(workdir, **changes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def environment(devices: int) -> dict[str, str]:
    """Environment variables of a process that has as many virtual devices of the CPU."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trajectory(workdir):
    """metrics.jsonl without what a clock says."""
    clocks = re.compile("seconds|per_s")
    return [{k: v for k, v in row.items() if not clocks.search(k)} for row in rows(workdir / "metrics.jsonl")]
