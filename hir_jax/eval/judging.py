"""Judges recorded responses with a judged benchmark, by recorded judgements or by a judge behind HTTP.

A file of judgements is JSON Lines, one row per response that was judged:

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

from hir_jax import paths
from hir_jax.checks.judge.replies import shown
from hir_jax.checks.judge.soft import JudgeSettings, Unanswered, digest
from hir_jax.eval.benchmarks import BENCHMARKS
from hir_jax.eval.judged import base
from hir_jax.eval.judged.base import UNDECIDED, JudgedBenchmark, JudgedPrompt, Messages, Verdict
from hir_jax.eval.responses import RefusedError, check_output, read_responses
from hir_jax.eval.statistics import bootstrap
from hir_jax.run.files import Appender
from hir_jax.textfiles import RowError, read_jsonl

Answer = Callable[[Messages], str | Unanswered]  # may be called by several threads


class Record(NamedTuple):
    """The judgement of one response: either the judge's replies or the verdicts; the other is None."""

    replies: list[str | None] | None
    verdicts: list[Verdict] | None


class Answered(NamedTuple):
    """A benchmark's prompts and, by key, the responses to some of them. The methods take records by key."""

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


def read_judgements(path: str | Path, answered: Answered, judge: str = "") -> tuple[dict[Any, Record], list[RowError]]:
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


def _record(found: dict[str, Any], benchmark: JudgedBenchmark, by_key: Mapping[str, Any]) -> tuple[Any, Record]:
    """(prompt, record) of a row. ValueError says what is wrong with it."""
    if benchmark.id not in found:
        raise ValueError(f"{benchmark.id!r} is missing")
    row = by_key.get(str(found[benchmark.id]))
    if row is None:
        raise ValueError(f"no prompt has the {benchmark.id} {found[benchmark.id]!r}")
    calls, count = benchmark.calls(row), len(benchmark.questions(row))
    if not calls:
        raise ValueError(f"no judgement is wanted of {row.key!r}")
    if ("replies" in found) == ("verdicts" in found):
        raise ValueError("give either 'replies' or 'verdicts'")
    if "replies" in found:
        return row, Record(_list(found, "replies", "texts", calls, lambda one: isinstance(one, str)), None)
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
    return base.padded(values, count)


# ---- asking a judge


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
        records, errors = read_judgements(output, answered, judge)
    failures: collections.Counter[str] = collections.Counter()
    ended = threading.Event()  # set by an interrupt: only requests under way are waited for

    def ask(messages: Messages) -> str | None:
        found = Unanswered("", "the run was ended") if ended.is_set() else answer(messages)
        if isinstance(found, Unanswered):
            failures[found.detail] += 1
            return None
        return found

    earlier = {key: record.replies or () for key, record in records.items()}
    wanted = [row for row in answered.rows if benchmark.calls(row) and None in earlier.get(row.key, [None])]
    with Appender(output) as file, ThreadPoolExecutor(workers) as pool:
        try:
            running = {
                pool.submit(benchmark.judge, row, responses[row.key], ask, earlier.get(row.key, ())): row
                for row in wanted
            }
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


# ---- files


def judge_files(
    name: str,
    prompts: str,
    responses: str,
    judgements: str = "",
    output: str = "",
    settings: JudgeSettings | None = None,
    published_quirks: bool = False,
) -> tuple[dict[str, Any], dict[Any, dict[str, float]], list[RowError]]:
    """The summary, ILA and CLA by key of the prompt, and one error for each bad row.

    The verdicts are those of the file `judgements`; with `settings` a judge is asked, and its replies go to `output`.
    RowError if the prompts cannot be read, RefusedError if no row can be judged or the output cannot be written.
    """
    benchmark = BENCHMARKS[name]
    if settings:
        check_output(paths.local(output), (prompts, responses))  # appended to row by row
    rows = benchmark.read_judged(prompts)
    texts, errors = _responses(benchmark, rows, responses)
    answered = Answered(benchmark, rows, texts)
    found, bad = _ask(answered, output, settings) if settings else read_judgements(judgements, answered)
    errors += bad
    for error in errors:
        print(error, file=sys.stderr)
    if complaint := answered.unreadable(found):
        print(complaint, file=sys.stderr)
    if not texts:
        raise RefusedError(f"{responses}: no row can be scored")
    plain = answered.judgements(found, published_quirks=False)
    judged = answered.judgements(found, published_quirks) if published_quirks else plain
    summary = benchmark.aggregate(answered.rows, judged, published_quirks)
    figures = {row.key: base.row_accuracies(benchmark, row, plain[row.key]) for row in answered.rows}
    intervals = {figure: bootstrap([one[figure] for one in figures.values()]) for figure in ("ila", "cla")}
    return summary | {"missing": len(rows) - len(texts), "intervals": intervals}, figures, errors


def _responses(
    benchmark: JudgedBenchmark, rows: list[JudgedPrompt], path: str
) -> tuple[dict[Any, str], list[RowError]]:
    """Responses by key of the prompt; a second one for a prompt is an error."""
    texts: dict[Any, str] = {}
    readable, errors = read_responses(path, base.as_instructions(rows, path), benchmark.id)
    for response in readable:
        if response.instruction.key in texts:
            errors.append(RowError(f"{response.label}: a second response for {response.instruction.key!r}"))
        else:
            texts[response.instruction.key] = response.text
    return texts, errors


def _ask(answered: Answered, output: str, settings: JudgeSettings):
    """`judge_responses` by the judge of the settings; its usage is printed on stderr."""
    from hir_jax.checks.judge.endpoint import Endpoint  # takes seconds, and recorded judgements do without

    endpoint = Endpoint(settings)
    with endpoint.conversations() as answer:
        found = judge_responses(answered, output, settings.model, answer, settings.concurrency)
    usage = endpoint.usage
    print(
        f"{usage.requests} requests, {usage.prompt_tokens} prompt and {usage.completion_tokens} completion tokens, "
        f"cost {usage.cost:g}",
        file=sys.stderr,
    )
    return found
