"""Runs checks in a verifier's worker, each under a time limit and with an outcome whatever happens to it.

Workers import this module, the registry and the families. None of these imports jax, whose threads do not survive a fork and
whose memory a worker does not need.
"""

from __future__ import annotations

import importlib
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from hir_jax.checks import registry, user
from hir_jax.types import Constraint

if TYPE_CHECKING:
    from hir_jax.checks.verifier import Question

# Why a verdict is unknown.
BAD_ARGUMENTS = "bad_arguments"
RAISED = "raised"
TIMED_OUT = "timed_out"
DIED = "died"


class Check(NamedTuple):
    """One constraint of a row; `row` and `position` are the place of its verdict."""

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
    """The verdict on one constraint of a row."""

    row: int
    position: int
    satisfied: bool
    reason: str = ""  # why the verdict is unknown; "" where it is known
    detail: str = ""


def unknown(asked: Check | Question, reason: str, detail: str) -> Outcome:
    """The outcome of a check or question without a verdict."""
    return Outcome(asked.row, asked.position, False, reason, detail)


class _OutOfTime(BaseException):
    """Not an Exception, so that a check with `except Exception` does not catch it."""


def initialise(modules: Sequence[str], ids: Sequence[str] | None) -> None:
    """Imports the families, those of users' files by path, and prepares the checks of `ids` (see `registry.load`)."""
    # pebble's handler runs in Python, so a check that hangs in C would never get to it; the default one kills the process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for module in modules:
        user.load(module) if module.endswith(".py") else importlib.import_module(module)
    registry.load(ids)


def ready() -> None:
    """Does nothing: its result shows that a worker is up."""


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
            signal.setitimer(
                signal.ITIMER_REAL, seconds, seconds
            )  # repeatedly, in case the check catches the first one
            constraint = Constraint(check.id, check.arguments)
            satisfied = registry.check(constraint, job.response, job.prompt, loose=loose)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _OutOfTime:
        signal.setitimer(signal.ITIMER_REAL, 0)  # it may have rung just before the timer was stopped
        return unknown(check, TIMED_OUT, f"no verdict within {seconds:g} s")
    except registry.ConstraintError as error:
        return unknown(check, BAD_ARGUMENTS, str(error))
    except (Exception, SystemExit) as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return unknown(check, RAISED, f"{type(error).__name__}: {error}"[:500] + f" ({at.filename}:{at.lineno})")
    return Outcome(check.row, check.position, satisfied)


def run(jobs: Sequence[Job], loose: bool, seconds: float) -> list[Outcome]:
    """Outcomes of the checks in order, each within `seconds`. No check is begun after `seconds`, except the first.

    So a call takes at most twice `seconds`, and the caller can tell a hung worker from a slow one; it submits the remaining
    checks again. Needs the main thread (ValueError otherwise): the limit is an alarm signal, which interrupts Python code
    and regular expressions.
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
