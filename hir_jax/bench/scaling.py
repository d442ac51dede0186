"""The scaling phase: how the cost of sampling and of an update grows with batch, response length, model and devices.

Small random Llama models, one thing changed at a time. A CPU's virtual devices share its cores: with 1 to 8 of them the figures
show what splitting the same work costs, not what more hardware gives. Each number of devices is measured in its own process.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace

import numpy as np

from hir_jax import config as configs
from hir_jax.backbone import Backbone
from hir_jax.bench.learner import Learner
from hir_jax.bench.machine import rates, timed
from hir_jax.bench.rollout import Rollout, bench_engine
from hir_jax.bench.session import Session
from hir_jax.bench.sizes import NO_STOP, Sizes
from hir_jax.model import counting
from hir_jax.model.config import ModelConfig

PROMPT, SAMPLES = 64, 4
WORK = ("rollout", "learner")


@dataclass(frozen=True)
class Case:
    """`batch` sequences of PROMPT + `response` tokens."""

    batch: int = 16
    response: int = 64
    hidden: int = 256
    layers: int = 4

    @property
    def model(self) -> ModelConfig:
        """Heads of 64, two of them to a key head, an MLP of three times the width, 8,192 words."""
        heads = self.hidden // 64
        return ModelConfig("llama", 8192, self.hidden, 3 * self.hidden, self.layers, heads, heads // 2, 64)

    @property
    def parameters(self) -> int:
        model = self.model
        return model.num_layers * counting.layer_weights(model) + model.hidden_size * model.vocab_size


BASE = Case()
AXES = {
    "batch": [replace(BASE, batch=n) for n in (8, 16, 32, 64)],
    "response": [replace(BASE, response=n) for n in (32, 64, 128, 256)],
    "model": [replace(BASE, hidden=h, layers=n) for h, n in ((128, 2), (256, 4), (384, 6), (512, 8))],
}
DEVICES = (1, 2, 4, 8)


def measure(case: Case, rounds: int) -> dict:
    """Seconds and tokens/s of both, on all devices, rows split over them."""
    config = configs.defaults()
    config.learner.micro_batch_tokens = 4096
    engine = bench_engine(config, case.response, Backbone(case.model, NO_STOP, 0))
    params, lengths = engine.load_params(), (np.full(case.batch, n, np.int32) for n in (PROMPT, case.response))
    works = {
        "rollout": Rollout(engine, params, Sizes(case.batch // SAMPLES, SAMPLES), PROMPT),
        "learner": Learner(engine, params, *lengths, PROMPT),
    }
    found = {"batch": case.batch, "response": case.response, "parameters": case.parameters}
    for name, work in works.items():
        work.run()
        found[name] = rates([timed(work.run) for _ in range(rounds)], work.tokens)
    return found


def growth(values: list[float], seconds: list[float]) -> float:
    """The power with which seconds grow from the first to the last value: 1 is in proportion."""
    return math.log(seconds[-1] / seconds[0]) / math.log(values[-1] / values[0])


def in_a_process(devices: int, case: Case, rounds: int) -> dict:
    """`measure` on that number of virtual CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-m", "hir_jax.bench.scaling", json.dumps(asdict(case)), str(rounds)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the measurement on {devices} virtual devices failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"devices": devices}


def bench(session: Session) -> dict:
    """By axis, the cases and the power of growth of both phases; `devices`: of the CPU, virtual ones."""
    rounds, found = session.sizes.rounds, {"prompt": PROMPT}

    def told(axis: str, case: dict) -> dict:
        session.took(f"scaling, {axis}", {name: case[name]["seconds"]["median"] for name in WORK}, 4)
        return case

    for axis, cases in AXES.items():
        measured = [told(axis, measure(case, rounds)) for case in cases]
        values = [m["parameters" if axis == "model" else axis] for m in measured]
        powers = {name: growth(values, [m[name]["seconds"]["median"] for m in measured]) for name in WORK}
        found[axis] = {"cases": measured, "growth": powers}
    cases = [told("devices", in_a_process(n, replace(BASE, batch=32), rounds)) for n in DEVICES]
    return found | {"devices": {"cases": cases}}


if __name__ == "__main__":
    print(json.dumps(measure(Case(**json.loads(sys.argv[1])), int(sys.argv[2]))))
