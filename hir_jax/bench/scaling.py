"""The scaling phase: how the cost of sampling and of an update grows with batch, response length, model and devices.

Small random Llama models, one thing changed at a time. Virtual devices of a CPU share its cores: there, 1 to 8 devices show
what splitting the same work costs, not what more hardware gives. Each number of devices is measured in a process of its own.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial

import jax
import numpy as np

from hir_jax.bench.machine import rates, timed
from hir_jax.bench.sizes import NO_STOP, random_prompts
from hir_jax.config import defaults
from hir_jax.learner.settings import LearnerSettings
from hir_jax.learner.update import init_state, update
from hir_jax.model import counting, decoder
from hir_jax.model.config import ModelConfig
from hir_jax.parallel import mesh as meshes
from hir_jax.sampler.sample import Sampling, sample
from hir_jax.types import TrainBatch

PROMPT, SAMPLES = 64, 4


def _llama(hidden: int, layers: int) -> ModelConfig:
    """Heads of 64, two of them to a key head, an MLP of three times the width, 8,192 words."""
    heads = hidden // 64
    return ModelConfig("llama", 8192, hidden, 3 * hidden, layers, heads, heads // 2, 64)


@dataclass(frozen=True)
class Case:
    """`batch` sequences of PROMPT + `response` tokens."""

    batch: int = 16
    response: int = 64
    hidden: int = 256
    layers: int = 4

    @property
    def model(self) -> ModelConfig:
        return _llama(self.hidden, self.layers)

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


def _rollout(case: Case, mesh, shard, params):
    prompts = np.full(case.batch // SAMPLES, PROMPT, np.int32)
    rows = np.arange(case.batch, dtype=np.int32).reshape(-1, SAMPLES)
    tokens = random_prompts(case.model.vocab_size, prompts, PROMPT)
    arrays = meshes.put_rows(mesh, (tokens, prompts, rows))
    settings = Sampling(case.response, NO_STOP, 0)
    run = jax.jit(partial(sample, model=case.model, settings=settings, shard=shard), out_shardings=meshes.rows(mesh))
    return lambda: jax.block_until_ready(run(params, *arrays, jax.random.key(0)))


def _learner(case: Case, mesh, shard, params):
    tokens = random_prompts(case.model.vocab_size, np.full(case.batch, PROMPT + case.response), PROMPT + case.response)
    zeros = np.zeros((case.batch, case.response), np.float32)
    batch = TrainBatch(
        tokens, np.full(case.batch, PROMPT, np.int32), zeros == 0, zeros, zeros, zeros + 1,
        reward=(np.arange(case.batch) % 2).astype(np.float32), weight=np.ones(case.batch, np.float32),
        group=np.arange(case.batch, dtype=np.int32), is_replay=np.zeros(case.batch, bool),
    )  # fmt: skip
    settings = replace(LearnerSettings.of(defaults()), mini_batches=1, micro_batch_tokens=4096)
    fixed = {"model": case.model, "settings": settings, "shard": shard, "multiple": meshes.row_devices(mesh)}
    run, batch = jax.jit(partial(update, **fixed)), meshes.put_rows(mesh, batch)
    state = jax.device_put(init_state(params, settings), meshes.replicated(mesh))
    return lambda: jax.block_until_ready(run(state, batch))


def measure(case: Case, rounds: int) -> dict:
    """Seconds and tokens/s of both, on all devices, rows split over them."""
    mesh = meshes.make_mesh()
    shard = meshes.ActivationShard(mesh)
    params = jax.device_put(decoder.init(case.model, jax.random.key(0)), meshes.replicated(mesh))
    found = {"batch": case.batch, "response": case.response, "parameters": case.parameters}
    tokens = {"rollout": case.batch * case.response, "learner": case.batch * (PROMPT + case.response)}
    for name, make in (("rollout", _rollout), ("learner", _learner)):
        with jax.set_mesh(mesh):
            run = make(case, mesh, shard, params)
            run()
            found[name] = rates([timed(run) for _ in range(rounds)], tokens[name])
    return found


def growth(values: list[float], seconds: list[float]) -> float:
    """The power with which seconds grow from the first to the last: 1 is in proportion, below 1 is less than that."""
    return math.log(seconds[-1] / seconds[0]) / math.log(values[-1] / values[0])


def in_a_process(devices: int, case: Case, rounds: int) -> dict:
    """`measure` on so many virtual devices of the CPU."""
    given = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "XLA_FLAGS": f"{given} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-m", "hir_jax.bench.scaling", json.dumps(asdict(case)), str(rounds)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the measurement on {devices} virtual devices failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"devices": devices}


def bench(rounds: int) -> dict:
    """By axis, the cases and the power of growth of both phases; `devices`: of the CPU, virtual ones."""
    found: dict = {"prompt": PROMPT}
    for axis, cases in AXES.items():
        measured = [measure(case, rounds) for case in cases]
        values = [m["parameters" if axis == "model" else axis] for m in measured]
        powers = {
            name: growth(values, [m[name]["seconds"]["median"] for m in measured]) for name in ("rollout", "learner")
        }
        found[axis] = {"cases": measured, "growth": powers}
    found["devices"] = {"cases": [in_a_process(n, replace(BASE, batch=32), rounds) for n in DEVICES]}
    return found


if __name__ == "__main__":
    print(json.dumps(measure(Case(**json.loads(sys.argv[1])), int(sys.argv[2]))))
