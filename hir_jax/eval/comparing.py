"""Compares runs with the first of them: mean differences over the prompts that both answered, with paired intervals."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hir_jax.eval.statistics import Interval, paired_differences
from hir_jax.textfiles import read_jsonl
from hir_jax.types import InputError

Differences = dict[str, dict[str, Interval]]  # name of a run -> figure -> difference from the first run


def differences(runs: Mapping[str, Mapping[Hashable, Mapping[str, float]]]) -> Differences:
    """`paired_differences` from the first run, of each other one. runs: name -> prompt -> figure -> value."""
    (_, first), *others = runs.items()
    return {name: paired_differences(first, found) for name, found in others}


def differences_of_evaluations(directories: Mapping[str, Path]) -> Differences:
    """`differences` of runs, from the prompts.jsonl in their evaluations' directories. InputError for a run that has no prompt in
    common with the first."""
    runs = {}
    for name, directory in directories.items():
        rows = [row for _, row in read_jsonl(directory / "prompts.jsonl")]
        # By key and text: another config may use the key for another prompt.
        runs[name] = {(row.pop("key"), row.pop("prompt")): row for row in rows}
    found = differences(runs)
    for name, figures in found.items():
        if not figures:
            raise InputError(f"{name}: it answered none of the prompts that {next(iter(runs))} did")
    return found


def show(summaries: Mapping[str, dict[str, Any]], compared: Differences, console: Console) -> None:
    """Prints a table of all runs' figures, with intervals, and their differences from the first."""
    table = Table("run", "figure", "mean (95%)", f"difference from {next(iter(summaries))}")
    for name, summary in summaries.items():
        for figure, interval in summary["intervals"].items():
            gap = compared.get(name, {}).get(figure)
            shown = f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})" if gap else ""
            table.add_row(name, figure, str(interval), shown)
    console.print(table)
