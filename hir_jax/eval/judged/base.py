"""What the judge-scored benchmarks have in common: their shape, the questions to a judge, and the reading of rows.

A verdict is True, False or None: unknown, because the judge gave no answer or none that can be read. Unknown verdicts
count as not met and are counted. With `published_quirks` the published aggregation comes out instead; each benchmark's
module says how it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hir_jax.checks.judge.replies import without_reasoning
from hir_jax.checks.judge.soft import digest
from hir_jax.textfiles import RowError, read_jsonl

UNDECIDED = 2  # ComplexBench: the rule of a question is of no known kind
Verdict = bool | int | None  # int: UNDECIDED
Messages = list[dict[str, str]]
Ask = Callable[[Messages], str | None]  # a judge's reply to a conversation; None: there is none
Row = Any  # a benchmark's own row: a NamedTuple with at least `key` and `prompt`
T = TypeVar("T")


class JudgedBenchmark(NamedTuple):
    """A benchmark whose verdicts come from a judge's replies.

    id: the name of a row's key in files of responses and judgements.
    read: path -> rows. RowError for a file that cannot be used.
    questions: row -> what is decided about its response, in order; none: the row is not scored.
    calls: row -> how many replies of a judge it takes; 0: rules decide.
    judge: (row, response, ask, earlier replies, None where one is to be asked for) -> replies, one per call.
    verdicts: (row, response, replies, published_quirks) -> the row's judgement, mostly one verdict per question.
    aggregate: (rows, judgements by key, published_quirks) -> figures that JSON can hold. A row without judgement is
    unknown as a whole.
    final: (row, one verdict per question) -> the verdicts that count, where questions depend on one another.
    """

    id: str
    read: Callable[[str | Path], list[Row]]
    questions: Callable[[Row], Sequence[str]]
    calls: Callable[[Row], int]
    judge: Callable[[Row, str, Ask, Sequence[str | None]], list[str | None]]
    verdicts: Callable[[Row, str, Sequence[str | None], bool], Any]
    aggregate: Callable[..., dict[str, Any]]
    final: Callable[[Row, Sequence[Verdict]], Sequence[Verdict]] = lambda row, verdicts: verdicts


# ---- questions to a judge


def opening(system: str, question: str, /, **shown: str) -> Messages:
    """A conversation's first messages: `shown`, each text between lines with a mark that it cannot know, so that none can
    end its own block, and then the question."""
    mark = digest(question, shown)[:8]
    blocks = [f"=== {name} {mark}\n{text}\n=== end of {name} {mark}" for name, text in shown.items()]
    user = "\n\n".join([*blocks, question])
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def asked(ask: Ask, messages: Messages, readable: Callable[[str], bool], reminder: str) -> str | None:
    """The reply, asked for once more if it cannot be read."""
    reply = ask(messages)
    if reply is None or readable(reply):
        return reply
    said = without_reasoning(reply)
    if said.strip():
        messages = [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": reminder}]
    again = ask(messages)
    return reply if again is None else again


# ---- figures


def row_accuracies(benchmark: JudgedBenchmark, row: Row, judgement: Sequence[Verdict] | None) -> dict[str, float]:
    """ILA (1 if all questions about the response are met, else 0) and CLA (the share that is met) of one row, after
    dependencies; unknown is not met. `judgement`: without `published_quirks`."""
    found = benchmark.final(row, padded(judgement or (), len(benchmark.questions(row))))
    met = [verdict is True for verdict in found]
    return {"ila": float(all(met)), "cla": sum(met) / len(met)}


def share(verdicts: Iterable[Verdict]) -> float | None:
    """The share that is met; None of nothing. UNDECIDED is met: see `complexbench`."""
    verdicts = list(verdicts)
    return sum(map(bool, verdicts)) / len(verdicts) if verdicts else None


def padded(verdicts: Sequence[Verdict], count: int) -> list[Verdict]:
    """The rest is unknown."""
    return [*verdicts, *[None] * (count - len(verdicts))]


def unknown_counts(judgements: Iterable[Sequence[Verdict]]) -> dict[str, int]:
    """How many verdicts are unknown, and in how many rows."""
    counts = [sum(verdict is None for verdict in verdicts) for verdicts in judgements]
    return {"unknown": sum(counts), "unknown_rows": sum(map(bool, counts))}


# ---- rows


def read_rows(path: str | Path, make: Callable[[dict[str, Any], str], T]) -> list[T]:
    """`make(object, "PATH:LINE")` of every line. RowError for an unreadable or empty file and for a repeated key."""
    return unique(path, ((f"{path}:{number}", row) for number, row in read_jsonl(path)), make)


def unique(
    path: str | Path, placed: Iterable[tuple[str, dict[str, Any]]], make: Callable[[dict[str, Any], str], T]
) -> list[T]:
    rows: dict[str, T] = {}
    for place, row in placed:
        made = make(row, place)
        if rows.setdefault(str(made.key), made) is not made:
            raise RowError(f"{place}: key {made.key!r} was used before")
    if not rows:
        raise RowError(f"{path}: holds no rows")
    return list(rows.values())


def text_of(row: dict[str, Any], name: str, place: str, blank: bool = True) -> str:
    """The string in a field; RowError for anything else, and for a blank one unless `blank`."""
    value = row.get(name)
    if not isinstance(value, str) or not (blank or value.strip()):
        raise RowError(f"{place}: {name!r} must be a {'' if blank else 'non-blank '}string, not {value!r}")
    return value


def number_of(row: dict[str, Any], name: str, place: str) -> int:
    value = row.get(name)
    if type(value) is not int:
        raise RowError(f"{place}: {name!r} must be an integer, not {value!r}")
    return value


def texts_of(row: dict[str, Any], name: str, place: str) -> tuple[str, ...]:
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise RowError(f"{place}: {name!r} must be a list of strings, not {value!r}")
    return tuple(value)
