"""Several processes as one program: joining a group, who does what, and how all end when one does.

All processes run the same program on the same files and hold the same host arrays of a step (512 samples of 4,096 tokens: 27 MB);
the devices hold shards. What is slow on a host, turning tokens into text and checking it, is shared out (`share`, `union`).
The first process alone writes what is not sharded, and decides what hangs on files (`agree`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
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

# A process that was silent for so long is gone. jax's default of 100 s would keep the others hanging for longer than a minute.
HEARTBEAT_SECONDS = 30
_JOIN_SECONDS = 300  # hosts of a slice start at different times
_WAIT_SECONDS = 24 * 3600  # for a process at work, which may write a large model; heartbeats tell of one that is gone
_FAREWELL_SECONDS = 10  # for the others to read why a process ends
_AGAIN = "Start all processes again with the same command: the run continues from its last checkpoint"
# What jax.distributed.initialize() looks for, by its names there: Open MPI's mpirun (OMPI_MCA_orte_hnp_uri, and
# OMPI_COMM_WORLD_SIZE, _RANK, _LOCAL_RANK; version 5 through mpi4py with jax 0.12, not at all with 0.10), a SLURM step
# (SLURM_JOB_ID, _STEP_NODELIST, _NTASKS, _PROCID, _LOCALID, all set by srun), Cloud TPU hosts (worker-network-endpoints and
# agent-worker-number of the metadata server), TPU pods on GKE (TPU_WORKER_HOSTNAMES or TPU_PROCESS_ADDRESSES, TPU_WORKER_ID),
# and for several slices MEGASCALE_*.
# Under SLURM and Open MPI each process gets one GPU of its host, unless JAX_LOCAL_DEVICE_IDS names others.
_LAUNCHERS = ("ompi", "slurm", "gcetpu", "gketpu")


class ProcessError(InputError):
    """A group of processes that cannot be joined, or whose members disagree; the message says what to change."""


def define_flags() -> None:
    """Declares --coordinator, --processes and --process, which come before HIR_COORDINATOR, HIR_PROCESSES and HIR_PROCESS."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT at which the first of several processes can be reached.")
    flags.DEFINE_integer("processes", None, "How many processes there are.", lower_bound=1)
    flags.DEFINE_integer("process", None, "Which of them this one is, from 0.", lower_bound=0)


# ---- joining


def _named_group() -> dict[str, Any] | None:
    """Arguments for jax of a group that flags or variables describe, or None."""
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
    """The same of a group of several processes that a launcher describes, for jax to read for itself."""
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
    """Says this process's last words if it ends without saying anything itself.

    When a process of the group is gone, jax ends the others from a thread of its own by abort(), where no Python runs any more;
    so a small process waits for the end of a pipe.
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
        """Nothing is to be said."""
        self.last_words("")
        self._process.stdin.close()
        self._process.wait()


def _name() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


@contextmanager
def joined(*, preemption: bool) -> Iterator[None]:
    """The group that flags, HIR_ variables or a launcher describe, or a single process; before anything else of jax is used.

    Where there is a group, its processes end together: an error inside ends all with its message and status 1, and when one is
    killed the others end within HEARTBEAT_SECONDS. With `preemption` jax hears SIGTERM, for
    `jax.experimental.multihost_utils.reached_preemption_sync_point`; without, it ends the process as usual.
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
    group = _Group(witness)
    witness.last_words(f"error: {_name()} has ended, for another one is gone or it was killed itself. {_AGAIN}\n")
    try:
        yield
        group.leave()
    except BaseException as error:
        group.fail(error)


class _Group:
    """The group that this process is in: hears of the failure of others, and tells of its own."""

    _FAILURES = "hir_jax/failures"

    def __init__(self, witness: _Witness):
        self._client, self._witness = distributed.global_state.client, witness
        self._ending = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def leave(self) -> None:
        """Waits for all, the first of which may still be writing."""
        self._client.wait_at_barrier("hir_jax/end", _WAIT_SECONDS * 1000)
        self._ending.set()
        jax.distributed.shutdown()
        self._witness.close()

    def fail(self, error: BaseException) -> NoReturn:
        """Says what is wrong, here and to the others, which may be waiting for this one where no exception reaches them."""
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
        self._witness.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # at a usual exit jax would wait for the others, which wait for this one


# ---- working together


def first() -> bool:
    """Whether this process writes files and the terminal."""
    return jax.process_index() == 0


def share(items: Sequence) -> Sequence:
    """This process's part of what all of them hold: every n-th, so that what belongs together is spread."""
    return items[jax.process_index() :: jax.process_count()]


def union(tree):
    """Element-wise "or" over the processes, of a tree of bool NumPy arrays."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: x.any(0), multihost_utils.process_allgather(tree))


def total(values: Mapping[str, float]) -> dict[str, float]:
    """Sums over the processes."""
    if jax.process_count() == 1:
        return dict(values)
    bits = np.array(list(values.values()), np.float64).view(np.uint32)  # jax would round to float32
    sums = multihost_utils.process_allgather(bits).view(np.float64).sum(0)
    return dict(zip(values, sums.tolist(), strict=True))


_decisions = iter(range(sys.maxsize))


def agree(decide: Callable[[], Any]) -> Any:
    """What `decide` returns (as JSON has it) in the first process, in all of them; its InputError is raised in all."""
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
    """ProcessError in all processes if `value`, of which JSON can be made, is not the same in all."""
    if jax.process_count() == 1:
        return
    marks = multihost_utils.process_allgather(np.uint32(zlib.crc32(json.dumps(value, sort_keys=True).encode())))
    if others := np.flatnonzero(marks != marks[0]).tolist():
        raise ProcessError(f"{name} is not the same in processes 0 and {', '.join(map(str, others))}: {advice}")
