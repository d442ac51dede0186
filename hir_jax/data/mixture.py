"""The sources of a mixture, as `config.data.mixture` lists them: ((source, path, weight[, rows]), ...).

`source` is a value of `data.source`, `path` its file, or "" for rows that are generated, `weight` its share of a step's rows,
relative to the others', and `rows` how many of its rows are used, the first ones in their order (0, or left out: all).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hir_jax.types import InputError

FILES = ("jsonl", "hir16k", "if_rlvr")  # sources that read files as they were published or written
GENERATED = ("generated", "witness")


class Part(NamedTuple):
    """A source, with its `name` in metrics: the source, or SOURCE:STEM of its path if several parts have the same source."""

    source: str
    path: str
    weight: float
    rows: int = 0
    name: str = ""


def parts_of(mixture: Sequence[Any]) -> list[Part]:
    """Raises InputError that names the entry and says what is wrong with it."""
    parts = [_part(entry, f"config.data.mixture[{i}] = {entry!r}") for i, entry in enumerate(mixture)]
    if not parts:
        raise InputError("config.data.source is 'mixture': set config.data.mixture = ((source, path, weight), ...)")
    count = Counter(part.source for part in parts)
    parts = [
        part._replace(name=part.source if count[part.source] == 1 else f"{part.source}:{Path(part.path).stem}")
        for part in parts
    ]
    names = Counter(part.name for part in parts)
    if same := [name for name in names if names[name] > 1]:
        raise InputError(
            f"config.data.mixture: two entries are called {same[0]!r} in metrics; rename one of their files"
        )
    return parts


def _part(entry: Any, what: str) -> Part:
    if not isinstance(entry, list | tuple) or len(entry) not in (3, 4):
        raise InputError(f"{what}: give (source, path, weight) or (source, path, weight, rows)")
    source, path, weight, rows = (*entry, 0)[:4]
    if source not in (*FILES, *GENERATED):
        raise InputError(f"{what}: the source must be one of {', '.join((*FILES, *GENERATED))}")
    if not isinstance(path, str) or bool(path) != (source in FILES):
        raise InputError(
            f"{what}: {'give the path of its file' if source in FILES else 'its rows are generated, so give no path'}"
        )
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise InputError(f"{what}: the weight must be a number above 0")
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
        raise InputError(f"{what}: the number of rows must be an integer of 1 or more, or 0 for all")
    return Part(source, path, float(weight), rows)


def shares(parts: Sequence[Part], total: int) -> list[int]:
    """How many of `total` each part gets by its weight: the numbers add up, and each is its exact share rounded up or down."""
    whole = sum(part.weight for part in parts)
    ends = [round(total * sum(part.weight for part in parts[: i + 1]) / whole) for i in range(len(parts))]
    return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
