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
    """Asynchronous, atomic saves of (state, meta) by step; the newest `keep` stay. Use as a context manager."""

    def __init__(self, directory: Path, keep: int):
        self.directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
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
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), meta=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(step, args=args)
        except (ValueError, KeyError, FileNotFoundError, OSError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointError(
                f"{self.directory / str(step)}: cannot be read ({first}); delete that directory to resume from the step "
                "before it"
            ) from error
        return found.state, found.meta
