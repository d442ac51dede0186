"""The same rollout by slots under a mesh of eight virtual devices, as NumPy arrays.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/sampler/sharded_rollout.py OUT.npz

runs it under (2, 2, 2); test_continuous.py compares with the plain loop on one device. `moved`: how many transfers between
devices carry keys or values.
"""

import math
import re
import sys
from functools import partial

import jax
import numpy as np

from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.parallel import mesh as meshes
from hir_jax.sampler.continuous import sample_continuous
from hir_jax.sampler.sample import Sampling

MODEL = ModelConfig("qwen3", 62, 32, 64, 2, 4, 2, 16, qk_norm=True, tie_embeddings=False)
SETTINGS = Sampling(max_response=10, stop_ids=tuple(range(8)), pad_id=0)
PROMPTS, SAMPLES, COLUMNS, SLOTS = 16, 2, 11, 8  # four queues of two slots, prefilled in two chunks


def case():
    """(params, prompts, length, rows, key): several rows end at once, others at the maximum length."""
    params = jax.jit(decoder.init, static_argnums=0)(MODEL, jax.random.key(0))
    params = jax.tree.map(lambda x: x * (3 if x.ndim > 1 else 1), params)  # sharper than a fresh model's even soft-max
    rng = np.random.default_rng(0)
    length = rng.integers(1, COLUMNS + 1, PROMPTS).astype(np.int32)
    tokens = rng.integers(8, 62, (PROMPTS, COLUMNS)).astype(np.int32)
    rows = rng.permutation(PROMPTS * SAMPLES).reshape(PROMPTS, SAMPLES).astype(np.int32)
    return params, tokens, length, rows, jax.random.key(3)


def cache_transfers(hlo: str) -> int:
    """Collectives over keys or values of more than one row a device: arrays of four or more axes, the last but one as long
    as the prompts' or the responses' cache. (jax 0.12 exchanges the one prompt of a refill between two devices.)"""
    lengths = f"(?:{COLUMNS}|{SETTINGS.max_response - 1})"
    collective = re.compile(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(")
    cache = re.compile(rf"\[((?:\d+,)+)\d+,{lengths},\d+\]")  # rows, heads, columns, channels
    found = (cache.search(line) for line in collective.findall(hlo))
    return sum(math.prod(map(int, rows[1].split(",")[:-1])) > 1 for rows in found if rows)


def main(output: str) -> None:
    mesh = meshes.make_mesh(2, 2, 2)
    params, *arrays, key = case()
    shardings = meshes.parameter_shardings(mesh, decoder.param_axes(MODEL), decoder.abstract_params(MODEL))
    run = jax.jit(
        partial(
            sample_continuous, model=MODEL, settings=SETTINGS, slots=SLOTS, queues=meshes.row_devices(mesh),
            shard=meshes.ActivationShard(mesh),
        ),
        out_shardings=(meshes.rows(mesh), meshes.replicated(mesh)),
    )  # fmt: skip
    with jax.set_mesh(mesh):
        compiled = run.lower(jax.device_put(params, shardings), *meshes.put_rows(mesh, tuple(arrays)), key).compile()
        rollout, usage = compiled(jax.device_put(params, shardings), *meshes.put_rows(mesh, tuple(arrays)), key)
    np.savez(output, **rollout._asdict(), **usage._asdict(), moved=cache_transfers(compiled.as_text()))


if __name__ == "__main__":
    main(sys.argv[1])
