"""One run at a time in a directory: DIR/run.lock, which says whose the directory is while a run is under way.

The lock is the kernel's (flock), on NFS the server's: it ends with its process, however that ends, so that none is left behind by
a kill. Where the file system has no such lock, or only one that holds within a machine (NFS mounted with nolock), the file is a
lease: its holder touches it every BEAT_SECONDS, and it counts as left behind when its process is gone from this machine or, on
another machine, when the file server says that it was not touched for SILENT_SECONDS.

What a lease cannot do: after a kill on another machine a start is refused for up to SILENT_SECONDS; and of two starts within
SETTLE_SECONDS, or beside a process that was stopped for longer than SILENT_SECONDS, both may go on until the first one looks
again, at most BEAT_SECONDS later, and ends (`Lock.check`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hir_jax.run.files import RunError, write_atomically

NAME = "run.lock"
BEAT_SECONDS, SILENT_SECONDS, SETTLE_SECONDS = 10.0, 60.0, 1.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_LOCAL = {"nolock", "local_lock=flock", "local_lock=all", "localflock"}  # mount options of NFS and Lustre


def _read(path: str) -> str:
    """A file of /proc; "" where there is none."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this machine started, in the kernel's ticks; "" if there is none, or only a dead one."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if fields and fields[0] not in "ZX" else ""


def _machine() -> str:
    """What processes that can see one another have in common; "" where the system (macOS) does not say."""
    with suppress(OSError):
        return f"{_read('/proc/sys/kernel/random/boot_id').strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _local_locks(path: Path) -> bool:
    """Whether flock on this file system is not heard of by other machines."""
    device = os.stat(path).st_dev
    mounts = [line.split() for line in _read("/proc/self/mountinfo").splitlines()]
    here = f"{os.major(device)}:{os.minor(device)}"
    return any(_LOCAL & set(fields[-1].split(",")) for fields in mounts if fields[2] == here)


def _owner(path: Path) -> dict[str, Any]:
    """What the file says of who holds it; {} where it says nothing."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _refusal(workdir: Path, owner: Mapping[str, Any]) -> RunError:
    who = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"
    return RunError(f"{workdir}: a run is under way there ({who}); wait for it or stop it, or use another --workdir")


class Lock:
    """A directory that is held. `check` raises RunError if it is not any more, which only a lease can come to."""

    def __init__(self, workdir: Path):
        self._workdir, self._path = workdir, workdir / NAME
        pid = os.getpid()
        self._me = {"host": socket.gethostname(), "pid": pid, "machine": _machine(), "started": _started(pid)}
        self._me["token"] = secrets.token_hex(8)  # tells apart what has the same host and process id
        self._lost: dict[str, Any] | None = None
        self._ended = threading.Event()
        self._file = None if _local_locks(workdir) else self._lock()
        if self._file is None:
            self._take_lease()
            threading.Thread(target=self._beat, name="run.lock", daemon=True).start()

    def check(self) -> None:
        if self._lost is not None:
            raise _refusal(self._workdir, self._lost)

    def release(self) -> None:
        self._ended.set()
        if _owner(self._path).get("token") == self._me["token"]:
            self._path.unlink(missing_ok=True)
        if self._file is not None:
            os.close(self._file)

    def _lock(self) -> int | None:
        """The open file that is locked, None where there are no locks. Raises RunError."""
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who ends removes the file before it gives up the lock: the one that was locked here may be gone by now.
                if self._path.exists() and os.path.samestat(os.fstat(file), os.stat(self._path)):
                    os.ftruncate(file, 0)
                    os.pwrite(file, json.dumps(self._me).encode(), 0)
                    return file
                os.close(file)
            except (BlockingIOError, PermissionError):
                os.close(file)
                raise _refusal(self._workdir, self._holder()) from None
            except OSError as error:
                os.close(file)
                if error.errno not in _NO_LOCKS:
                    raise
                return None

    def _holder(self) -> dict[str, Any]:
        """The owner's own words, which come a moment after it has the lock."""
        for _ in range(20):
            if owner := _owner(self._path):
                return owner
            time.sleep(0.05)
        return {}

    def _take_lease(self) -> None:
        draft = self._path.with_name(f"{NAME}.{self._me['token']}")
        write_atomically(draft, json.dumps(self._me))
        try:
            owner, now = _owner(self._path), draft.stat().st_mtime  # by the clock that the other file's time is of
            if owner and not self._left_behind(owner, now):
                raise _refusal(self._workdir, owner)
            os.replace(draft, self._path)
        finally:
            draft.unlink(missing_ok=True)
        time.sleep(SETTLE_SECONDS)
        if (owner := _owner(self._path)).get("token") != self._me["token"]:
            raise _refusal(self._workdir, owner)

    def _left_behind(self, owner: Mapping[str, Any], now: float) -> bool:
        if owner.get("machine") and owner["machine"] == self._me["machine"]:
            return _started(owner.get("pid", 0)) != owner.get("started")
        with suppress(FileNotFoundError):
            return now - self._path.stat().st_mtime > SILENT_SECONDS
        return True

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # the server is away: its clock goes on when it is back
                owner = _owner(self._path)
                if owner and owner.get("token") != self._me["token"]:
                    self._lost = owner
                    return
                os.utime(self._path)


@contextmanager
def held(workdir: Path) -> Iterator[Lock]:
    """The directory, made if need be, as this run's own. Raises RunError while another run holds it. A directory that was made
    here goes again if nothing was written there."""
    if workdir.exists() and not workdir.is_dir():
        raise RunError(f"{workdir}: not a directory; give --workdir one, or a name that is not there yet")
    made = [path for path in (workdir, *workdir.parents) if not path.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(workdir)
        try:
            yield lock
        finally:
            lock.release()
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()
