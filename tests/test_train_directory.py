"""The directory of a run, through the programs: held by one run, called as the user likes, on a disk that is full."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from small_runs import ROOT, arguments, rows, small_config, start

from hir_jax.run import lock
from hir_jax.run.files import RunError
from hir_jax.train import train

QUICK = {"method": "ilr", "total_steps": 2, "logging__tensorboard": False, "save_model": False}


def program(module, *given, **options):
    command = [sys.executable, "-m", module, *map(str, given)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def test_a_second_run_is_refused_and_a_kill_leaves_no_lock(tmp_path):
    workdir = tmp_path / "run"
    first = start(workdir, **QUICK | {"total_steps": 100_000})
    try:
        while not (workdir / lock.NAME).exists() or not (workdir / lock.NAME).read_text():
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        who = rf"{workdir}: a run is under way there \(process {first.pid} on {socket.gethostname()}\)"
        with pytest.raises(RunError, match=who):
            train(small_config(**QUICK), workdir)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    with lock.held(workdir):
        pass


def test_a_directory_may_have_any_name(tmp_path):
    """In train, evaluate and export; "~" is the home in each."""
    home = os.environ | {"HOME": str(tmp_path)}
    name = "lr=1e-6, k@1"
    done = program("hir_jax.train", *arguments(f"~/{name}", **QUICK), env=home)
    workdir = tmp_path / name
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(workdir / "metrics.jsonl")] == [0, 1, 2]
    assert not (workdir / lock.NAME).exists() and (workdir / "report.html").exists()
    done = program("hir_jax.evaluate", f"--workdir=~/{name},~/{name}@0", "--benchmark=heldout", env=home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["runs"]
    assert [(one, found[one]["step"]) for one in found] == [(str(workdir), 2), (f"{workdir}@0", 0)]
    assert f"{workdir}, step 0: the model that the run starts from (random)" in done.stderr
    done = program("hir_jax.export", f"--workdir=~/{name}", f"--output=~/out of {name}", env=home)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"out of {name}" / "model.safetensors").exists()


@pytest.fixture(params=["a limit on files", "a small disk"])
def full(request, tmp_path):
    """(directory, words of the error, what the command begins with) where checkpoints find no room."""
    if request.param == "a limit on files":  # as good as a full disk, and everybody can have one
        yield tmp_path, "File too large", ["bash", "-c", 'ulimit -f 20 && exec "$@"', "-"]  # 20 KiB a file
        return
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk, and not in every container")
    yield disk, "No space left on device", []
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_the_last_line(full):
    directory, words, before = full
    command = [*before, sys.executable, "-m", "hir_jax.train", *arguments(directory / "run", **QUICK)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {directory}/run/checkpoints: a checkpoint cannot be written: {words}"), done.stderr
