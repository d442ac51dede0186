"""Runs several processes as one program: joins them in a group, divides work among them, and ends all when one ends.

All processes run the same program on the same files and hold the same host arrays of a step (512 samples of 4,096 tokens: 27 MB);
the devices hold shards. Slow host work, which is decoding tokens to text and checking it, is divided (`share`, `union`).
Only the first process writes what is not sharded and makes decisions that depend on files (`agree`).
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax
import numpy as np
from absl import flags
from jax._src import clusters, distributed  # neither detection nor the group's key-value store has a public name
from jax.experimental import multihost_utils

from hir_jax.types import InputError

# After this time without a heartbeat a process counts as dead. With jax's default of 100 s the others would wait over a minute.
HEARTBEAT_SECONDS = 30
_JOIN_SECONDS = 300  # the hosts of a slice start at different times
_WAIT_SECONDS = 24 * 3600  # for a process at work, which may be writing a large model; heartbeats detect a dead one
_FAREWELL_SECONDS = 10  # for the others to read why a process ends
_AGAIN = "Start all processes again with the same command: the run continues from its last checkpoint"
# Launchers that jax.distributed.initialize() detects, by jax's names for them: Open MPI's mpirun (OMPI_MCA_orte_hnp_uri, and
# OMPI_COMM_WORLD_SIZE, _RANK, _LOCAL_RANK; version 5 through mpi4py with jax 0.12, not at all with 0.10), a SLURM step
# (SLURM_JOB_ID, _STEP_NODELIST, _NTASKS, _PROCID, _LOCALID, all set by srun), Cloud TPU hosts (worker-network-endpoints and
# agent-worker-number of the metadata server), TPU pods on GKE (TPU_WORKER_HOSTNAMES or TPU_PROCESS_ADDRESSES, TPU_WORKER_ID),
# and for several slices MEGASCALE_*.
# Under SLURM and Open MPI each process gets one GPU of its host, unless JAX_LOCAL_DEVICE_IDS names others.
_LAUNCHERS = ("ompi", "slurm", "gcetpu", "gketpu")


class ProcessError(InputError):
    """A group of processes cannot be joined, or its members disagree; the message says what to change."""


def define_flags() -> None:
    """Defines --coordinator, --processes and --process, which override HIR_COORDINATOR, HIR_PROCESSES and HIR_PROCESS."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT at which the first of several processes can be reached.")
    flags.DEFINE_integer("processes", None, "How many processes there are.", lower_bound=1)
    flags.DEFINE_integer("process", None, "Which of them this one is, from 0.", lower_bound=0)


# ---- joining


def _named_group() -> dict[str, Any] | None:
    """jax's arguments for the group that flags or environment variables describe, or None."""
    values = {}
    for name in ("coordinator", "processes", "process"):
        flag, variable = flags.FLAGS[name].value, os.environ.get(f"HIR_{name.upper()}")
        if (value := variable if flag is None else flag) is not None:
            values[name] = value
    if not values:
        return None
    if missing := [
        f"--{name} (or HIR_{name.upper()})" for name in ("coordinator", "processes", "process") if name not in values
    ]:
        raise ProcessError(f"a group of processes needs three things; not given: {', '.join(missing)}")
    try:
        count, index = int(values["processes"]), int(values["process"])
    except ValueError:
        raise ProcessError(f"HIR_PROCESSES and HIR_PROCESS must be whole numbers: {values}") from None
    if not 0 <= index < count:
        raise ProcessError(f"process {index} of {count}: HIR_PROCESS counts from 0 to HIR_PROCESSES - 1")
    host, _, port = values["coordinator"].rpartition(":")
    if not host or not port.isdecimal():
        raise ProcessError(f"the coordinator {values['coordinator']!r} must be HOST:PORT, of the host of process 0")
    return {"coordinator_address": values["coordinator"], "num_processes": count, "process_id": index}


def _launched_group() -> dict[str, Any] | None:
    """jax's arguments for a group of several processes that a launcher describes, or None. jax reads the details itself."""
    for launcher in clusters.ClusterEnv._cluster_types:
        if launcher.name not in _LAUNCHERS or not launcher.is_env_present():
            continue
        try:
            count = launcher.get_process_count()
        except (KeyError, ValueError, RuntimeError) as error:
            raise ProcessError(
                f"{launcher.name}: cannot tell the number of processes ({error}); set HIR_PROCESSES"
            ) from error
        return {"cluster_detection_method": launcher.name} if count > 1 else None
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        raise ProcessError(
            "Open MPI started several processes, but in a way that this jax cannot read (Open MPI 5): set HIR_COORDINATOR to "
            "HOST:PORT of the first one, HIR_PROCESSES=$OMPI_COMM_WORLD_SIZE and HIR_PROCESS=$OMPI_COMM_WORLD_RANK"
        )
    return None


class _Witness:
    """Prints this process's last message if it ends without printing one itself.

    When a process of the group dies, jax ends the others by abort() in a thread of its own, where no Python can run. So a small
    helper process waits for the end of a pipe.
    """

    _PROGRAM = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "sys.stderr.write(sys.stdin.read().split('\\0')[-1])"
    )

    def __init__(self):
        command = [sys.executable, "-I", "-S", "-c", self._PROGRAM]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)

    def last_words(self, text: str) -> None:
        self._process.stdin.write("\0" + text)
        self._process.stdin.flush()

    def close(self) -> None:
        """Ends the helper process without a message."""
        self.last_words("")
        self._process.stdin.close()
        self._process.wait()


def _name() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


@contextmanager
def joined(*, preemption: bool) -> Iterator[None]:
    """Joins the group that flags, HIR_ variables or a launcher describe; without one, does nothing. Call before other jax code.

    The processes of a group end together: an error inside ends all with its message and status 1, and when one is killed the
    others end within HEARTBEAT_SECONDS. With `preemption` jax handles SIGTERM for
    `jax.experimental.multihost_utils.reached_preemption_sync_point`; without it, SIGTERM ends the process as usual.
    """
    arguments = _named_group() or _launched_group()
    if arguments is None:
        yield
        return
    witness = _Witness()
    where = arguments.get("coordinator_address", "the coordinator")
    witness.last_words(
        f"error: the processes did not find one another at {where} within {_JOIN_SECONDS} s: check that all were started, each "
        "with its own number, that the address is that of process 0, and that its port is free and open\n"
    )
    jax.config.update("jax_enable_preemption_service", preemption)
    jax.distributed.initialize(
        **arguments,
        initialization_timeout=_JOIN_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )
    # absl lets an abort print the stacks of all threads. jax aborts while they run: reading their stacks then may crash.
    if faulthandler.is_enabled():
        faulthandler.enable(all_threads=False)
    group = _Group(witness)
    witness.last_words(f"error: {_name()} has ended, for another one is gone or it was killed itself. {_AGAIN}\n")
    try:
        yield
        group.leave()
    except BaseException as error:
        group.fail(error)


class _Group:
    """The group that this process has joined. Learns of the failure of other processes and tells them of its own."""

    _FAILURES = "hir_jax/failures"

    def __init__(self, witness: _Witness):
        self._client, self._witness = distributed.global_state.client, witness
        self._ending = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def leave(self) -> None:
        """Waits for all processes, of which the first may still be writing, and leaves the group."""
        self._client.wait_at_barrier("hir_jax/end", _WAIT_SECONDS * 1000)
        self._ending.set()
        jax.distributed.shutdown()
        self._witness.close()

    def fail(self, error: BaseException) -> NoReturn:
        """Prints the error, sends it to the other processes, which may be waiting where no exception reaches them, and ends."""
        self._ending.set()
        if not isinstance(error, InputError | OSError):
            traceback.print_exception(error)
            error = f"{type(error).__name__}: {error}. {_AGAIN}"
        print(f"error: {error}", file=sys.stderr)
        with suppress(Exception):  # the coordinator may be gone
            self._client.key_value_set(f"{self._FAILURES}/{jax.process_index()}", f"{_name()}: {error}")
        self._end()

    def _listen(self) -> None:
        while not self._ending.wait(1.0):
            try:
                found = self._client.key_value_dir_get(self._FAILURES)
            except Exception:  # the coordinator is gone: jax ends this process
                return
            if found and not self._ending.is_set():
                print(f"error: {found[0][1]}", file=sys.stderr)
                self._end()

    def _end(self) -> NoReturn:
        with suppress(Exception):
            self._client.wait_at_barrier("hir_jax/failed", _FAREWELL_SECONDS * 1000)
            if first():
                # it serves the group, and jax aborts a process that is still there when the server ends
                time.sleep(2.0)
        self._witness.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # a normal exit would deadlock: jax waits for the others, which wait for this process


# ---- working together


def first() -> bool:
    """Whether this process is the first, which alone writes to files and to the terminal."""
    return jax.process_index() == 0


def share(items: Sequence) -> Sequence:
    """This process's part of a list that all processes hold: every n-th item, so that neighbours go to different processes."""
    return items[jax.process_index() :: jax.process_count()]


def union(tree):
    """Element-wise "or" of a tree of bool NumPy arrays over the processes."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: x.any(0), multihost_utils.process_allgather(tree))


def total(values: Mapping[str, float]) -> dict[str, float]:
    """The sum of each value over the processes."""
    if jax.process_count() == 1:
        return dict(values)
    bits = np.array(list(values.values()), np.float64).view(np.uint32)  # jax would round to float32
    sums = multihost_utils.process_allgather(bits).view(np.float64).sum(0)
    return dict(zip(values, sums.tolist(), strict=True))


_decisions = iter(range(sys.maxsize))


def agree(decide: Callable[[], Any]) -> Any:
    """In all processes, the value (after a round trip through JSON) or the InputError of `decide` in the first process."""
    if jax.process_count() == 1:
        return decide()
    client, key, found = distributed.global_state.client, f"hir_jax/decisions/{next(_decisions)}", {}
    if first():
        try:
            found["value"] = decide()
        except (InputError, OSError) as error:
            found["error"] = str(error)
        client.key_value_set(key, json.dumps(found))
    found = json.loads(client.blocking_key_value_get(key, _WAIT_SECONDS * 1000))
    if "error" in found:
        raise ProcessError(found["error"])
    return found["value"]


def same(value: Any, name: str, advice: str) -> None:
    """Raises ProcessError in all processes if `value`, which must be serialisable as JSON, is not the same in all."""
    if jax.process_count() == 1:
        return
    marks = multihost_utils.process_allgather(np.uint32(zlib.crc32(json.dumps(value, sort_keys=True).encode())))
    if others := np.flatnonzero(marks != marks[0]).tolist():
        raise ProcessError(f"{name} is not the same in processes 0 and {', '.join(map(str, others))}: {advice}")
