"""Files of judgements, and the judging that writes them. JSON Lines, one row per response that was judged:

    {KEY: of the prompt, "replies": [text or null, ...]}
    {KEY: of the prompt, "verdicts": [true, false or null, ...]}

KEY is `idx` (cfbench), `key` (followbench: "TYPE/EXAMPLE/LEVEL"), `main_id` (complexbench) or `id` (infobench). `replies`
are a judge's, as they came, one per call: one in cfbench and followbench, one per question in order in the others (in
complexbench the extraction where the question has a rule). `verdicts` are one per question; 1 and 0 will do, and
complexbench also has 2. null is unknown, and so is what a shorter list leaves out. Of several rows for one prompt the last
counts. FollowBench's rows that a rule decides have no judgement.

Rows written here also have "judge" (the model) and "response" (a digest of what was judged). A row whose digest does not
fit the response at hand is an error.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from hir_jax.checks.judge.replies import shown
from hir_jax.checks.judge.soft import Unanswered, digest
from hir_jax.eval.judged.base import UNDECIDED, JudgedBenchmark, JudgedPrompt, Messages, Verdict, padded
from hir_jax.run.files import Appender
from hir_jax.textfiles import RowError, read_jsonl

Answer = Callable[[Messages], str | Unanswered]  # may be called by several threads


class Record(NamedTuple):
    """The judgement of one response: either the judge's replies or the verdicts; the other is None."""

    replies: list[str | None] | None
    verdicts: list[Verdict] | None


class Answered(NamedTuple):
    """A benchmark's prompts and, by key, the responses to some of them. `records`, here, are judgements by key."""

    benchmark: JudgedBenchmark
    prompts: Sequence[JudgedPrompt]
    responses: Mapping[Any, str]

    @property
    def rows(self) -> list[JudgedPrompt]:
        """The prompts that have a response."""
        return [row for row in self.prompts if row.key in self.responses]

    def judgements(self, records: Mapping[Any, Record], published_quirks: bool) -> dict[Any, Any]:
        """The judgement of each response, by key, as `benchmark.aggregate` takes them."""
        found = {}
        for row in self.rows:
            record = records.get(row.key) or Record([None] * self.benchmark.calls(row), None)
            found[row.key] = record.verdicts
            if record.verdicts is None:
                response = self.responses[row.key]
                found[row.key] = self.benchmark.verdicts(row, response, record.replies, published_quirks)
        return found

    def unreadable(self, records: Mapping[Any, Record]) -> str:
        """A message that shows a reply, if there are replies and none of them can be read; else ""."""
        seen: list[str] = []
        for row in self.rows:
            replies = records[row.key].replies if row.key in records else None
            there = [reply for reply in replies or () if reply is not None]
            if there and set(self.benchmark.verdicts(row, self.responses[row.key], replies, False) or ()) - {None}:
                return ""
            seen += there
        if not seen:
            return ""
        return f"none of the judge's {len(seen)} replies can be read; one of them is {shown(max(seen, key=len))}"


# ---- reading


def read(path: str | Path, answered: Answered, judge: str = "") -> tuple[dict[Any, Record], list[RowError]]:
    """Records by key, and one error for each row that is not one.

    With a judge's name the file is one to be continued: rows of other judges and of other responses are passed over.
    """
    by_key = {str(row.key): row for row in answered.prompts}
    records: dict[Any, Record] = {}
    errors: list[RowError] = []
    for number, found in read_jsonl(path, errors.append):
        try:
            row, record = _record(found, answered.benchmark, by_key)
            response = answered.responses.get(row.key)
            same = response is not None and found.get("response", "") in ("", digest(response))
            if judge and (not same or found.get("judge") != judge):
                continue
            if not same:
                what = "but there is no response" if response is None else "of another response"
                raise ValueError(f"a judgement of {row.key!r}, {what}")
        except ValueError as error:
            errors.append(RowError(f"{path}:{number}: {error}"))
        else:
            records[row.key] = record
    return records, errors


def _record(
    found: dict[str, Any], benchmark: JudgedBenchmark, by_key: Mapping[str, JudgedPrompt]
) -> tuple[JudgedPrompt, Record]:
    if benchmark.id not in found:
        raise ValueError(f"{benchmark.id!r} is missing")
    row = by_key.get(str(found[benchmark.id]))
    if row is None:
        raise ValueError(f"no prompt has the {benchmark.id} {found[benchmark.id]!r}")
    calls = benchmark.calls(row)
    if not calls:
        raise ValueError(f"no judgement is wanted of {row.key!r}")
    if ("replies" in found) == ("verdicts" in found):
        raise ValueError("give either 'replies' or 'verdicts'")
    if "replies" in found:
        return row, Record(_list(found, "replies", "texts", calls, lambda one: isinstance(one, str)), None)
    count = len(benchmark.questions(row))
    values = _list(found, "verdicts", "verdicts", count, lambda one: one in (0, 1, UNDECIDED))
    if UNDECIDED in values and not benchmark.undecidable:
        raise ValueError("a verdict is true, false or null")
    return row, Record(None, [one if one is None or one == UNDECIDED else bool(one) for one in values])


def _list(found: dict[str, Any], name: str, what: str, count: int, usable: Callable[[Any], bool]) -> list[Any]:
    values = found[name]
    if not isinstance(values, list) or not all(one is None or usable(one) for one in values):
        raise ValueError(f"{name!r} must be a list of {what} and nulls")
    if len(values) > count:
        raise ValueError(f"{name!r} has {len(values)} entries, and the prompt {count}")
    return padded(values, count)


# ---- judging


def judge_responses(
    answered: Answered, output: str | Path, judge: str, answer: Answer, workers: int
) -> tuple[dict[Any, Record], list[RowError]]:
    """Asks for what the file `output` lacks, `workers` rows at a time, and appends each row as soon as it is done.

    Replies in the file, readable or not, are not asked for again, but failed ones are. Failures are counted on stderr.
    Returns the records of all rows, and one error for each row of the file that is not one.
    """
    benchmark, responses = answered.benchmark, answered.responses
    records, errors = {}, []
    if Path(output).is_file():  # nothing is read back from a device or a pipe
        _mend_end(Path(output), benchmark.id)
        records, errors = read(output, answered, judge)
    failures: collections.Counter[str] = collections.Counter()
    ended = threading.Event()  # set by an interrupt: only requests under way are waited for

    def ask(messages: Messages) -> str | None:
        found = Unanswered("", "the run was ended") if ended.is_set() else answer(messages)
        if isinstance(found, Unanswered):
            failures[found.detail] += 1
            return None
        return found

    def wanted(row: JudgedPrompt) -> bool:
        record = records.get(row.key)
        return bool(benchmark.calls(row)) and (record is None or None in (record.replies or ()))

    def replies(row: JudgedPrompt) -> list[str | None]:
        record = records.get(row.key)
        return benchmark.judge(row, responses[row.key], ask, record.replies or () if record else ())

    with Appender(output) as file, ThreadPoolExecutor(workers) as pool:
        try:
            running = {pool.submit(replies, row): row for row in answered.rows if wanted(row)}
            for done in as_completed(running):
                row = running[done]
                records[row.key] = Record(done.result(), None)
                if any(one is not None for one in done.result()):
                    line = {benchmark.id: row.key, "judge": judge, "response": digest(responses[row.key])}
                    file.write(line | {"replies": done.result()})
        except BaseException:
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for detail, count in sorted(failures.items()):
        print(f"{count} questions were not answered: {detail}", file=sys.stderr)
    return records, errors


def _mend_end(path: Path, id: str) -> None:
    """Drops a last line that a kill has cut off; any other last line without a newline gets one."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    last = content[whole:]
    try:
        json.loads(last or b"{}")
        cut = False
    except ValueError:
        start = json.dumps({id: ""})[: len(id) + 4].encode()  # {"id":
        cut = last.startswith(start[: len(last)])
    if cut:
        os.truncate(path, whole)
    elif last:
        with path.open("ab") as file:
            file.write(b"\n")
