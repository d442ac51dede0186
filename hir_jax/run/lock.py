"""Lets only one run at a time use a directory. DIR/run.lock names the process that holds it, in a bucket, too (`BucketLock`).

The lock is the kernel's flock, on NFS the server's. It ends with its process, however that ends, so a kill leaves none behind.
If the file system has no flock, or one that holds only within a machine (NFS mounted with nolock), the file is a lease instead:
its holder touches it every BEAT_SECONDS. A lease has expired when its process no longer exists on this machine or, if it is on
another machine, when by the file server's clock it was not touched for SILENT_SECONDS.

Limits of a lease: after a kill on another machine, a start is refused for up to SILENT_SECONDS. If two runs start within
SETTLE_SECONDS, or one starts beside a process that was suspended for longer than SILENT_SECONDS, both may run until the first
looks again, at most BEAT_SECONDS later, and ends (`Lock.check`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hir_jax import paths
from hir_jax.bucket import ChangedError, Found, Object
from hir_jax.run.files import RunError, refuse_file, write_atomically

log = logging.getLogger(__name__)

NAME = "run.lock"
BEAT_SECONDS, SILENT_SECONDS, SETTLE_SECONDS = 10.0, 60.0, 1.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_LOCAL = {"nolock", "local_lock=flock", "local_lock=all", "localflock"}  # mount options of NFS and Lustre


def _read(path: str) -> str:
    """The text of a file of /proc, "" if there is none."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """The time at which a process of this machine started, in the kernel's ticks; "" if it does not exist or is dead."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if fields and fields[0] not in "ZX" else ""


def _machine() -> str:
    """An identifier shared by all processes that can see one another; "" if the system (macOS) has none."""
    with suppress(OSError):
        return f"{_read('/proc/sys/kernel/random/boot_id').strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _local_locks(path: Path) -> bool:
    """Whether other machines do not see an flock on this file system."""
    device = os.stat(path).st_dev
    mounts = [line.split() for line in _read("/proc/self/mountinfo").splitlines()]
    here = f"{os.major(device)}:{os.minor(device)}"
    return any(_LOCAL & set(fields[-1].split(",")) for fields in mounts if fields[2] == here)


def _owner(path: Path) -> dict[str, Any]:
    """The holder that the lock file names; {} if it names none."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _refusal(workdir: Path, owner: Mapping[str, Any]) -> RunError:
    who = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"
    return RunError(f"{workdir}: a run is under way there ({who}); wait for it or stop it, or use another --workdir")


def _me() -> dict[str, Any]:
    """This process, as a lock file names it. The token distinguishes processes with the same host and process id."""
    pid = os.getpid()
    me = {"host": socket.gethostname(), "pid": pid, "machine": _machine(), "started": _started(pid)}
    return me | {"token": secrets.token_hex(8)}


def _ended(owner: Mapping[str, Any], me: Mapping[str, Any]) -> bool | None:
    """Whether the process of a lock file no longer exists; None for one of another machine."""
    if not owner.get("machine") or owner["machine"] != me["machine"]:
        return None
    return _started(owner.get("pid", 0)) != owner.get("started")


class Lock:
    """A lock on a directory. `check` raises RunError if it was lost, which can happen only to a lease."""

    def __init__(self, workdir: Path):
        self._workdir, self._path = workdir, workdir / NAME
        self._me = _me()
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
        """The descriptor of the locked file, None if the file system has no locks. Raises RunError if another run holds it."""
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A run that ends removes the file and then releases the lock, so the file locked here may be gone already.
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
        """The owner as the file names it. It writes its name shortly after it gets the lock, so this waits up to a second."""
        for _ in range(20):
            if owner := _owner(self._path):
                return owner
            time.sleep(0.05)
        return {}

    def _take_lease(self) -> None:
        draft = self._path.with_name(f"{NAME}.{self._me['token']}")
        write_atomically(draft, json.dumps(self._me))
        try:
            owner, now = (
                _owner(self._path),
                draft.stat().st_mtime,
            )  # the file server's clock, as for the other file's time
            if owner and not self._expired(owner, now):
                raise _refusal(self._workdir, owner)
            os.replace(draft, self._path)
        finally:
            draft.unlink(missing_ok=True)
        time.sleep(SETTLE_SECONDS)
        if (owner := _owner(self._path)).get("token") != self._me["token"]:
            raise _refusal(self._workdir, owner)

    def _expired(self, owner: Mapping[str, Any], now: float) -> bool:
        if (ended := _ended(owner, self._me)) is not None:
            return ended
        with suppress(FileNotFoundError):
            return now - self._path.stat().st_mtime > SILENT_SECONDS
        return True

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # the file server does not answer: try again at the next beat
                owner = _owner(self._path)
                if owner and owner.get("token") != self._me["token"]:
                    self._lost = owner
                    return
                os.utime(self._path)


class BucketLock:
    """The lock on a directory of a bucket: an object that its holder writes anew every BEAT_SECONDS.

    It is made, renewed and taken over under preconditions on its generation, so of two starts one gets it. It is taken
    over at once if its process no longer exists on this machine; if that is of another machine, when by the server's clock it
    was not renewed for SILENT_SECONDS. A start waits until it is known which, and is refused as soon as it is renewed.
    Limits: a holder that was suspended, or did not reach the bucket, for longer than SILENT_SECONDS can lose it, and may save
    one more checkpoint before it sees that and ends (`check`, and the writes of `bucket.Mirror`).
    """

    def __init__(self, workdir: Path):
        self._workdir, self._object, self._me = workdir, Object(workdir / NAME), _me()
        self._lost: dict[str, Any] | None = None
        self._over = threading.Event()
        while not self._taken():
            pass
        self._thread = threading.Thread(target=self._beat, name="run.lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self._lost is not None:
            raise _refusal(self._workdir, self._lost)

    def release(self) -> None:
        self._over.set()
        self._thread.join()
        if self._lost is None:
            with suppress(OSError):  # the bucket does not answer: it counts as silent later
                self._object.delete()

    def _seen(self) -> tuple[Found, dict[str, Any]] | None:
        """The lock's object and the owner that it names, {} if none; None if there is no such object."""
        if (seen := self._object.read()) is None:
            return None
        with suppress(ValueError):
            owner = json.loads(seen[1])
            return seen[0], owner if isinstance(owner, dict) else {}
        return seen[0], {}

    def _put(self) -> None:
        self._object.put_bytes(json.dumps(self._me).encode())

    def _taken(self) -> bool:
        """Whether this process got the lock; False: another process has written it meanwhile. Raises RunError if one holds it."""
        seen = self._seen()
        if seen and not self._expired(*seen):
            raise _refusal(self._workdir, seen[1])
        try:
            self._put()
        except ChangedError:
            return False
        return True

    def _expired(self, found: Found, owner: Mapping[str, Any]) -> bool:
        """Whether the lock's process has ended. For one of another machine this waits until the lock is renewed or released, or
        was silent for long enough."""
        if (ended := _ended(owner, self._me)) is not None:
            return ended
        draft = Object(self._object.path.with_name(f"{NAME}.{self._me['token']}"))
        silent = (draft.put_bytes(b"").updated - found.updated).total_seconds()
        draft.delete()
        end = time.monotonic() + SILENT_SECONDS - silent
        log.info("%s: waiting whether the run there (on %s) is still alive", self._workdir, owner.get("host"))
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, BEAT_SECONDS / 10))
            now = self._object.look()
            if now is None or now.generation != found.generation:
                return now is None
        return True

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with suppress(OSError):  # the bucket does not answer: try again at the next beat
                try:
                    self._put()
                except ChangedError:
                    seen = self._seen()
                    if seen and seen[1].get("token") != self._me["token"]:
                        self._lost = seen[1]
                        return


@contextmanager
def held(workdir: Path) -> Iterator[Lock | BucketLock]:
    """Holds the lock on a directory, which is made if it does not exist and removed again if nothing was written there. Raises
    RunError while another run holds it."""
    refuse_file(workdir)
    if paths.in_bucket(workdir):
        lock = BucketLock(workdir)
        try:
            yield lock
        finally:
            lock.release()
        return
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
