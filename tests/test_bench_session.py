"""A bench that is stopped: its output file holds the finished phases and the rounds of the running one; progress is on stderr."""

import json

import pytest
from small_runs import small_config

from hir_jax.bench import machine, table
from hir_jax.bench.session import Session, Work
from hir_jax.bench.sizes import Sizes


class Stops(Work):
    """Work that is interrupted in its `last` call."""

    tokens, flops = 6, 0

    def __init__(self, last: int):
        self.left = last

    def run(self) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ceilings", lambda dtypes: machine.Ceilings(dict.fromkeys(dtypes, 1e9), 1e9))
    made = Session(small_config(), "configs/x.py", {}, Sizes(rounds=3), output=tmp_path / "bench.json")
    made.describe_machine()
    made.measure_ceilings()
    return made


def test_a_stopped_run_leaves_its_finished_rounds(session, capsys):
    seconds = {"median": 2.0, "min": 1.0, "max": 3.0}
    session.run("encode", lambda session: {"constraints": 30, "words": 8, "seconds": seconds})
    with pytest.raises(KeyboardInterrupt):
        session.run("rollout", lambda session: session.measure("rollout", Stops(last=4), Stops(last=9)))
    found = json.loads(session.output.read_text())
    assert [set(lap) for lap in found["unfinished"]["rollout"]] == [{"ours", "peer"}] * 2 and "rollout" not in found
    assert found["sizes"]["rounds"] == 3 and found["config"]["seed"] == 0
    assert "| a row of 30 numbered constraints of 8 words | 2.00 (1.00 to 3.00) |" in table.of_file(session.output)
    said = capsys.readouterr()
    lines = [line.split(":")[0] for line in said.err.splitlines()]
    assert lines == ["encode ...", "rollout ...", "rollout, round 1 of 3", "rollout, round 2 of 3"]
    assert not said.out  # stdout is for the figures


def test_a_finished_phase_has_no_unfinished_rounds(session):
    session.run("rollout", lambda session: session.measure("rollout", Stops(last=9)))
    assert "unfinished" not in session.report() and len(session.report()["rollout"]["rounds"]) == 3
