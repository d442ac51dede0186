"""The pool of checkers: same verdicts as in one process, and only the guilty check unknown when one misbehaves."""

import importlib
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hir_jax.checks import registry
from hir_jax.checks.registry import ConstraintError, UnknownConstraintError
from hir_jax.checks.verifier import Row, Verifier
from hir_jax.checks.worker import Outcome
from hir_jax.types import Constraint

sys.path.insert(0, str(Path(__file__).parent))  # workers import it by this name, whatever way pytest imports tests
importlib.import_module("hostile_checks")

REPOSITORY = Path(__file__).parents[2]
IFEVAL = REPOSITORY / "../shared/benchmarks/ifeval"

NO_COMMA = Constraint("punctuation:no_comma")
RAISES, EXITS, DIES = Constraint("hostile:raises"), Constraint("hostile:exits"), Constraint("hostile:dies")
HANGS_IN_C = Constraint("hostile:hangs_in_c")
SLEEPS = Constraint("hostile:sleeps", {"seconds": 60})
CATASTROPHIC = Constraint("keywords:existence", {"keywords": ["(a+)+$"]})
BAD = Constraint("keywords:letter_frequency", {"letter": "#", "let_frequency": 1, "let_relation": "at least"})


@pytest.fixture(scope="module", params=[0, 2], ids=["in_process", "two_workers"])
def verifier(request):
    with Verifier(workers=request.param, timeout_seconds=0.5) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def pool():
    with Verifier(workers=2, timeout_seconds=0.5) as verifier:
        yield verifier


def _row(*constraints, response="no comma", label="row"):
    return Row(constraints, response, "the request", label)


def _masks(verdicts):
    assert all(mask.dtype == bool for mask in verdicts)
    return [mask.astype(int).tolist() for mask in verdicts]


def test_verdicts_go_by_position(verifier):
    rows = [_row(NO_COMMA, Constraint("startend:quotation"), NO_COMMA), _row(), _row(NO_COMMA, response="a, b")]
    assert _masks(verifier.verify(rows, 4)) == [
        [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]],
        [[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]],
    ]
    assert _masks(verifier.verify([], 4)) == [[], [], []]
    assert verifier.verify([], 4).present.shape == (0, 4)


def test_strict_and_loose(verifier):
    row = _row(NO_COMMA, response="Sure, here it is:\nno comma")
    assert _masks(verifier.verify([row], 1))[0] == [[0]]
    assert _masks(verifier.verify([row], 1, loose=True))[0] == [[1]]


def test_a_check_may_see_the_request(verifier):
    repeats = Constraint("hostile:repeats_request")
    rows = [_row(repeats, response="I repeat: the request"), _row(repeats, response="I repeat nothing")]
    assert _masks(verifier.verify(rows, 1))[0] == [[1], [0]]


def test_failing_checks_are_unknown_counted_and_logged(verifier, caplog):
    before = verifier.unknown_counts.copy()
    rows = [
        _row(NO_COMMA, RAISES, NO_COMMA, label="file:1"),
        _row(SLEEPS, NO_COMMA, EXITS, label="file:2"),
        _row(CATASTROPHIC, NO_COMMA, BAD, response="a" * 40 + "b", label="file:3"),
    ]
    with caplog.at_level(logging.WARNING):
        verdicts = verifier.verify(rows, 3)
    assert _masks(verdicts) == [
        [[1, 0, 1], [0, 1, 0], [0, 1, 0]],
        [[1, 0, 1], [0, 1, 0], [0, 1, 0]],
        [[1, 1, 1], [1, 1, 1], [1, 1, 1]],
    ]
    assert verifier.unknown_counts - before == {"raised": 2, "timed_out": 2, "bad_arguments": 1}
    lines = [record.getMessage() for record in caplog.records]
    expected = [
        ("file:1: constraint 1 (hostile:raises)", "raised: LookupError: no verdict on no comma"),
        ("file:2: constraint 0 (hostile:sleeps)", "timed_out"),
        ("file:2: constraint 2 (hostile:exits)", "raised: SystemExit: 3"),
        ("file:3: constraint 0 (keywords:existence)", "timed_out"),
        ("file:3: constraint 2 (keywords:letter_frequency)", "bad_arguments: keywords:letter_frequency: argument"),
    ]
    assert len(lines) == len(expected)
    for line, (start, reason) in zip(lines, expected, strict=True):
        assert line.startswith(start) and reason in line


def test_more_slow_checks_than_one_call_to_a_worker_has_time_for(verifier):
    verdicts = verifier.verify([_row(*[SLEEPS] * 3, NO_COMMA)], 4)
    assert _masks(verdicts)[:2] == [[[0, 0, 0, 1]]] * 2


def test_a_check_that_ends_its_process_leaves_the_others_known(pool):
    rows = [_row(NO_COMMA, NO_COMMA)] * 20
    rows[3] = _row(NO_COMMA, DIES)
    rows[17] = _row(DIES, NO_COMMA)
    verdicts = pool.verify(rows, 2)
    expected = np.ones((20, 2), dtype=bool)
    expected[3, 1] = expected[17, 0] = False
    np.testing.assert_array_equal(verdicts.known, expected)
    np.testing.assert_array_equal(verdicts.satisfied, expected)
    assert verdicts.present.all()
    assert pool.unknown_counts["died"] == 2


def test_a_hang_that_no_signal_interrupts_is_killed(pool):
    verdicts = pool.verify([_row(NO_COMMA, HANGS_IN_C, NO_COMMA), _row(NO_COMMA, NO_COMMA)], 3)
    assert _masks(verdicts)[:2] == [[[1, 0, 1], [1, 1, 0]]] * 2
    assert pool.unknown_counts["timed_out"] == 1


def test_workers_that_were_killed_from_outside_are_replaced(pool):
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)
    for _ in range(3):
        assert _masks(pool.verify([_row(NO_COMMA)] * 10, 1))[:2] == [[[1]] * 10] * 2


@pytest.mark.skipif(not IFEVAL.is_dir(), reason="the benchmark fixtures (../shared/benchmarks) are absent")
def test_verdicts_do_not_depend_on_the_number_of_workers():
    with (IFEVAL / "prompts.jsonl").open(encoding="utf-8") as file:
        prompts = {row["key"]: row for row in map(json.loads, file)}
    with (IFEVAL / "responses.llama_3b.jsonl").open(encoding="utf-8") as file:
        recorded = [json.loads(line) for line in file][:60]
    rows = []
    for row in recorded:
        pairs = zip(prompts[row["key"]]["instruction_id_list"], prompts[row["key"]]["kwargs"], strict=True)
        rows.append(_row(*(Constraint(*pair) for pair in pairs), response=row["response"]))
    results = []
    for workers in (0, 1, 2):
        with Verifier(workers, timeout_seconds=30) as verifier:
            results.append(verifier.verify(rows, 5, loose=True))
    for result in results[1:]:
        for mask, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(mask, expected)


def test_workers_import_neither_jax_nor_the_main_program(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import sys
sys.path[:0] = [{str(REPOSITORY)!r}, {str(Path(__file__).parent)!r}]
sys.modules["jax"] = sys  # as if this program imported jax: a worker that imports the program has it too
import hostile_checks
from hir_jax.checks.verifier import Row, Verifier
from hir_jax.checks.worker import Outcome
from hir_jax.types import Constraint
if __name__ == "__main__":
    with Verifier(1, 30) as verifier:
        english = Constraint("language:response_language", {{"language": "en"}})
        response = "This is a plain English sentence about the weather."
        rows = [Row([Constraint("hostile:jax_is_imported"), english], response, "", "row")]
        print(verifier.verify(rows, 2).satisfied.tolist(), verifier.unknown_counts.total())
    with Verifier(0, 30) as verifier:
        print(verifier.verify(rows, 2).satisfied.tolist())
"""
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["[[False, True]] 0", "[[True, True]]"]


def test_a_row_that_does_not_fit_or_is_unknown_is_an_error_that_names_it():
    with Verifier(workers=0, timeout_seconds=1) as verifier:
        with pytest.raises(ValueError, match="file:9: 2 constraints, but room for 1"):
            verifier.verify([_row(NO_COMMA, NO_COMMA, label="file:9")], 1)
        with pytest.raises(UnknownConstraintError, match="file:9: unknown constraint id 'punctuation:no_coma'"):
            verifier.verify([_row(Constraint("punctuation:no_coma"), label="file:9")], 1)


@pytest.mark.parametrize(("workers", "seconds"), [(-1, 1.0), (1, 0.0), (1, float("nan"))])
def test_limits_that_make_no_sense_are_refused(workers, seconds):
    with pytest.raises(ValueError, match="workers must be >= 0 and timeout_seconds > 0"):
        Verifier(workers, seconds)


def test_a_closed_verifier_says_so():
    verifier = Verifier(workers=1, timeout_seconds=1)
    verifier.close()
    verifier.close()
    with pytest.raises(RuntimeError, match="closed"):
        verifier.verify([_row(NO_COMMA)], 1)


@pytest.fixture
def declared(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    registry.declare("test:asked", lambda: "Please someone.", decider="oracle")
    return Constraint("test:asked", text="Be kind.")


@pytest.mark.parametrize("workers", [0, 2])
def test_declared_constraints_go_to_their_decider_in_one_call(declared, workers, caplog):
    asked = []

    def oracle(questions):
        asked.append(questions)
        return [
            Outcome(q.row, q.position, "kind" in q.response, "" if q.response else "silent")
            for q in reversed(questions)
        ]

    rows = [_row(NO_COMMA, declared, response="kind"), _row(declared, response="a, b"), _row(declared, response="")]
    with Verifier(workers, 0.5, {"oracle": oracle}) as verifier, caplog.at_level(logging.WARNING):
        verdicts = verifier.verify(rows, 2)
        assert verifier.unknown_counts == {"silent": 1}
    assert _masks(verdicts) == [[[1, 1], [0, 0], [0, 0]], [[1, 1], [1, 0], [0, 0]], [[1, 1], [1, 0], [1, 0]]]
    (questions,) = asked
    assert [(q.row, q.position, q.constraint.text, q.prompt) for q in questions] == [
        (row, position, "Be kind.", "the request") for row, position in ((0, 1), (1, 0), (2, 0))
    ]
    assert "constraint 0 (test:asked) is unknown, silent" in caplog.text


def test_a_declared_constraint_without_its_decider_is_refused(declared):
    with (
        Verifier(0, 0.5) as verifier,
        pytest.raises(ConstraintError, match=r"row: test:asked has no decider: .oracle. is not"),
    ):
        verifier.verify([_row(declared)], 1)
    with pytest.raises(ConstraintError, match="decided by the oracle"):
        registry.check(declared, "text")
