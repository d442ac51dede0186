"""Saves and restores a run's checkpoints with Orbax. No other module imports orbax."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from hir_jax import paths
from hir_jax.textfiles import first_line
from hir_jax.types import InputError


class CheckpointError(InputError):
    """A checkpoint cannot be read or written; the message names the directory and what to do."""


_LOGS = [logging.getLogger(name) for name in ("absl", "asyncio")]


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Drops the long tracebacks that Orbax's threads and tasks log for a failure, which `Checkpoints` raises in the caller."""
    frames = traceback.extract_tb(record.exc_info[2]) if record.exc_info else []
    places = [record.pathname, *(frame.filename for frame in frames)]
    return record.levelno < logging.ERROR or not any(f"{os.sep}orbax{os.sep}" in place for place in places)


def _unraisable(usual: Callable[[Any], None], found: Any) -> None:
    if str(found.exc_value) != "Event loop is closed":  # from tensorstore, after Orbax has given up waiting for it
        usual(found)


def _reason(error: Exception) -> str:
    """The operating system's message for a failed write; for any other error its first line."""
    code = getattr(error, "errno", None) or (re.search(r"os_error_code='(\d+)'", str(error)) or [0, 0])[1]
    return os.strerror(int(code)) if code else first_line(error)[:200]


def _present(state: Any) -> dict[str, Any]:
    """The fields of a state (a NamedTuple) that are not None: a run without a buffer reads and writes what runs did before
    there was one."""
    return {name: value for name, value in state._asdict().items() if value is not None}


class Checkpoints:
    """Asynchronous, atomic saves of (state, meta) by step, of which the newest `keep` are kept. Use as a context manager.

    keep None: for reading only. A run may be saving there at the same time; its unfinished saves are not touched.
    """

    def __init__(self, directory: Path, keep: int | None = None):
        self.directory = directory if paths.in_bucket(directory) else Path(directory).absolute()
        writes = keep is not None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=writes, cleanup_tmp_directories=writes
        )
        self._failed, self._usual = False, sys.unraisablehook
        sys.unraisablehook = partial(_unraisable, self._usual)
        for log in _LOGS:
            log.addFilter(_not_of_orbax)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Waits for the save under way. Raises CheckpointError if it fails, unless that failure has been raised already."""
        if self._failed:  # the remains of a failed save warn when they are collected, perhaps at the end of the process
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            return
        self._written(self._manager.wait_until_finished)
        self._manager.close()
        sys.unraisablehook = self._usual
        for log in _LOGS:
            log.removeFilter(_not_of_orbax)

    def _written(self, act: Callable[[], Any]) -> None:
        """Calls a function that writes, or that reports earlier writes. Raises CheckpointError for its errors."""
        try:
            act()
        except (OSError, ValueError, RuntimeError, *paths.failures()) as error:
            self._failed = True
            raise CheckpointError(
                f"{self.directory}: a checkpoint cannot be written: {_reason(error)}; the same command resumes from the last one"
            ) from error

    def latest(self) -> int | None:
        """The last committed step, or None. An interrupted save is not committed."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All committed steps, in order."""
        return sorted(self._manager.all_steps())

    def reached_preemption(self, step: int) -> bool:
        """Whether one of several processes has received SIGTERM and all must stop after this step. Call it after every step.
        False in a single process."""
        return self._manager.reached_preemption(step)

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Starts a save and returns when `state` may be donated. Does nothing for a step that is already saved.

        Raises CheckpointError if the save cannot be started or the previous one has failed."""
        if step == self.latest():
            return
        # On CPU the host copy from which orbax writes may be the device buffer itself, which the next update reuses.
        state = jax.tree.map(jnp.copy, state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(_present(state)), meta=ocp.args.JsonSave(meta))
        self._written(lambda: self._manager.save(step, args=args))

    def wait(self) -> None:
        """Waits until the save under way is done. Raises CheckpointError if it fails."""
        self._written(self._manager.wait_until_finished)

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict]:
        """(state, meta), the state as `abstract_state` (ShapeDtypeStructs with shardings) describes it. Raises CheckpointError
        that names the step."""
        found, meta = self._read(step, ocp.args.StandardRestore(_present(abstract_state)))
        return abstract_state._replace(**found), meta

    def restore_params(self, step: int, abstract_params: Any) -> tuple[Any, dict]:
        """(params, meta) of a state. The optimiser's moments, which are twice as large, are not read."""
        part = {"params": abstract_params}
        how = ocp.checkpoint_utils.construct_restore_args(part)
        found, meta = self._read(step, ocp.args.PyTreeRestore(part, restore_args=how, partial_restore=True))
        return found["params"], meta

    def _read(self, step: int, state_args) -> tuple[Any, dict]:
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(state=state_args, meta=ocp.args.JsonRestore()))
        except (ValueError, KeyError, OSError, *paths.failures()) as error:
            raise CheckpointError(
                f"{self.directory / str(step)}: cannot be read ({first_line(error)[:200]}); delete that directory to resume "
                "from the step before it"
            ) from error
        return found.state, found.meta


def step_of(workdir: Path, step: int | None) -> int:
    """`step`, or if it is None the newest step with a checkpoint. Raises InputError if there is none. Step 0, the start, needs no
    checkpoint but must be asked for."""
    if step == 0:
        return 0
    directory = workdir / "checkpoints"
    steps = []
    if directory.is_dir():
        with Checkpoints(directory) as saved:
            steps = saved.steps()
    if not steps:
        raise InputError(
            f"{workdir}: {'no checkpoint yet' if workdir.is_dir() else 'no such run, so no checkpoint yet'}; --step=0 of "
            f"hir_jax.export, {workdir}@0 in hir_jax.evaluate, is the model that a run starts from"
        )
    found = steps[-1] if step is None else step
    if found not in steps:
        raise InputError(f"{workdir}: no checkpoint of step {step}; the steps there are: 0 (the start), {steps}")
    return found
