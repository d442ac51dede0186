"""worker.py with the real training program, on the small config."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from small_runs import ROOT, arguments

STEPS = 20  # long enough to be stopped on the way
LIMIT = 600  # seconds, far more than it takes: the machine may be busy


@pytest.fixture
def worker(tmp_path):
    """worker.py in a directory of its own that links to the repository's packages: its files stay out of the repository."""
    for folder in ("launch", ".launch", "bin"):
        (tmp_path / folder).mkdir()
    for name in ("worker.py", "env_file.py"):
        shutil.copy(ROOT / "launch" / name, tmp_path / "launch")
    (tmp_path / ".launch" / "ready").write_text("0123abc\n")
    for name in ("hir_jax", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    # in place of `sudo systemctl restart`
    keep = f"cd '{tmp_path}' && setsid -f '{sys.executable}' launch/worker.py keep > journal 2>&1 < /dev/null"
    (tmp_path / "bin" / "sudo").write_text(f"#!/bin/sh\n{keep}\n")
    (tmp_path / "bin" / "sudo").chmod(0o755)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def call(*given):
        command = [sys.executable, tmp_path / "launch" / "worker.py", *given]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    yield call
    call("stop")


def test_a_program_that_a_signal_stopped_goes_on_to_its_end(worker, tmp_path):
    """SIGTERM makes the program save and end with 0, as if it were finished; the next start continues from there."""
    metrics, log = tmp_path / "runs" / "x" / "metrics.jsonl", tmp_path / ".launch" / "log.txt"
    given = {"total_steps": STEPS, "save_model": False, "logging__tensorboard": False, "replay__fill": "mask"}
    given["compilation_cache"] = str(tmp_path / "cache")
    worker("start", "--pause=0.1", "--", *arguments("runs/x", **given))

    def wait_for(condition):
        end = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)

    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 1)
    keeper = (tmp_path / ".launch" / "lock").read_text()
    processes = subprocess.run(["ps", "-A", "-o", "pid=", "-o", "ppid="], capture_output=True, text=True, check=True)
    (program,) = (int(pid) for pid, parent in map(str.split, processes.stdout.splitlines()) if parent == keeper)
    os.kill(program, signal.SIGTERM)
    wait_for(lambda: json.loads(worker("status"))["state"] != "running")
    said = log.read_text()
    assert json.loads(worker("status"))["state"] == "finished", said
    assert said.count("end, status 0") == 2 and "stopped by SIGTERM after step" in said and "resuming" in said
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(STEPS + 1))
