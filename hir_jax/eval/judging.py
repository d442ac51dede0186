"""Judges a file of recorded responses with a judged benchmark, by recorded judgements or by a judge behind HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hir_jax.checks.judge.soft import JudgeSettings
from hir_jax.eval.benchmarks import BENCHMARKS
from hir_jax.eval.judged import judgements as records
from hir_jax.eval.judged.base import JudgedBenchmark, JudgedPrompt, as_instructions, row_accuracies
from hir_jax.eval.responses import RefusedError, check_output, read_responses
from hir_jax.eval.statistics import bootstrap
from hir_jax.textfiles import RowError


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
        check_output(Path(output), (prompts, responses))
    rows = benchmark.read_judged(prompts)
    texts, errors = _responses(benchmark, rows, responses)
    answered = records.Answered(benchmark, rows, texts)
    found, bad = _ask(answered, output, settings) if settings else records.read(judgements, answered)
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
    figures = {row.key: row_accuracies(benchmark, row, plain[row.key]) for row in answered.rows}
    intervals = {figure: bootstrap([one[figure] for one in figures.values()]) for figure in ("ila", "cla")}
    return summary | {"missing": len(rows) - len(texts), "intervals": intervals}, figures, errors


def _responses(
    benchmark: JudgedBenchmark, rows: list[JudgedPrompt], path: str
) -> tuple[dict[Any, str], list[RowError]]:
    """Responses by key of the prompt; a second one for a prompt is an error."""
    texts: dict[Any, str] = {}
    readable, errors = read_responses(path, as_instructions(rows, path), benchmark.id)
    for response in readable:
        if response.instruction.key in texts:
            errors.append(RowError(f"{response.label}: a second response for {response.instruction.key!r}"))
        else:
            texts[response.instruction.key] = response.text
    return texts, errors


def _ask(answered: records.Answered, output: str, settings: JudgeSettings):
    """`judgements.judge_responses` by the judge of the settings, whose use is told on stderr."""
    from hir_jax.checks.judge.endpoint import Endpoint  # takes seconds, and recorded judgements do without

    endpoint = Endpoint(settings)
    with endpoint.conversations() as answer:
        found = records.judge_responses(answered, output, settings.model, answer, settings.concurrency)
    usage = endpoint.usage
    print(
        f"{usage.requests} requests, {usage.prompt_tokens} prompt and {usage.completion_tokens} completion tokens, "
        f"cost {usage.cost:g}",
        file=sys.stderr,
    )
    return found
