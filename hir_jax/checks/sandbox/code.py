"""Constraints that come with their checker as Python source (type4 rows of HIR-16K), run in a sandbox.

The source is part of the data, so it is treated as hostile. Each check has a process of its own under bubblewrap: no network,
no file system except the interpreter and the system's libraries (read-only), an empty environment, no second process or
thread, limits on CPU time, memory, files and wall-clock time, and a bounded answer. The result is a verdict or the reason why
there is none. Off unless the verifier is given a `Cage` as its decider "code".

The source has to define `function`, which takes the instruction and the response (in this order) or, with one parameter, the
response alone, and returns a bool; anything else is an unknown verdict. The published rows name the function
`check_following` (as VerIF, arXiv 2506.09942, does). Checkers may import the standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import select
import shutil
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hir_jax.checks import registry
from hir_jax.checks.arguments import TEXT
from hir_jax.checks.worker import DIED, RAISED, TIMED_OUT, Outcome, unknown
from hir_jax.types import InputError

if TYPE_CHECKING:
    from hir_jax.checks.verifier import Question

ID = "code:python"
REFUSED = "refused"  # no check was made: the source does not define the function, or the sandbox did not start
NONSENSE = "nonsense"  # the function returned no bool, or something else was written in place of the answer

registry.declare(
    ID,
    lambda source, function: f"The response must pass the check {function}.",
    decider="code",
    source=TEXT,
    function=TEXT,
)

_RUNNER = Path(__file__).with_name("caged.py")
_LONGEST_ANSWER = 4096  # bytes
_MEGABYTE = 1 << 20
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")

# System calls that are refused (EPERM), by machine: new processes and threads, new namespaces, and kernel objects that
# outlive a process or hold memory that no limit counts. RLIMIT_NPROC does not bind the processes of root.
_CALLS = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, None),
    "vfork": (58, None),
    "unshare": (272, 97),
    "setns": (308, 268),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
}
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of _CALLS, AUDIT_ARCH_*


def _seccomp_program(machine: str) -> bytes:
    """The filter as an array of `struct sock_filter`: (u16 code, u8 jump if true, u8 jump if false, u32 k)."""
    column, architecture = _MACHINES[machine]
    denied = [numbers[column] for numbers in _CALLS.values() if numbers[column] is not None]
    load, equal, at_least, back = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000
    tests = [(at_least, 0x40000000), *((equal, number) for number in denied)]  # from this number on: x86's x32 calls
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (back, 0, 0, kill), (load, 0, 0, 0)]
    program += [(code, len(tests) - i, 0, k) for i, (code, k) in enumerate(tests)]
    program += [(back, 0, 0, allow), (back, 0, 0, refuse)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


@contextlib.contextmanager
def _file_in_memory(content: bytes) -> Iterator[int]:
    """A descriptor from which a child process reads `content`, without a file on disk."""
    descriptor = os.memfd_create("cage")
    try:
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _interpreter() -> tuple[str, list[str]]:
    """The real interpreter (a venv's is a link to it), and the bubblewrap options that make it visible."""
    executable = os.path.realpath(sys.executable)
    standard = sysconfig.get_path("stdlib")
    shared = Path(sysconfig.get_config_var("LIBDIR") or "/", sysconfig.get_config_var("INSTSONAME") or "absent")
    options = []
    for directory in _LIBRARIES:
        if os.path.islink(directory):
            options += ["--symlink", os.readlink(directory), directory]
        elif os.path.isdir(directory):
            options += ["--ro-bind", directory, directory]
    for path in (executable, standard, *([str(shared)] if shared.is_file() else [])):
        options += ["--ro-bind", path, path]
    packages = os.path.join(standard, "site-packages")
    if os.path.isdir(packages):
        options += ["--tmpfs", packages, "--remount-ro", packages]
    return executable, options


def _command(bwrap: str) -> list[str]:
    """The command of a check, without the descriptor of the seccomp program."""
    executable, options = _interpreter()
    namespaces = ["user", "ipc", "pid", "net", "uts", "cgroup-try"]
    return [
        bwrap,
        *(f"--unshare-{name}" for name in namespaces),
        *("--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--hostname", "cage"),
        *("--die-with-parent", "--new-session", "--setenv", "PYTHONHASHSEED", "0"),  # a checker may iterate over a set
        *options,
        *("--ro-bind", str(_RUNNER), "/caged.py", "--dev-bind", "/dev/null", "/dev/null"),
        *("--remount-ro", "/", "--chdir", "/"),
        # Not -I: its -E would ignore the hash seed, and nothing else is in the environment.
        *("--", executable, "-P", "-s", "-S", "-B", "-X", "utf8", "/caged.py"),
    ]  # fmt: skip


class _Answer(NamedTuple):
    content: bytes
    status: int | None  # None: killed when its time was up


def _read(pipe: int, deadline: float) -> bytes:
    """Reads from the pipe up to its end, the deadline or one byte more than an answer may have."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    content = b""
    while len(content) <= _LONGEST_ANSWER and (left := deadline - time.monotonic()) > 0 and poll.poll(1000 * left):
        piece = os.read(pipe, _LONGEST_ANSWER + 1 - len(content))
        if not piece:
            break
        content += piece
    return content


class Cage:
    """The sandbox: decides code:python constraints as the verifier's decider "code"; callable from any thread.

    workers: number of checks that run at the same time, each in a process.
    timeout_seconds: wall-clock limit of a check, including its start (about 50 ms). CPU time is limited too, slightly higher.
    memory_bytes: limit of a check's address space.
    Raises InputError where no sandbox can be built: no bubblewrap, another machine than x86_64 or aarch64, or a system that
    forbids user namespaces. It never runs code outside a sandbox.
    """

    def __init__(self, workers: int, timeout_seconds: float, memory_bytes: int = 512 * _MEGABYTE):
        if workers < 1 or not timeout_seconds > 0 or memory_bytes < 64 * _MEGABYTE:
            raise ValueError(
                f"workers must be >= 1, timeout_seconds > 0 and memory_bytes >= 64 MiB, not {workers}, "
                f"{timeout_seconds} and {memory_bytes}"
            )
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise InputError(
                "code checkers run under bubblewrap only, and there is no `bwrap` here: install it "
                "(Debian, Ubuntu: apt-get install bubblewrap), or leave code checkers off"
            )
        if platform.machine() not in _MACHINES:
            raise InputError(f"code checkers are caged on {' and '.join(_MACHINES)} only, not on {platform.machine()}")
        self._workers = workers
        self._seconds = timeout_seconds
        self._memory_bytes = memory_bytes
        self._command = _command(bwrap)
        self._seccomp = _seccomp_program(platform.machine())
        self._try_out()

    def __call__(self, questions: Sequence[Question]) -> list[Outcome]:
        """An outcome for each question. The reasons for no verdict are refused, raised, timed_out, died and nonsense."""
        with ThreadPoolExecutor(self._workers) as threads:
            return list(threads.map(self._outcome, questions))

    def _try_out(self) -> None:
        answer = self._run("def check(response): return response == 'é'", "check", "", "é", seconds=30)
        if answer.content != b"true" or answer.status != 0:
            said = answer.content.decode(errors="replace").strip()[:300] or f"status {answer.status}"
            raise InputError(
                f"code checkers run under bubblewrap only, and it does not work here: {said}. It needs user "
                "namespaces (in a container: a profile that allows them); or leave code checkers off"
            )

    def _outcome(self, question: Question) -> Outcome:
        arguments = question.constraint.arguments
        try:
            answer = self._run(
                arguments["source"], arguments["function"], question.prompt, question.response, self._seconds
            )
        except OSError as error:  # no process or descriptor left
            reason, detail = REFUSED, f"no cage could be opened: {error.strerror}"
        else:
            if answer in (_Answer(b"true", 0), _Answer(b"false", 0)):
                return Outcome(question.row, question.position, answer.content == b"true")
            reason, detail = self._complaint(answer)
        return unknown(question, reason, detail)

    def _complaint(self, answer: _Answer) -> tuple[str, str]:
        if answer.status is None:
            return TIMED_OUT, f"no verdict within {self._seconds:g} s"
        if answer.status != 0:
            return DIED, f"its process ended with status {answer.status}"
        if not answer.content:
            return DIED, "its process ended without a verdict"
        said = "".join(c if c.isprintable() else " " for c in answer.content.decode(errors="replace"))  # it is logged
        reason, _, detail = said.partition(" ")
        if reason in (REFUSED, RAISED, NONSENSE) and len(answer.content) <= _LONGEST_ANSWER:
            return reason, detail
        return NONSENSE, "something else than a verdict was written in its place"

    def _run(self, source: str, function: str, instruction: str, response: str, seconds: float) -> _Answer:
        request = json.dumps(
            {
                "seconds": math.ceil(seconds) + 1,  # so that the wall-clock limit comes first
                "memory_bytes": self._memory_bytes,
                "source": source,
                "function": function,
                "instruction": instruction,
                "response": response,
            }
        )
        deadline = time.monotonic() + seconds
        with _file_in_memory(request.encode()) as standard_in, _file_in_memory(self._seccomp) as seccomp:
            process = subprocess.Popen(
                [self._command[0], "--seccomp", str(seccomp), *self._command[1:]],
                stdin=standard_in, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(seccomp,), env={},
            )  # fmt: skip
        with process, contextlib.closing(process.stdout) as pipe:
            try:
                content = _read(pipe.fileno(), deadline)
                status = process.wait(max(0, deadline - time.monotonic())) if len(content) <= _LONGEST_ANSWER else 0
            except subprocess.TimeoutExpired:
                status = None
            finally:
                process.kill()  # the processes inside die with it; no effect if it has ended
        return _Answer(content, status)
