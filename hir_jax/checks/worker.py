"""What a verifier's worker does: checks under a time limit, each with an outcome whatever happens to it.

Workers import this module, the registry and the families, and none of these imports jax (JAX's threads do not survive
a fork, and a worker needs none of its memory).
"""

from __future__ import annotations

import importlib
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from hir_jax.checks import registry
from hir_jax.types import Constraint

# Why a verdict is unknown.
BAD_ARGUMENTS = "bad_arguments"
RAISED = "raised"
TIMED_OUT = "timed_out"
DIED = "died"


class Check(NamedTuple):
    """One constraint of a row; `row` and `position` say where its verdict belongs."""

    row: int
    position: int
    id: str
    arguments: dict[str, Any]


class Job(NamedTuple):
    """A response and its checks: the response travels to a worker once."""

    response: str
    prompt: str
    checks: tuple[Check, ...]


class Outcome(NamedTuple):
    row: int
    position: int
    satisfied: bool
    reason: str = ""  # why the verdict is unknown; "" where it is known
    detail: str = ""


class _OutOfTime(BaseException):
    """Not an Exception: no check that guards itself with `except Exception` can keep it from leaving."""


def initialise(modules: Sequence[str]) -> None:
    """Import the families and load their language data, so that no check pays for it."""
    # pebble's handler runs in Python, which a check that hangs in C never comes back to; the default one kills.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for module in modules:
        importlib.import_module(module)
    registry.load()


def ready() -> None:
    """A task that does nothing: its result says that a worker is up."""


def _ring(signum: int, frame: Any) -> None:
    raise _OutOfTime


@contextmanager
def _alarm_handler() -> Iterator[None]:
    previous = signal.signal(signal.SIGALRM, _ring)  # ValueError outside the main thread
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, previous)


def _outcome(check: Check, job: Job, loose: bool, seconds: float) -> Outcome:
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)  # again, should the first ring be swallowed
            constraint = Constraint(check.id, check.arguments)
            satisfied = registry.check(constraint, job.response, job.prompt, loose=loose)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _OutOfTime:
        signal.setitimer(signal.ITIMER_REAL, 0)  # it may have rung just before the line above
        return Outcome(check.row, check.position, False, TIMED_OUT, f"no verdict within {seconds:g} s")
    except registry.ConstraintError as error:
        return Outcome(check.row, check.position, False, BAD_ARGUMENTS, str(error))
    except (Exception, SystemExit) as error:
        return Outcome(check.row, check.position, False, RAISED, f"{type(error).__name__}: {error}"[:500])
    return Outcome(check.row, check.position, satisfied)


def run(jobs: Sequence[Job], loose: bool, seconds: float) -> list[Outcome]:
    """Outcomes of the checks in order, each within `seconds`; of as many as are begun within `seconds`, at least one.

    Stopping there bounds the time of a call by twice `seconds`, so that a caller can tell a hung worker from a slow
    one; it hands in the rest again. Needs the main thread (ValueError otherwise): the limit is an alarm signal, which
    interrupts Python code and regular expressions.
    """
    outcomes: list[Outcome] = []
    start = time.monotonic()
    with _alarm_handler():
        for job in jobs:
            for check in job.checks:
                if outcomes and time.monotonic() - start > seconds:
                    return outcomes
                outcomes.append(_outcome(check, job, loose, seconds))
    return outcomes
