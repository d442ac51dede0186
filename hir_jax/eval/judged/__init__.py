"""Benchmarks that a judge scores: CFBench, FollowBench, ComplexBench, InFoBench, under their names on the command line.

Each module has the published metrics as pure functions of verdicts, the reader of its prompts and of judges' replies, and
its questions to a judge, in our own words. `python -m hir_jax.judged` is the program.
"""

from collections.abc import Sequence
from pathlib import Path

from hir_jax.eval.judged import cfbench, complexbench, followbench, infobench
from hir_jax.eval.judged.base import Row
from hir_jax.textfiles import RowError
from hir_jax.types import Instruction

JUDGED = {
    "cfbench": cfbench.BENCHMARK,
    "followbench": followbench.BENCHMARKS["en"],
    "followbench_zh": followbench.BENCHMARKS["zh"],
    "complexbench": complexbench.BENCHMARKS["zh"],
    "complexbench_en": complexbench.BENCHMARKS["en"],
    "infobench": infobench.BENCHMARK,
}


def scored_rows(name: str, prompts: str | Path) -> list[Row]:
    """The rows of a file that are answered and scored. RowError for a file that cannot be used or holds none."""
    rows = [row for row in JUDGED[name].read(prompts) if JUDGED[name].questions(row)]
    if not rows:
        raise RowError(f"{prompts}: no row has questions to score by")
    return rows


def as_instructions(rows: Sequence[Row], path: str | Path) -> list[Instruction]:
    """The same as requests to a model; the constraints are the judge's to know."""
    return [Instruction(row.prompt, (), "verbatim", row.key, f"{path}, {row.key}") for row in rows]
