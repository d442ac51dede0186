"""The start phase: hir_jax.train is started twice on one compilation cache, which is empty at first.

Each start is a process of its own, with a work directory of its own, that makes one step without evaluation.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from hir_jax.types import InputError

CHANGES = {"total_steps": 1, "eval_every": 0, "save_model": False}
_SAID = re.compile(r"(\d+) compilations, ([\d.]+) s; (\d+) of them read from the cache")  # run.progress.Compilations


def bench(file: str, overrides: Mapping[str, object]) -> dict:
    """Both starts of a config file with the overrides of its keys, and the second's seconds as a share of the first's."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        changes = {**overrides, **CHANGES, "compilation_cache": directory / "cache"}
        given = [f"--config={file}", *(f"--config.{key}={value}" for key, value in changes.items())]
        return compared(*(_start(given, directory / run) for run in ("first", "second")))


def _start(given: list[str], workdir: Path) -> dict:
    """One process, from its start to its end."""
    begin = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "hir_jax.train", *given, f"--workdir={workdir}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise InputError(f"hir_jax.train ended with status {done.returncode}:\n{done.stderr[-2000:].strip()}")
    written = (workdir / "metrics.jsonl").stat().st_mtime  # nothing follows the line of the only step
    return figures(written - begin, done.stdout)


def figures(seconds: float, output: str) -> dict:
    """seconds: from the start to the end of the first step; output: what the program printed. Compilations are counted to the
    end of the program, those that were read from the cache with the seconds that reading took."""
    said = _SAID.search(output)
    if not said:
        raise RuntimeError(f"hir_jax.train did not say what it compiled: {output[-500:]}")
    return {
        "seconds": seconds, "compilations": int(said[1]), "compile_seconds": float(said[2]), "from_cache": int(said[3]),
    }  # fmt: skip


def compared(first: dict, second: dict) -> dict:
    shares = {f"{name}_ratio": second[name] / first[name] for name in ("seconds", "compile_seconds")}
    return {"first": first, "second": second} | shares
