"""Writes TensorBoard event files in the calling thread.

tensorboardX's SummaryWriter writes in a thread of its own. If the disk is full, that thread ends with a traceback and the run
continues without its curves; here the caller gets the OSError.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from hir_jax.imports import without
from hir_jax.run.files import named_in_errors

with without("torch"):  # two seconds, to know the type of tensors, which are never given here
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

_POSITIVE = 1e-12 * 1.1 ** np.arange(775)  # TensorFlow's histogram bins, up to 1e20
_BINS = np.concatenate([-_POSITIVE[::-1], [0.0], _POSITIVE])


class Board:
    """One event file in a directory. TensorBoard hides the steps from `first_step` on that older files there hold."""

    def __init__(self, directory: Path, first_step: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._writer = directory, EventsWriter(str(directory / "events"))
        for what in ({"file_version": "brain.Event:2"}, {"session_log": SessionLog(status=SessionLog.START)}):
            self._write(Event(step=first_step, **what))

    def _write(self, event: Event) -> None:
        with named_in_errors(self._directory):
            self._writer.write_event(event)

    def _add(self, found: Summary, step: int) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=found))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes all values as one event. One event each took a tenth of a step of the tiny environment."""
        self._add(Summary(value=[{"tag": name, "simple_value": value} for name, value in values.items()]), step)

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """Writes a histogram of at least one value."""
        self._add(summary.histogram(name, values, _BINS), step)

    def text(self, name: str, text: str, step: int) -> None:
        self._add(summary.text(name, text), step)

    def flush(self) -> None:
        """Writes all added events to the file. Raises OSError that names the directory."""
        with named_in_errors(self._directory):
            self._writer.flush()

    def close(self) -> None:
        """Closes the file. Errors are ignored here, because `flush` has raised them already."""
        with suppress(OSError):
            self._writer.close()
