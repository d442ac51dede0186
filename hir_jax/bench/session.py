"""What the phases of one run of the bench share: config, sizes, peer, clock, and the report, which is saved after every round."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from hir_jax import config as configs
from hir_jax.bench import machine
from hir_jax.bench.machine import Ceilings, against, rates, timed
from hir_jax.bench.sizes import Sizes
from hir_jax.bench.table import number
from hir_jax.run import files
from hir_jax.run.progress import Compilations


class Work:
    """Something to be timed: `run()` does it once. `tokens`: how many it yields; `flops`: how many it must compute."""

    tokens: int
    flops: int

    def run(self) -> None:
        raise NotImplementedError


@dataclass
class Session:
    """Runs phases and keeps their figures. Progress goes to stderr: a line when a phase begins and one for each round."""

    config: Any
    config_file: str
    overrides: dict[str, Any]  # config keys given on the command line
    sizes: Sizes
    peer: str | None = None  # hf | trl
    trace_directory: Path | None = None
    output: Path | None = None

    def __post_init__(self):
        self._compilations, self._head, self._load, self._ceilings = Compilations(), {}, os.getloadavg()[0], []
        self._finished: dict[str, dict] = {}  # figures by phase
        self._rounds: dict[str, list[dict[str, float]]] = {}  # seconds so far, of the phase that is running
        self.fractions: dict[str, Callable[[Ceilings], dict]] = {}  # by phase: figures that compare with the ceilings

    def describe_machine(self) -> None:
        """Fills the head of the report. From here on this process holds the devices."""
        self._head = machine.description() | {"dtype": self.config.model.compute_dtype, "peer": self.peer}
        self._load = os.getloadavg()[0]

    def measure_ceilings(self) -> None:
        dtype = self.config.model.compute_dtype
        self._say("ceilings of the machine ...")
        self._ceilings.append(machine.ceilings(dict.fromkeys(("float32", dtype, self.config.rollout.dtype or dtype))))

    def run(self, phase: str, bench: Callable[[Session], dict]) -> None:
        self._say(f"{phase} ...")
        self._finished[phase] = bench(self)
        self._rounds.clear()
        self._save()

    def report(self) -> dict:
        """All figures so far, able to become JSON; `unfinished`: the seconds of each round of the running phase."""
        found = self._head | self._finished
        if self._ceilings:
            best = Ceilings.best(self._ceilings)
            found |= {"matmul_flops_per_s": best.flops_per_s, "read_bytes_per_s": best.bytes_per_s}
            found |= {name: found[name] | make(best) for name, make in self.fractions.items() if name in found}
        if self._rounds:
            found["unfinished"] = self._rounds
        return found | {
            "load_average": [self._load, os.getloadavg()[0]], "peak_memory_gb": machine.peak_memory_gb(),
            "config_file": self.config_file, "config": configs.flatten(self.config), "sizes": asdict(self.sizes),
        }  # fmt: skip

    # ---- for the phases

    def compile_seconds(self) -> float:
        """Seconds spent compiling since the last call."""
        return self._compilations.take_seconds()

    def rounds(self, label: str, run: Callable[[], dict[str, float]]) -> list[dict[str, float]]:
        """What each of `sizes.rounds` calls of `run` returns: seconds by name."""
        return [self.took(label, run()) for _ in range(self.sizes.rounds)]

    def took(self, label: str, seconds: dict[str, float], of: int | None = None) -> dict[str, float]:
        """Reports a finished round (of `sizes.rounds`, or `of`) on stderr and in the output file; returns its seconds."""
        done = self._rounds.setdefault(label, [])
        done.append(seconds)
        parts = ", ".join(f"{name} {number(value)} s" for name, value in seconds.items())
        self._say(f"{label}, round {len(done)} of {of or self.sizes.rounds}: {parts}")
        self._save()
        return seconds

    def measure(self, label: str, ours: Work, peer: Work | None = None) -> dict:
        """Warms both up, then runs them in turn: seconds, tokens/s at the median, and the ratio peer / ours of each round."""
        self.compile_seconds()
        found = {"first_call_seconds": timed(ours.run), "compile_seconds": self.compile_seconds()}
        found |= {"tokens": ours.tokens, "flops": ours.flops}
        if peer is not None:
            peer.run()
            self.compile_seconds()  # the peer may be a program of ours

        def one_round() -> dict[str, float]:
            return {"ours": timed(ours.run)} | ({} if peer is None else {"peer": timed(peer.run)})

        laps = self.rounds(label, one_round)
        found["compile_seconds_after_warm_up"] = self.compile_seconds()
        found |= rates([lap["ours"] for lap in laps], ours.tokens)
        if ours.flops:
            found["flops_per_s"] = ours.flops / found["seconds"]["median"]
        if peer is not None:
            found |= against([(lap["ours"], lap["peer"]) for lap in laps], peer.tokens)
        return found

    def trace(self, work: Work, name: str) -> None:
        """With --trace: runs `work` once more under jax.profiler, for TensorBoard and Perfetto."""
        if self.trace_directory:
            with jax.profiler.trace(str(self.trace_directory / name)):
                work.run()

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _save(self) -> None:
        if self.output and not files.is_stream(self.output):  # a stream gets the whole report alone, at the end
            files.write_atomically(self.output, json.dumps(self.report()) + "\n")
