"""Base tasks of generated instructions (`tasks.jsonl`): task, genre, suitable keywords. None is from a benchmark.

The hash of its text decides a task's split: a fifth is held out for evaluation, and no task is in both splits.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from importlib import resources

SPLITS = ("train", "heldout")
_HELDOUT_SHARE = 5  # one task in this many


@dataclass(frozen=True)
class BaseTask:
    """A request without constraints. `keywords` are single lower-case words that suit it and are not in it."""

    task: str
    genre: str
    keywords: tuple[str, ...]


@functools.cache
def base_tasks(split: str) -> tuple[BaseTask, ...]:
    """The base tasks of a split, in file order. Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    lines = resources.files(__package__).joinpath("tasks.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    tasks = [BaseTask(row["task"], row["genre"], tuple(row["keywords"])) for row in rows]
    return tuple(task for task in tasks if _is_heldout(task.task) == (split == "heldout"))


def _is_heldout(text: str) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % _HELDOUT_SHARE == 0
