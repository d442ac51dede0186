"""Orbax checkpoints of a run. The only module that imports orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from hir_jax.types import InputError


class CheckpointError(InputError):
    """A checkpoint that cannot be read; the message names the directory and what to do."""


class Checkpoints:
    """Asynchronous, atomic saves of (state, meta) by step; the newest `keep` stay. Use as a context manager.

    keep None: for reading alone, beside a run that may be saving: its unfinished saves are left in peace.
    """

    def __init__(self, directory: Path, keep: int | None = None):
        self.directory = Path(directory).absolute()
        writes = keep is not None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=writes, cleanup_tmp_directories=writes
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Waits for the save under way."""
        self._manager.wait_until_finished()
        self._manager.close()

    def latest(self) -> int | None:
        """The last committed step, or None; a save that was cut off does not count."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All committed steps, in order."""
        return sorted(self._manager.all_steps())

    def reached_preemption(self, step: int) -> bool:
        """Whether a process of several has had SIGTERM and this is the step after which all are to stop: to be asked after every
        step. False in a single process."""
        return self._manager.reached_preemption(step)

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Starts a save; returns once `state` may be donated. Does nothing for a step that is already saved."""
        if step == self.latest():
            return
        # On CPU the host copy that orbax writes from may be the device buffer itself, which the next update reuses.
        state = jax.tree.map(jnp.copy, state)
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        )

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict]:
        """State as `abstract_state` (ShapeDtypeStructs with shardings) and meta. Raises CheckpointError naming the step."""
        return self._read(step, ocp.args.StandardRestore(abstract_state))

    def restore_params(self, step: int, abstract_params: Any) -> tuple[Any, dict]:
        """The same of the state's `params` alone: neither read nor held are the moments, twice as large."""
        part = {"params": abstract_params}
        how = ocp.checkpoint_utils.construct_restore_args(part)
        found, meta = self._read(step, ocp.args.PyTreeRestore(part, restore_args=how, partial_restore=True))
        return found["params"], meta

    def _read(self, step: int, state_args) -> tuple[Any, dict]:
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(state=state_args, meta=ocp.args.JsonRestore()))
        except (ValueError, KeyError, FileNotFoundError, OSError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointError(
                f"{self.directory / str(step)}: cannot be read ({first}); delete that directory to resume from the step "
                "before it"
            ) from error
        return found.state, found.meta
