"""What the judged benchmarks share: their interface, questions to a judge and its answers, figures, and the reading of rows.

A verdict is True, False or None: unknown, because the judge gave no reply or one that cannot be read. Unknown verdicts
count as not met and are counted. With `published_quirks` the published aggregation comes out instead; each benchmark's
module says how it differs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from hir_jax.checks.judge.replies import without_reasoning
from hir_jax.checks.judge.soft import digest
from hir_jax.textfiles import RowError, read_jsonl
from hir_jax.types import Instruction

UNDECIDED = 2  # the verdict of a ComplexBench rule of no known kind
Verdict = bool | int | None  # int: UNDECIDED
Judgement = Sequence[Verdict]  # the verdicts on one response, mostly one per question
Replies = Sequence[str | None]  # of a judge; None: there is none
Messages = list[dict[str, str]]
Ask = Callable[[Messages], str | None]  # conversation -> the judge's reply


class JudgedPrompt(Protocol):
    """A row of a benchmark's file: a prompt with its questions, in a NamedTuple of the benchmark's own."""

    key: Any
    prompt: str


T = TypeVar("T", bound=JudgedPrompt)


class JudgedBenchmark(NamedTuple):
    """A benchmark whose verdicts come from a judge's replies.

    id: the name of a row's key in files of responses and judgements.
    read: path -> rows. RowError for a file that cannot be used.
    judge: (row, response, ask, earlier replies, None where one is to be asked for) -> replies, one per call.
    verdicts: (row, response, replies, published_quirks) -> the row's judgement, mostly one verdict per question.
    aggregate: (rows, judgements by key, published_quirks) -> figures that JSON can hold. All verdicts on a row without
        judgement are unknown.
    questions: row -> what is decided about its response, in order; a row without questions is not judged.
    calls: row -> how many replies of a judge it takes; 0 if rules decide.
    final: (row, one verdict per question) -> the verdicts that count, if questions depend on one another.
    undecidable: a verdict may be UNDECIDED.
    """

    id: str
    read: Callable[[str | Path], list[Any]]
    judge: Callable[[Any, str, Ask, Replies], list[str | None]]
    verdicts: Callable[[Any, str, Replies, bool], Any]
    aggregate: Callable[..., dict[str, Any]]
    questions: Callable[[Any], Sequence[Any]] = lambda row: row.questions
    calls: Callable[[Any], int] = lambda row: len(row.questions)
    final: Callable[[Any, Judgement], Judgement] = lambda row, verdicts: verdicts
    undecidable: bool = False

    def read_judged(self, path: str | Path) -> list[Any]:
        """The rows of a file that are answered and judged. RowError for a file that cannot be used or holds none."""
        rows = [row for row in self.read(path) if self.questions(row)]
        if not rows:
            raise RowError(f"{path}: no row has questions to score by")
        return rows


def as_instructions(rows: Sequence[JudgedPrompt], path: str | Path) -> list[Instruction]:
    """The rows as requests to a model; only the judge knows their constraints."""
    return [Instruction(row.prompt, (), "verbatim", row.key, f"{path}, {row.key}") for row in rows]


# ---- questions to a judge


def opening(system: str, question: str, /, **shown: str) -> Messages:
    """The first messages of a conversation: the texts `shown`, then the question.

    The lines around each text carry a mark that the text cannot know, so that it cannot end its own block.
    """
    mark = digest(question, shown)[:8]
    blocks = [f"=== {name} {mark}\n{text}\n=== end of {name} {mark}" for name, text in shown.items()]
    user = "\n\n".join([*blocks, question])
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


class Call(NamedTuple):
    """One question to a judge: the conversation, which replies can be read, and the reminder after one that cannot."""

    messages: Messages
    readable: Callable[[str], bool]
    reminder: str


def missing_replies(calls: Sequence[Call], ask: Ask, earlier: Replies) -> list[str | None]:
    """One reply per call: the earlier one if there is one, else the judge's."""
    kept = padded(earlier, len(calls))
    return [_asked(call, ask) if reply is None else reply for call, reply in zip(calls, kept, strict=True)]


def _asked(call: Call, ask: Ask) -> str | None:
    """The reply to a call, asked for once more if it cannot be read."""
    reply = ask(call.messages)
    if reply is None or call.readable(reply):
        return reply
    messages, said = call.messages, without_reasoning(reply)
    if said.strip():
        messages = [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": call.reminder}]
    again = ask(messages)
    return reply if again is None else again


_UPPER_CASE = re.compile(r"(?<![^\W_])(YES|NO)(?![^\W_])")


def upper_case_answers(text: str) -> list[bool]:
    """Every YES (True) and NO (False) that is a word of its own, in upper case."""
    return [word == "YES" for word in _UPPER_CASE.findall(text)]


def agreed(answers: Iterable[bool | None]) -> bool | None:
    """The one answer that is given; None if there is none or two differ. None among the answers does not count."""
    given = set(answers) - {None}
    return given.pop() if len(given) == 1 else None


# ---- figures


def row_accuracies(benchmark: JudgedBenchmark, row: JudgedPrompt, judgement: Judgement | None) -> dict[str, float]:
    """ILA (1 if all questions about the response are met, else 0) and CLA (the share that is met) of one row.

    Dependencies are applied, and unknown counts as not met. `judgement`: made without `published_quirks`.
    """
    found = benchmark.final(row, padded(judgement or (), len(benchmark.questions(row))))
    met = [verdict is True for verdict in found]
    return {"ila": float(all(met)), "cla": sum(met) / len(met)}


def padded(values: Sequence[Any], count: int) -> list[Any]:
    """The values, filled up with None to `count`."""
    return [*values, *[None] * (count - len(values))]


def unknown_counts(judgements: Iterable[Judgement]) -> dict[str, int]:
    """How many verdicts are unknown, and in how many rows."""
    counts = [sum(verdict is None for verdict in verdicts) for verdicts in judgements]
    return {"unknown": sum(counts), "unknown_rows": sum(map(bool, counts))}


# ---- rows


class Fields(NamedTuple):
    """The fields of a row, read with a check of their type; each error is a RowError that begins with `place`."""

    row: dict[str, Any]
    place: str

    def require(self, ok: object, what: str) -> None:
        if not ok:
            raise RowError(f"{self.place}: {what}")

    def checked(self, name: str, right: Callable[[Any], object], wanted: str) -> Any:
        """The value of a field, if `right` accepts it; `wanted` says in the error what would be accepted."""
        value = self.row.get(name)
        self.require(right(value), f"{name!r} must be {wanted}, not {value!r}")
        return value

    def text(self, name: str, *, blank: bool = True) -> str:
        wanted = "a string" if blank else "a non-blank string"
        return self.checked(name, lambda value: isinstance(value, str) and (blank or value.strip()), wanted)

    def number(self, name: str) -> int:
        return self.checked(name, lambda value: type(value) is int, "an integer")

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self.checked(name, _are_texts, "a list of strings"))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def read_rows(path: str | Path, make: Callable[[Fields], T], fields: Iterable[Fields] | None = None) -> list[T]:
    """`make` of every row of a JSON Lines file; of `fields`, if the file has another form.

    RowError for an unreadable or empty file, for a repeated key, and from `make`.
    """
    rows: dict[str, T] = {}
    lines = (Fields(row, f"{path}:{number}") for number, row in read_jsonl(path))
    for one in lines if fields is None else fields:
        made = make(one)
        one.require(rows.setdefault(str(made.key), made) is made, f"key {made.key!r} was used before")
    if not rows:
        raise RowError(f"{path}: holds no rows")
    return list(rows.values())
