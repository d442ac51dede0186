"""Only one run at a time in a directory, by the kernel's lock or by a lease."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from hir_jax.run import lock
from hir_jax.run.files import RunError

HOLD = """
import errno, sys, time
from pathlib import Path
from hir_jax.run import lock
if sys.argv[2] == "lease":
    lock._local_locks = lambda path: True
    lock.SETTLE_SECONDS = 0.1
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["lock", "lease"])
def kind(request, monkeypatch):
    """The way this process holds directories: by flock, or by a lease, as on NFS without a lock server."""
    if request.param == "lease":

        def unsupported(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(lock.fcntl, "flock", unsupported)
        monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.1)
    return request.param


@pytest.fixture
def start(tmp_path, kind):
    """Another process that holds tmp_path/run until its stdin is closed."""
    started = []

    def go():
        command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), kind]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield go
    for one in started:
        one.kill()
        one.communicate()


def test_the_second_is_refused_at_once_by_host_and_pid(tmp_path, start):
    other = start()
    who = rf"{tmp_path}/run: a run is under way there \(process {other.pid} on {socket.gethostname()}\); wait"
    for _ in range(2):
        with pytest.raises(RunError, match=who), lock.held(tmp_path / "run"):
            pass
    other.communicate("")
    assert not (tmp_path / "run").exists()  # nothing was written there


def test_nothing_is_left_behind_by_a_kill(tmp_path, start):
    other = start()
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "run" / lock.NAME).exists()
    with lock.held(tmp_path / "run") as own:
        own.check()
        assert json.loads((tmp_path / "run" / lock.NAME).read_text())["pid"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []


def test_one_process_holds_a_directory_once(tmp_path, kind):
    (tmp_path / "file").write_text("mine")
    for _ in range(2):
        with lock.held(tmp_path), pytest.raises(RunError, match=f"process {os.getpid()} on"), lock.held(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(RunError, match="file: not a directory"), lock.held(tmp_path / "file"):
        pass


def lease(path, **changes):
    """Writes a lease of a process on another machine."""
    owner = {"host": "far", "pid": 7, "machine": "another", "started": "1", "token": "t"} | changes
    (path / lock.NAME).write_text(json.dumps(owner))
    return path / lock.NAME


def test_a_lease_of_another_machine_counts_while_it_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_local_locks", lambda path: True)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.1)
    path = lease(tmp_path)
    with pytest.raises(RunError, match=r"process 7 on far"), lock.held(tmp_path):
        pass
    then = time.time() - lock.SILENT_SECONDS - 5
    os.utime(path, (then, then))
    with lock.held(tmp_path):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


def test_a_process_id_that_was_given_anew_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_local_locks", lambda path: True)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.1)
    lease(tmp_path, pid=os.getppid(), machine=lock._machine(), started="1")
    with lock.held(tmp_path):
        pass
    lease(tmp_path, pid=os.getppid(), machine=lock._machine(), started=lock._started(os.getppid()))
    with pytest.raises(RunError, match=f"process {os.getppid()} on far"), lock.held(tmp_path):
        pass


def test_a_lease_that_another_has_taken_is_noticed(tmp_path, monkeypatch):
    """This process was suspended for so long that another took over the directory."""
    monkeypatch.setattr(lock, "_local_locks", lambda path: True)
    for name, seconds in (("SETTLE_SECONDS", 0.1), ("BEAT_SECONDS", 0.05)):
        monkeypatch.setattr(lock, name, seconds)
    with lock.held(tmp_path) as own:
        before = (tmp_path / lock.NAME).stat().st_mtime_ns
        while (tmp_path / lock.NAME).stat().st_mtime_ns == before:  # until it is touched
            time.sleep(0.01)
        own.check()
        path = lease(tmp_path)
        while own._lost is None:
            time.sleep(0.01)
        with pytest.raises(RunError, match="process 7 on far"):
            own.check()
    assert json.loads(path.read_text())["host"] == "far"  # and not removed


@pytest.mark.parametrize(
    ("options", "local"), [("rw,vers=3,nolock,addr=1.2.3.4", True), ("rw,local_lock=all", True), ("rw,vers=4.2", False)]
)
def test_mounts_whose_locks_hold_within_one_machine(tmp_path, monkeypatch, options, local):
    device = os.stat(tmp_path).st_dev
    line = f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw,noatime master:1 - nfs server:/share {options}"
    other = "36 35 999:1 / /other rw - nfs server:/share rw,nolock"
    monkeypatch.setattr(lock, "_read", lambda path: f"{other}\n{line}\n")
    assert lock._local_locks(tmp_path) is local
