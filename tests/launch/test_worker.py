"""How a worker keeps a run going: restarts, the three ways to end, and a run that died with its machine."""

import json
import os
import signal
import sys

import pytest
from far_side import FarSide, until


class OneWorker:
    def __init__(self, directory):
        self.far = FarSide(directory)
        self.far.install(0)
        self.checkout = self.far.worker(0)

    def __call__(self, command, *arguments):
        call = [sys.executable, self.checkout / "launch" / "worker.py", command]
        call += ["--pause=0.05", "--", *arguments] if arguments else []
        return self.far.on_worker(0, *call)

    def state(self):
        return json.loads(self("status").stdout)["state"]

    def ends(self):
        return until(lambda: (state := self.state()) != "running" and state)

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
    assert json.loads(worker("status").stdout)["commit"] == "0123abc"
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
    until(lambda: "step 0" in worker.log())
    os.kill(worker.pid(), signum)
    assert worker.ends() == state and "end, status -15" in worker.log()


def test_a_keeper_that_was_killed_has_died(worker):
    worker("start", "--workdir=runs/x", "--sleep")
    worker.far.power_off(0)
    assert worker.ends() == "died"
    assert worker("start", "--workdir=runs/x", "--sleep").returncode == 0 and worker.state() == "running"


def test_a_worker_that_is_not_set_up_starts_nothing(worker):
    (worker.checkout / ".launch" / "ready").unlink()
    done = worker("start", "--workdir=runs/x")
    assert done.returncode == 1 and "error: this worker is not set up, or not wholly" in done.stderr


def test_a_unit_that_does_not_start_is_an_error(worker):
    (worker.far.home(0) / "unit").unlink()
    done = worker("start", "--workdir=runs/x")
    assert done.returncode == 1 and "systemctl restart hir_jax failed: Failed to restart hir_jax.service" in done.stderr


def test_the_log_has_the_commit_of_each_start(worker):
    worker("start", "--workdir=gs://b/x", "--all")
    assert worker.ends() == "finished" and "start, last step None, commit 0123abc" in worker.log()
    assert worker("finished", "--workdir=gs://b/x").returncode == 0
