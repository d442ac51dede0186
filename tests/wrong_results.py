"""The small inputs of ../shared/cases/wrong_results.jsonl: what went wrong once, and the right result; for the tests of each."""

import json
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "shared" / "cases" / "wrong_results.jsonl"


def cases(what: str) -> list[dict]:
    """The rows whose field `what` is this one, at least one; the test is skipped where the file is absent."""
    if not FILE.is_file():
        pytest.skip(f"no recorded inputs: {FILE} is absent")
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    found = [row for row in rows if row["what"] == what]
    assert found, f"{FILE} has no row {what!r}"
    return found
