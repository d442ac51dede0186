"""The shared fixtures of the judge-scored benchmarks, and conversations with a judge that is a list of replies."""

import json
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "../shared/benchmarks"
_FILE = SHARED / "judged_examples.jsonl"

needs_shared = pytest.mark.skipif(
    not _FILE.is_file(), reason="the benchmark fixtures (../shared/benchmarks with judged_examples.jsonl) are absent"
)


def example(benchmark, name):
    """A hand-computed aggregation of the shared file."""
    with _FILE.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    (found,) = [row for row in rows if (row["benchmark"], row["name"]) == (benchmark, name)]
    return found


def near(expected):
    """`expected` within 1e-9, in nested dicts too."""
    if isinstance(expected, dict):
        return {name: near(value) for name, value in expected.items()}
    return pytest.approx(expected, abs=1e-9, rel=0)


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


class Replies:
    """An `ask` that gives one reply after the other; `asked` are the conversations."""

    def __init__(self, *replies):
        self.left = list(replies)
        self.asked = []

    def __call__(self, messages):
        self.asked.append(messages)
        return self.left.pop(0)
