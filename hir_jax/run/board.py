"""TensorBoard's event files, written by the thread that calls.

tensorboardX's SummaryWriter hands events to a thread of its own. A full disk ends that thread with a traceback, and the run goes
on without its curves; here the caller gets the OSError.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

_POSITIVE = 1e-12 * 1.1 ** np.arange(775)  # TensorFlow's bins of histograms, up to 1e20
_BINS = np.concatenate([-_POSITIVE[::-1], [0.0], _POSITIVE])


class Board:
    """One event file in a directory. What files from before have of `first_step` and later is hidden in TensorBoard."""

    def __init__(self, directory: Path, first_step: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._writer = directory, EventsWriter(str(directory / "events"))
        for what in ({"file_version": "brain.Event:2"}, {"session_log": SessionLog(status=SessionLog.START)}):
            self._write(Event(step=first_step, **what))

    def _write(self, event: Event) -> None:
        try:
            self._writer.write_event(event)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._directory)) from error

    def _add(self, found: Summary, step: int) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=found))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One event for all: one for each took a tenth of a step of the tiny environment."""
        self._add(Summary(value=[{"tag": name, "simple_value": value} for name, value in values.items()]), step)

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """Of one value or more."""
        self._add(summary.histogram(name, values, _BINS), step)

    def text(self, name: str, text: str, step: int) -> None:
        self._add(summary.text(name, text), step)

    def flush(self) -> None:
        """What was added is in the file. Raises OSError that names the directory."""
        try:
            self._writer.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._directory)) from error

    def close(self) -> None:
        """Of what was flushed nothing is left to write; what could not be flushed was an error then."""
        with suppress(OSError):
            self._writer.close()
