"""The host verifier: checks a batch's constraints in a pool of processes, with a time limit on every check.

Rows go to the workers in chunks. Inside a worker each check runs under an alarm; a check that no signal interrupts is
stopped by killing its worker, after which the checks of its chunk run one by one, so that only the check that hung is
unknown. Verdicts do not depend on the number of workers; those of checks that come near the limit depend on the machine.
Constraints that are declared for a decider (a judge, the code sandbox) go to it at the same time, a batch in one call.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import sys
import threading
import types as python_types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import NamedTuple, Self

import numpy as np
from pebble import ProcessExpired, ProcessPool

from hir_jax.checks import registry, worker
from hir_jax.checks.worker import Check, Job, Outcome
from hir_jax.types import Constraint, Verdicts

_CHUNKS_PER_WORKER = 4  # so that workers finish together although rows differ
_GRACE_SECONDS = 1.0  # allowed for sending the answer before a worker counts as hung
_LOG = logging.getLogger(__name__)


class Row(NamedTuple):
    """A response and its constraints. `prompt`: the user's request; `label` names the row in the log."""

    constraints: Sequence[Constraint]
    response: str
    prompt: str
    label: str


class Question(NamedTuple):
    """One declared constraint of a row, for its decider; `row` and `position` are the place of the verdict."""

    row: int
    position: int
    constraint: Constraint
    response: str
    prompt: str
    label: str


# Called from a thread with the questions of one batch; returns an outcome for each, whatever happens, in any order.
Decider = Callable[[Sequence[Question]], Sequence[Outcome]]


_MAIN_LOCK = threading.Lock()


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keeps multiprocessing from telling a process that starts to import this program's main module.

    Under `python -m hir_jax.train` that would import jax into every worker.
    """
    with _MAIN_LOCK:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = python_types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


class _Process(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj):  # noqa: N802 (the name that multiprocessing calls)
        with _main_module_hidden():
            return ForkServerProcess._Popen(process_obj)


class _Context(ForkServerContext):
    Process = _Process


def _without(job: Job, done: set[tuple[int, int]]) -> Job:
    return job._replace(checks=tuple(check for check in job.checks if (check.row, check.position) not in done))


def _remaining(jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> list[Job]:
    done = {(outcome.row, outcome.position) for outcome in outcomes}
    return [job for job in (_without(job, done) for job in jobs) if job.checks]


def _singles(jobs: Sequence[Job]) -> list[Job]:
    return [job._replace(checks=(check,)) for job in jobs for check in job.checks]


class Verifier:
    """Checks rows of constraints. A context manager; `close` ends the workers.

    workers: processes, which load what they need until the first rows are to be verified; 0 checks in this process (main thread
      only, and without protection against a check that ends its process or that no signal interrupts).
    timeout_seconds: wall-clock limit of each check.
    deciders: by name, for the constraints that are declared for them. Also an attribute.
    unknown_counts: the number of unknown verdicts so far, by reason (bad_arguments, raised, timed_out, died, and the
      deciders' own).
    ids: types that it will be asked about; None: any.
    Raises `english.MissingDataError` if language data that these need are missing.
    """

    def __init__(
        self,
        workers: int,
        timeout_seconds: float,
        deciders: Mapping[str, Decider] | None = None,
        ids: Iterable[str] | None = None,
    ):
        if workers < 0 or not timeout_seconds > 0:
            raise ValueError(f"workers must be >= 0 and timeout_seconds > 0, not {workers} and {timeout_seconds}")
        self._ids = None if ids is None else sorted(set(ids))
        registry.load(self._ids)  # also with workers, so that missing data are one clear error of this process
        self.unknown_counts: collections.Counter[str] = collections.Counter()
        self._workers = workers
        self._seconds = timeout_seconds
        self.deciders = dict(deciders or {})
        self._started: Future | None = None  # of the pool that is starting
        self._pool: ProcessPool | None = self._started_pool() if workers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers. A second call does nothing."""
        if self._pool is not None:
            wait([self._started])
            self._pool.stop()
            self._pool.join()
            self._pool = None
            self._workers = -1

    def verify(self, rows: Sequence[Row], width: int, *, loose: bool = False) -> Verdicts:
        """Verdicts bool[B, width] (NumPy) of B rows by position of the constraint.

        A check that raises, times out, kills its worker or has unusable arguments is neither `known` nor `satisfied`, and
        is counted and logged. Raises ValueError for a row with more than `width` constraints and UnknownConstraintError for
        an id that is not registered: both are mistakes in loading, not of a response.
        """
        if self._workers < 0:
            raise RuntimeError("this Verifier was closed")
        jobs = [self._job(index, row, width) for index, row in enumerate(rows)]
        with self._asked(self._questions(rows)) as answers:
            outcomes = self._outcomes([job for job in jobs if job.checks], loose)
            outcomes += [outcome for answer in answers for outcome in answer.result()]
        satisfied, known, present = (np.zeros((len(rows), width), dtype=bool) for _ in range(3))
        for index, row in enumerate(rows):
            present[index, : len(row.constraints)] = True
        for outcome in sorted(outcomes):
            satisfied[outcome.row, outcome.position] = outcome.satisfied
            known[outcome.row, outcome.position] = not outcome.reason
            if outcome.reason:
                row = rows[outcome.row]
                self.unknown_counts[outcome.reason] += 1
                _LOG.warning(
                    "%s: constraint %d (%s) is unknown, %s: %s",
                    row.label, outcome.position, row.constraints[outcome.position].id, outcome.reason, outcome.detail,
                )  # fmt: skip
        return Verdicts(satisfied, known, present)

    def _job(self, index: int, row: Row, width: int) -> Job:
        if len(row.constraints) > width:
            raise ValueError(f"{row.label}: {len(row.constraints)} constraints, but room for {width}")
        checks = []
        for position, constraint in enumerate(row.constraints):
            try:
                decider = registry.decider(constraint.id)
            except registry.UnknownConstraintError as error:
                raise registry.UnknownConstraintError(f"{row.label}: {error}") from None
            if not decider:
                checks.append(Check(index, position, constraint.id, dict(constraint.arguments)))
            elif decider not in self.deciders:
                raise registry.ConstraintError(
                    f"{row.label}: {constraint.id} has no decider: {decider!r} is not set up"
                )
        return Job(row.response, row.prompt, tuple(checks))

    def _questions(self, rows: Sequence[Row]) -> dict[str, list[Question]]:
        """The declared constraints of the rows, by decider."""
        questions: dict[str, list[Question]] = collections.defaultdict(list)
        for index, row in enumerate(rows):
            for position, constraint in enumerate(row.constraints):
                if decider := registry.decider(constraint.id):
                    question = Question(index, position, constraint, row.response, row.prompt, row.label)
                    questions[decider].append(question)
        return questions

    @contextlib.contextmanager
    def _asked(self, questions: dict[str, list[Question]]) -> Iterator[list[Future[Sequence[Outcome]]]]:
        """Runs the deciders, each in a thread."""
        if not questions:
            yield []
            return
        with ThreadPoolExecutor(len(questions)) as threads:
            yield [threads.submit(self.deciders[name], asked) for name, asked in questions.items()]

    def _outcomes(self, jobs: list[Job], loose: bool) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while jobs:
            new = self._round(jobs, loose) if self._pool else worker.run(jobs, loose, self._seconds)
            outcomes += new
            jobs = _remaining(jobs, new)
        return outcomes

    # The pool

    def _started_pool(self) -> ProcessPool:
        context = _Context()
        context.set_forkserver_preload([worker.__name__, "hir_jax.checks.load_language_data"])
        pool = ProcessPool(
            self._workers, initializer=worker.initialise, initargs=(registry.modules(), self._ids), context=context
        )

        def start() -> None:
            for future in [pool.schedule(worker.ready) for _ in range(self._workers)]:
                future.result()

        starter = ThreadPoolExecutor(1)
        self._started = starter.submit(start)
        starter.shutdown(wait=False)
        return pool

    def _scheduled(self, jobs: Sequence[Job], loose: bool):
        if not self._pool.active:  # broken: a worker died while idle
            self._pool.stop()
            self._pool.join()
            self._pool = self._started_pool()
        self._started.result()
        limit = 2 * self._seconds + _GRACE_SECONDS  # see `worker.run`
        return self._pool.schedule(worker.run, args=(list(jobs), loose, self._seconds), timeout=limit)

    def _round(self, jobs: list[Job], loose: bool) -> list[Outcome]:
        """One pass over `jobs` in chunks. Returns outcomes of at least one check of every chunk."""
        size = -(-len(jobs) // (self._workers * _CHUNKS_PER_WORKER))
        chunks = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        futures = [self._scheduled(chunk, loose) for chunk in chunks]
        outcomes: list[Outcome] = []
        lost: list[Job] = []
        for chunk, future in zip(chunks, futures, strict=True):
            try:
                outcomes += future.result()
            except (TimeoutError, ProcessExpired, BrokenProcessPool):
                lost += chunk
        # Only now, with nothing else running, so that a death can be attributed to one check.
        return outcomes + [self._alone(job, loose) for job in _singles(lost)]

    def _alone(self, job: Job, loose: bool) -> Outcome:
        (check,) = job.checks
        try:
            (outcome,) = self._scheduled([job], loose).result()
            return outcome
        except TimeoutError:
            detail = f"still running after {2 * self._seconds + _GRACE_SECONDS:g} s, its worker was killed"
            return worker.unknown(check, worker.TIMED_OUT, detail)
        except (ProcessExpired, BrokenProcessPool) as error:
            return worker.unknown(check, worker.DIED, f"its worker ended: {error}")
