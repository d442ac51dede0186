"""The machine: what it is, and the peak rates of its matrix products and of its memory, measured through XLA as our programs run.

Also the arithmetic of timings: medians, ranges and ratios.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hir_jax.run import files
from hir_jax.types import InputError

# packages whose versions a report names
_COMPARED = ("jax", "jaxlib", "flax", "torch", "transformers", "trl", "accelerate")

# (edge of the matrices, bytes of the array that is read): far larger than the caches, and slow against a dispatch
_SIZES = {"cpu": (2048, 1 << 29), "gpu": (8192, 1 << 32), "tpu": (8192, 1 << 32)}
_PRODUCTS = 4  # in one call, one after the other, so that an accelerator's start-up time does not count


class Ceilings(NamedTuple):
    """The best rates seen in a run, of all devices together."""

    flops_per_s: dict[str, float]  # by dtype: products of large square matrices
    bytes_per_s: float  # reading a large array

    @staticmethod
    def best(seen: Sequence[Ceilings]) -> Ceilings:
        flops = {dtype: max(c.flops_per_s[dtype] for c in seen) for dtype in seen[0].flops_per_s}
        return Ceilings(flops, max(c.bytes_per_s for c in seen))


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def rates(seconds: Sequence[float], tokens: float) -> dict:
    """Seconds of all rounds and their spread, and tokens/s at the median."""
    found = {"seconds": spread(seconds), "rounds": list(seconds)}
    return found | {"tokens_per_s": tokens / found["seconds"]["median"]}


def against(laps: Sequence[tuple[float, float]], tokens: float) -> dict:
    """Figures of a peer from (our seconds, its seconds) of each round, with the ratios per round. tokens: the peer's."""
    theirs = rates([b for _, b in laps], tokens)
    return {f"peer_{name}": value for name, value in theirs.items()} | {"times_peer": spread([b / a for a, b in laps])}


def ceilings(dtypes: Iterable[str]) -> Ceilings:
    """Rates of all devices together; a CPU's virtual devices share its cores and count as one.

    Memory is read by the row sums of a large float32 array, or by its product with a vector if that is faster: both write next to
    nothing. A copy would write as much as it reads, and on a CPU wait for new pages.
    """
    edge, size = _SIZES[jax.default_backend()]
    count = 1 if jax.default_backend() == "cpu" else jax.device_count()

    def best(call, *arguments) -> float:
        jitted = jax.jit(call)
        _, *seconds = (timed(lambda: jax.block_until_ready(jitted(*arguments))) for _ in range(6))  # the first compiles
        return min(seconds)

    def products(a):
        b = a
        for _ in range(_PRODUCTS):
            b = jnp.matmul(b, a)
        return b

    flops = {}
    for dtype in dtypes:
        a = jnp.full((edge, edge), 1.0 / edge, dtype)
        flops[dtype] = count * _PRODUCTS * 2 * edge**3 / best(products, a)
    x = jnp.ones((4096, size // 4 // 4096), jnp.float32)
    seconds = min(best(lambda x: x.sum(-1), x), best(jnp.matmul, x, jnp.ones(x.shape[1], jnp.float32)))
    return Ceilings(flops, count * x.nbytes / seconds)


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, in GB (10^9 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def instruction_sets() -> list[str]:
    """Which of the sets that decide the rate of matrix products the CPU has; empty where Linux does not tell."""
    try:
        told = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [name for name in ("avx2", "avx512f", "amx_tile") if name in told]


def description() -> dict[str, object]:
    """Date (UTC), device, versions, commit and command, for the head of a report."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": jax.devices()[0].device_kind, "devices": jax.device_count(), "cpus": os.cpu_count(),
        "instruction_sets": instruction_sets(),
        "versions": files.versions(*_COMPARED), "commit": files.commit(), "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }  # fmt: skip


def require(packages: Sequence[str], flag: str) -> None:
    """Raises InputError that names the packages which a flag needs and this Python lacks."""
    if lacking := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"{flag} needs {' and '.join(lacking)}, which nothing else does: `make peers` installs what it needs; or leave "
            f"{flag} out"
        )
