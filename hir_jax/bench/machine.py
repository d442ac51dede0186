"""The machine: its ceilings, measured by the means that the programs have (XLA), and what it was while they were.

Also the clock: everything is measured in turn with what it is compared with, after both are warm.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import platform
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

# (edge of the matrices, bytes of the array that is read): well over the caches, and long against a dispatch
_SIZES = {"cpu": (2048, 1 << 29), "gpu": (8192, 1 << 32), "tpu": (8192, 1 << 32)}
_PRODUCTS = 4  # one after the other in one call, so that an accelerator's start-up is not what is measured


class Ceilings(NamedTuple):
    """The best rates seen in a run, of all devices together."""

    flops_per_s: dict[str, float]  # by dtype: products of large square matrices
    bytes_per_s: float  # reading a large array

    @staticmethod
    def best(seen: Iterable[Ceilings]) -> Ceilings:
        seen = list(seen)
        flops = {dtype: max(c.flops_per_s[dtype] for c in seen) for dtype in seen[0].flops_per_s}
        return Ceilings(flops, max(c.bytes_per_s for c in seen))


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _best(run: Callable[[], object], repeats: int) -> float:
    run()
    return min(timed(run) for _ in range(repeats))


def matmul_flops_per_second(dtype: str, repeats: int = 3) -> float:
    """The best of a few calls of _PRODUCTS square products each, on one device."""
    size = _SIZES[jax.default_backend()][0]

    @jax.jit
    def products(a):
        b = a
        for _ in range(_PRODUCTS):
            b = jnp.matmul(b, a)
        return b

    a = jnp.full((size, size), 1.0 / size, dtype)
    return _PRODUCTS * 2 * size**3 / _best(lambda: products(a).block_until_ready(), repeats)


def read_bytes_per_second(repeats: int = 5) -> float:
    """Bytes of a large float32 array over the seconds of its row sums, or of its product with a vector, if that is faster.

    What is written is not worth counting; a copy would be, and pays for fresh pages on CPU.
    """
    x = jnp.ones((4096, _SIZES[jax.default_backend()][1] // 4 // 4096), jnp.float32)
    vector = jnp.ones(x.shape[1], jnp.float32)
    sums, product = jax.jit(lambda x: x.sum(-1)), jax.jit(lambda x: x @ vector)
    fastest = min(_best(lambda f=f: f(x).block_until_ready(), repeats) for f in (sums, product))
    return x.nbytes / fastest


def ceilings(dtypes: Iterable[str]) -> Ceilings:
    """Of all devices: virtual ones of a CPU share its cores, others add up."""
    count = 1 if jax.default_backend() == "cpu" else jax.device_count()
    flops = {dtype: count * matmul_flops_per_second(dtype) for dtype in dtypes}
    return Ceilings(flops, count * read_bytes_per_second())


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, in GB (10^9 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def versions() -> dict[str, str]:
    """Python and the packages that are compared; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "torch", "transformers", "trl", "accelerate"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def description() -> dict[str, object]:
    """Date (UTC), device, versions, commit and command, for the head of a report."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": jax.devices()[0].device_kind, "devices": jax.device_count(), "cpus": os.cpu_count(),
        "versions": versions(), "commit": files.commit(), "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }  # fmt: skip


class Work:
    """Something to be timed: `run()` does it once. `tokens`: what it yields, `flops`: what it must compute."""

    tokens: int
    flops: int

    def run(self) -> None:
        raise NotImplementedError


def measure(ours: Work, peer: Work | None, rounds: int, compilations) -> dict:
    """Warms both up, then runs them in turn. Seconds, tokens/s of the median, and the ratio peer / ours of each round.

    compilations: a `run.progress.Compilations`.
    """
    compilations.take_seconds()
    found = {"first_call_seconds": timed(ours.run), "compile_seconds": compilations.take_seconds()}
    found |= {"tokens": ours.tokens, "flops": ours.flops}
    if peer is not None:
        peer.run()
        compilations.take_seconds()  # where it is ours too
    laps = [(timed(ours.run), timed(peer.run) if peer is not None else None) for _ in range(rounds)]
    found["compile_seconds_after_warm_up"] = compilations.take_seconds()
    found |= rates([a for a, _ in laps], ours.tokens)
    if ours.flops:
        found["flops_per_s"] = ours.flops / found["seconds"]["median"]
    if peer is not None:
        found |= against(laps, peer.tokens)
    return found


def trace(work: Work, directory: Path | None) -> None:
    """One more call, written by jax.profiler below `directory` for TensorBoard and Perfetto; None: nothing."""
    if directory is not None:
        with jax.profiler.trace(str(directory)):
            work.run()


def rates(seconds: Sequence[float], tokens: float) -> dict:
    found = {"seconds": spread(seconds), "rounds": list(seconds)}
    return found | {"tokens_per_s": tokens / found["seconds"]["median"]}


def against(laps: Sequence[tuple[float, float]], tokens: float) -> dict:
    """The other side of (ours, other's) seconds, round by round; tokens: the other's."""
    found = {"peer_seconds": spread([b for _, b in laps]), "peer_rounds": [b for _, b in laps]}
    found["peer_tokens_per_s"] = tokens / found["peer_seconds"]["median"]
    return found | {"times_peer": spread([b / a for a, b in laps])}


def require(packages: Sequence[str], flag: str) -> None:
    """InputError naming the packages that a flag needs and this Python lacks."""
    lacking = [name for name in packages if importlib.util.find_spec(name) is None]
    if lacking:
        raise InputError(
            f"{flag} needs {' and '.join(lacking)}, which nothing else does: `make peers` installs what it needs; or leave "
            f"{flag} out"
        )
