"""Measures how reliable a judge is: its verdicts against people's labels, on pairs that were written for this.

`calibration.jsonl`, beside this module, holds 128 labelled pairs of this project: 32 requests with two soft constraints
and two responses each. A row is `{"kind", "prompt", "constraint", "response", "met"}`; any file of such rows will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hir_jax.checks.judge.soft import SOFT, Case, JudgeError
from hir_jax.checks.verifier import Decider, Question
from hir_jax.textfiles import RowError, parse_json, read_lines
from hir_jax.types import Constraint

PAIRS = Path(__file__).with_name("calibration.jsonl")


class Pair(NamedTuple):
    case: Case
    met: bool


def read_pairs(path: str | Path = PAIRS) -> list[Pair]:
    """The labelled pairs of a file. Raises JudgeError with the line for a malformed row, and for a file without rows."""
    pairs = []
    try:
        for number, line in read_lines(path):
            pairs.append(_pair(parse_json(line, f"{path}:{number}"), f"{path}:{number}"))
    except RowError as error:
        raise JudgeError(str(error)) from None
    if not pairs:
        raise JudgeError(f"{path}: holds no rows")
    return pairs


def _pair(row: Any, place: str) -> Pair:
    texts = [row.get(name) for name in Case._fields] if isinstance(row, dict) else [None]
    if not all(isinstance(text, str) for text in texts) or not isinstance(row.get("met"), bool):
        raise JudgeError(f"{place}: wants strings in {', '.join(Case._fields)}, and true or false in met")
    return Pair(Case(*texts), row["met"])


def calibration(judge: Decider, pairs: Sequence[Pair] | None = None) -> Mapping[str, float | int | None]:
    """Precision, recall and accuracy of a judge's "met", over the pairs that it gave a verdict on.

    Also `pairs`, the number of all, and `unknown`, the number without a verdict. A fraction of no pairs (precision where it
    never said met, for example) is None. pairs: `read_pairs()` if not given.
    """
    pairs = read_pairs() if pairs is None else pairs
    questions = [
        Question(
            row, 0, Constraint(SOFT, text=pair.case.constraint), pair.case.response, pair.case.prompt, f"pair {row}"
        )
        for row, pair in enumerate(pairs)
    ]
    said = {outcome.row: outcome.satisfied for outcome in judge(questions) if not outcome.reason}
    both = sum(satisfied and pairs[row].met for row, satisfied in said.items())
    right = sum(satisfied == pairs[row].met for row, satisfied in said.items())
    return {
        "precision": _share(both, sum(said.values())),
        "recall": _share(both, sum(pairs[row].met for row in said)),
        "accuracy": _share(right, len(said)),
        "unknown": len(pairs) - len(said),
        "pairs": len(pairs),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
