"""How a worker keeps a run going: restarts, the three ways to end, and a run that died with its machine."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from far_side import FarSide


class OneWorker:
    def __init__(self, directory):
        self.far = FarSide(directory)
        self.far.install(0)
        self.checkout = self.far.worker(0)

    def __call__(self, command, *arguments):
        call = [sys.executable, self.checkout / "launch" / "worker.py", command]
        call += ["--pause=0.05", "--", *arguments] if arguments else []
        return subprocess.run(call, capture_output=True, text=True, timeout=60)

    def state(self):
        return json.loads(self("status").stdout)["state"]

    def ends(self):
        end = time.monotonic() + 30
        while self.state() == "running":
            assert time.monotonic() < end
            time.sleep(0.05)
        return self.state()

    def pid(self):
        return int((self.checkout / ".launch" / "lock").read_text())

    def log(self):
        return (self.checkout / ".launch" / "log.txt").read_text()


@pytest.fixture
def worker(tmp_path):
    worker = OneWorker(tmp_path / "far")
    yield worker
    worker.far.stop_all()


def test_a_run_that_ends_early_is_started_again_until_it_is_finished(worker):
    """Exit status 0 alone does not say that a run is finished: SIGTERM ends with it too."""
    assert worker.state() == "nothing was started"
    assert worker("finished", "--workdir=runs/x").returncode == 1
    assert worker("start", "--workdir=runs/x").stdout.startswith("started")
    assert worker.ends() == "finished" and worker.log().count("end, status 0") == 3
    assert worker("finished", "--workdir=runs/x").returncode == 0


def test_a_cut_off_row_is_not_a_row(worker):
    rows = worker.checkout / "runs" / "x" / "metrics.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text('{"step": 1}\n{"step": 2')
    (rows.parent / "config.json").write_text('{"total_steps": 2}')
    assert worker("finished", "--workdir=runs/x").returncode == 1
    rows.write_text('{"step": 1}\n{"step": 2}\n')
    assert worker("finished", f"--workdir={rows.parent}").returncode == 0


def test_a_run_that_adds_no_step_is_given_up(worker):
    worker("start", "--workdir=runs/x", "--fail")
    assert worker.ends() == "given up" and worker.log().count("error: no such key") == 3


@pytest.mark.parametrize(("signum", "state"), [(signal.SIGTERM, "interrupted"), (signal.SIGUSR1, "stopped")])
def test_signals_are_handed_on(worker, signum, state):
    """SIGTERM: the machine goes down; SIGUSR1: `stop`. The program gets SIGTERM in both cases, and is not started again."""
    worker("start", "--workdir=runs/x", "--sleep")
    end = time.monotonic() + 30
    while "step 0" not in (worker.log() if (worker.checkout / ".launch" / "log.txt").exists() else ""):
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(worker.pid(), signum)
    assert worker.ends() == state and "end, status -15" in worker.log()


def test_a_keeper_that_was_killed_has_died(worker):
    worker("start", "--workdir=runs/x", "--sleep")
    os.killpg(worker.pid(), signal.SIGKILL)  # a session of its own: its group is it and the program
    assert worker.ends() == "died"
    assert worker("start", "--workdir=runs/x", "--sleep").returncode == 0 and worker.state() == "running"
