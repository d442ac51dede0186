"""Soft constraints: requirements that no rule can decide are put to a judge, and every verdict is kept on disk.

`Judge` decides the constraints that are declared here ("soft": the requirement is `Constraint.text`). It looks each different
(request, constraint, response) up in its cache and asks its backend for the rest, once each: `endpoint.Endpoint`, a model
behind HTTP, or `hir_jax.eval.local_judge.LocalModel`, a model on this machine.
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from hir_jax import paths
from hir_jax.checks import registry, worker
from hir_jax.checks.judge.wordings import GENERATED
from hir_jax.checks.worker import Outcome
from hir_jax.pathflags import expanded
from hir_jax.types import InputError

if TYPE_CHECKING:
    from hir_jax.checks.verifier import Question

SOFT = "soft"
DECIDER = "judge"
# Why a verdict is unknown.
UNANSWERED = "judge_unanswered"  # the endpoint failed, refused or was too slow; or the batch's deadline passed
UNREADABLE = "judge_unreadable"  # it answered, but not in the form that was asked for
TOO_LONG = "judge_too_long"  # the question does not fit the local model

KINDS = ("", "endpoint", "local")
_LOG = logging.getLogger(__name__)

registry.declare(SOFT, lambda: "Meet the requirement as it is stated.", decider=DECIDER, generated=GENERATED)


class JudgeError(InputError):
    """The judge cannot be set up: its settings, key, cache file or model. The message says what to change."""


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of the judge. Raises JudgeError for values that cannot work.

    kind "endpoint": any server of OpenAI's chat completions; "local": a checkpoint of `hir_jax.model`; "": no judge.
    """

    kind: str = ""  # "" | endpoint | local
    model: str = ""  # the endpoint's name of the model; or a directory, .gguf file, hub id or alias
    cache: str = ""  # SQLite file of verdicts, on a local disk, shared by processes of one machine; "": in memory
    threshold: float = 0.5  # met if P(yes) / (P(yes) + P(no)) is above it; an endpoint's answers are 0 and 1
    deadline_seconds: float = 600.0  # for the questions of one batch; the rest are then unknown
    # endpoint
    base_url: str = "https://api.openai.com/v1"  # of the endpoint, up to /chat/completions
    api_key_env: str = "OPENAI_API_KEY"  # environment variable that holds the key; "": the endpoint needs none
    concurrency: int = 16  # requests at a time
    timeout_seconds: float = 60.0  # of one request
    retries: int = 4  # of a request that failed but may succeed later
    backoff_seconds: float = 1.0  # wait before the first retry; doubles each time, with jitter
    backoff_max_seconds: float = 60.0  # a longer Retry-After of the server is honoured all the same
    temperature: float = 0.0  # below 0: not sent, for models that refuse it
    max_tokens: int = 0  # of an answer; 0: not sent, the endpoint decides
    price_in: float = 0.0  # per million prompt tokens, any currency
    price_out: float = 0.0  # per million completion tokens
    # local
    batch_tokens: int = 8192  # rows x columns of one forward pass
    max_length: int = 4096  # tokens of a question, at most the model's own limit
    dtype: str = "float32"  # of parameters and activations: float32 | bfloat16

    def __post_init__(self):
        def require(ok: bool, name: str, what: str) -> None:
            if not ok:
                raise JudgeError(f"the judge's {name} is {getattr(self, name)!r}; it must be {what}")

        require(self.kind in KINDS, "kind", "one of " + ", ".join(map(repr, KINDS)))
        require(not self.kind or bool(self.model.strip()), "model", "named")
        require(0 <= self.threshold < 1, "threshold", "at least 0 and below 1")
        require(self.dtype in ("float32", "bfloat16"), "dtype", "float32 or bfloat16")
        for name in ("deadline_seconds", "timeout_seconds", "concurrency", "batch_tokens", "max_length"):
            require(getattr(self, name) > 0, name, "positive")
        for name in ("retries", "backoff_seconds", "backoff_max_seconds", "max_tokens", "price_in", "price_out"):
            require(getattr(self, name) >= 0, name, "0 or more")


class Case(NamedTuple):
    """One question: everything that a judge is shown."""

    prompt: str  # the user's request, as rendered
    constraint: str
    response: str


class Unanswered(NamedTuple):
    """Why there is no verdict; `detail` is for the log and holds no secret."""

    reason: str
    detail: str


@dataclass
class Usage:
    """Counts since the judge was opened; tokens as the endpoint reports them, or as counted for a local model."""

    cached: int = 0  # different questions answered by the cache
    requests: int = 0  # sent, including retries
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0  # in the currency of the prices


Keep = Callable[[Case, float], None]  # called with each score, 0 (no) to 1 (yes), as soon as it is known


class Backend(Protocol):
    """Answers cases. `identity` holds everything that a verdict depends on besides the case, and no secret."""

    identity: Mapping[str, object]
    usage: Usage

    def ask(self, cases: Sequence[Case], keep: Keep) -> dict[Case, Unanswered]:
        """Passes each score to `keep`; returns the cases without one. Called by one thread at a time."""
        ...

    def close(self) -> None: ...


def digest(*parts: object) -> str:
    """SHA-256, in hex, of values that JSON can hold; strings may have lone surrogates."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("ascii")).hexdigest()


class VerdictCache:
    """Scores by key in one SQLite file, each committed when it is put, so that they survive a kill.

    path "" keeps them in memory. Raises JudgeError for a file that is not such a cache or cannot be written.
    """

    def __init__(self, path: str | Path = ""):
        self._lock = threading.Lock()
        try:
            path = expanded(str(path))
            if path:
                paths.local(path).parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path or ":memory:", timeout=30.0, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, judge TEXT NOT NULL, score REAL NOT NULL)"
            )
            self._connection.execute("SELECT key, judge, score FROM verdicts LIMIT 1")
        except (sqlite3.Error, OSError) as error:
            raise JudgeError(
                f"{path}: cannot be used as the judge's cache ({error}); name another file, or move this one away"
            ) from None

    def get(self, keys: Iterable[str]) -> dict[str, float]:
        """The scores that are cached, by key."""
        found = {}
        with self._lock:
            for key in keys:
                row = self._connection.execute("SELECT score FROM verdicts WHERE key = ?", (key,)).fetchone()
                if row:
                    found[key] = row[0]
        return found

    def put(self, key: str, judge: str, score: float) -> None:
        """Writes a score to disk before it returns. `judge` is for people who read the file."""
        with self._lock:
            self._connection.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", (key, judge, score))

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class Judge:
    """Decides soft constraints for `verifier.Verifier`: returns an outcome for every question.

    A blank response meets no requirement, without a question. Calls from several threads wait for one another. `close` closes
    the backend and the cache.
    """

    def __init__(self, backend: Backend, cache: VerdictCache, threshold: float = 0.5):
        self._backend = backend
        self._cache = cache
        self._threshold = threshold
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._backend.close()
        self._cache.close()

    @property
    def usage(self) -> Usage:
        return self._backend.usage

    def __call__(self, questions: Sequence[Question]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        askers: dict[Case, list[Question]] = collections.defaultdict(list)
        for question in questions:
            text = question.constraint.text
            if not text.strip():
                outcomes.append(worker.unknown(question, worker.BAD_ARGUMENTS, "the constraint has no text"))
            elif not question.response.strip():
                outcomes.append(Outcome(question.row, question.position, False))
            else:
                askers[Case(question.prompt, text, question.response)].append(question)
        scores, failures = self._scores(list(askers))
        for case, same in askers.items():
            if case in scores:
                satisfied = scores[case] > self._threshold
                outcomes += [Outcome(question.row, question.position, satisfied) for question in same]
            else:
                outcomes += [worker.unknown(question, *failures[case]) for question in same]
        return outcomes

    def _scores(self, cases: Sequence[Case]) -> tuple[dict[Case, float], dict[Case, Unanswered]]:
        keys = {case: digest(self._backend.identity, *case) for case in cases}
        with self._lock:
            cached = self._cache.get(keys.values())
            scores = {case: cached[key] for case, key in keys.items() if key in cached}
            self.usage.cached += len(scores)

            def keep(case: Case, score: float) -> None:
                scores[case] = score
                try:
                    self._cache.put(keys[case], str(self._backend.identity["model"]), score)
                except sqlite3.Error as error:  # a full disk, for example: the verdict still counts in this run
                    _LOG.warning("a verdict of the judge could not be kept on disk: %s", error)

            missing = [case for case in cases if case not in scores]
            return scores, (self._backend.ask(missing, keep) if missing else {})
