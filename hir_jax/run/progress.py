"""Shows a run on the terminal: a progress bar with step, ILA, following, CLA, replays and so on, and replayed pairs in colour."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hir_jax import bucket, paths
from hir_jax.pathflags import expanded

log = logging.getLogger(__name__)


def use_compilation_cache(directory: str) -> None:
    """Stores functions that take over 0.2 s to compile in `directory` for later processes; "" keeps jax's own setting."""
    if directory:
        jax.config.update("jax_compilation_cache_dir", str(paths.at(expanded(directory))))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


class Compilations:
    """Counts XLA compilations and their seconds, as jax's monitoring events report them, and logs the long ones.

    Functions read from the cache on disk are included, with the seconds that reading took; `cached` counts them alone.
    """

    EVENT = "/jax/core/compile/backend_compile_duration"
    FROM_CACHE = "/jax/compilation_cache/cache_hits"

    def __init__(self):
        self.count, self.cached, self.seconds, self.total_seconds = 0, 0, 0.0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        jax.monitoring.register_event_listener(self._hit)

    def __str__(self) -> str:
        return f"{self.count} compilations, {self.total_seconds:.1f} s; {self.cached} of them read from the cache"

    def _hit(self, event: str, **details) -> None:
        self.cached += event == self.FROM_CACHE

    def _heard(self, event: str, duration: float, **details) -> None:
        if event == self.EVENT:
            self.count += 1
            self.seconds += duration
            self.total_seconds += duration
            if duration > 0.5:
                log.info("compiled %s in %.1f s", details.get("fun_name", "a function"), duration)

    def take_seconds(self) -> float:
        """Seconds spent compiling since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class RunProgress:
    """A rich progress bar on a terminal; elsewhere one line every `every` seconds."""

    def __init__(self, console: Console, total: int, done: int, every: float = 10.0):
        self._console, self._every, self._last = console, every, 0.0
        self._bar = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("run", total=total, completed=done, figures="compiling ...")
        self._total = total

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = ("ila", "following", "cla", "replays", "nll", "tokens_per_s", "heldout_ila", "heldout_following")
        figures = "  ".join(f"{name} {metrics[name]:.3g}" for name in shown if name in metrics)
        self._bar.update(self._task, completed=step, figures=figures)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last > self._every or step == self._total):
            self._last = now
            self._console.print(f"step {step}/{self._total}  {figures}")


def show_replay(console: Console, step: int, row: Mapping) -> None:
    """Prints a replayed pair: the original instruction's constraints, met or not, the response, the rewritten instruction."""
    console.rule(
        f"step {step}: a failure replayed as a success (integrity {row['integrity']:.2f}, score {row['score']:.2f})"
    )
    console.print("[bold]asked[/bold]      " + escape(row["task"]))
    for verdict in row["constraints"]:
        mark = "[green]met    [/green]" if verdict["satisfied"] else "[red]not met[/red]"
        console.print(f"  {mark} {escape(verdict['text'])}")
    console.print("[bold]response[/bold]   " + escape(row["response"].strip() or "(empty)"))
    console.print("[bold]rewritten[/bold]  " + escape(row["rewritten"]))


class StepProfile:
    """A jax.profiler trace of some steps of a run, for TensorBoard (`--logdir=DIRECTORY`) and Perfetto. A context manager, which
    ends a trace that is still going. steps: (first, last), numbered as in metrics.jsonl, or () for no trace."""

    def __init__(self, steps: Sequence[int], directory: Path):
        self._steps, self._on = range(steps[0], steps[1] + 1) if steps else range(0), False
        self._directory = directory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def begin(self, step: int) -> None:
        """Before a step."""
        if step in self._steps and not self._on:
            # The profiler writes local files alone.
            self._local = (
                Path(tempfile.mkdtemp(prefix="hir_jax_")) if paths.in_bucket(self._directory) else self._directory
            )
            jax.profiler.start_trace(str(self._local))
            self._on = True

    def end(self, step: int) -> None:
        """After a step, when its results have been read."""
        if self._on and step + 1 not in self._steps:
            self._stop()

    def _stop(self) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
            if self._local != self._directory:
                bucket.put_directory(self._local, self._directory)
                shutil.rmtree(self._local)
