"""Starts several processes of one program on this machine, which find each other through jax.distributed.

    python launch/local.py --processes=2 [--devices=4] -- hir_jax.train --config=configs/X.py --workdir=DIR ...

Each process runs `python -m MODULE ...` with HIR_COORDINATOR (a free port of this machine), HIR_PROCESSES and HIR_PROCESS. With
--devices=D it has D virtual CPU devices. Without, on a machine with GPUs, it has its share of them, and 95% of their memory
unless XLA_CLIENT_MEM_FRACTION is set. Each line of output begins with its process's number: "[0] ...". All processes receive
SIGTERM and SIGINT. When one fails the others get SIGTERM, and SIGKILL after --grace seconds; the exit status is that of the first
that failed. Nothing is started again. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def gpus() -> list[str]:
    """The GPUs in CUDA_VISIBLE_DEVICES, or else all that nvidia-smi lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [one for one in visible.split(",") if one]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True
    )
    return listed.stdout.split() if listed.returncode == 0 else []


# The variable for the share of a GPU's memory that jax may take, and its older name. jax's own default, 0.75, is less than
# `hir_jax.aot` assumes.
MEMORY_NAMES, MEMORY_SHARE = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"), "0.95"


def environments(processes: int, devices: int | None) -> list[dict[str, str]]:
    """Each process's variables, beyond this one's environment."""
    shared = {"HIR_COORDINATOR": f"127.0.0.1:{free_port()}", "HIR_PROCESSES": str(processes)}
    own = [{"HIR_PROCESS": str(index)} for index in range(processes)]
    if devices:
        flag = f"--xla_force_host_platform_device_count={devices}"
        shared |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()}
    elif found := gpus():
        share, rest = divmod(len(found), processes)
        if rest:
            sys.exit(f"error: {len(found)} GPUs cannot be shared by {processes} processes (see CUDA_VISIBLE_DEVICES)")
        if not any(os.environ.get(name) for name in MEMORY_NAMES):
            shared[MEMORY_NAMES[0]] = MEMORY_SHARE
        for index, one in enumerate(own):
            one["CUDA_VISIBLE_DEVICES"] = ",".join(found[index * share : (index + 1) * share])
    return [shared | one for one in own]


def exit_status(code: int) -> int:
    """The status that a shell gives: 128 + the signal for a killed process."""
    return code if code >= 0 else 128 - code


def copy_lines(index: int, stream) -> None:
    for line in stream:
        sys.stdout.buffer.write(f"[{index}] ".encode() + line.removesuffix(b"\n") + b"\n")
        sys.stdout.buffer.flush()


def end_groups(children) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def run(command: list[str], environments: list[dict[str, str]], grace: float) -> int:
    """Runs one process for each environment to its end. Returns the status of the first that failed, or 0."""
    children, told = [], []

    def hand_on(signum, _=None):
        told.append(signum)
        for child in children:
            if child.poll() is None:
                child.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, hand_on)
    for one in environments:
        # A session of its own: a terminal's Ctrl-C reaches it only through us, and its workers can be ended with it.
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
        children.append(subprocess.Popen(command, env=os.environ | one, **pipes))
    if told:  # a signal that came while they were being started
        hand_on(told[0])
    readers = [threading.Thread(target=copy_lines, args=(i, child.stdout)) for i, child in enumerate(children)]
    for reader in readers:
        reader.start()
    first, kill_at = 0, None
    while None in (statuses := [child.poll() for child in children]):
        failed = [(index, status) for index, status in enumerate(statuses) if status]
        if failed and not first:
            first, kill_at = exit_status(failed[0][1]), time.monotonic() + grace
            print(f"process {failed[0][0]} failed with status {first}: ending the others", file=sys.stderr, flush=True)
            hand_on(signal.SIGTERM)
        if kill_at and time.monotonic() > kill_at:
            end_groups(child for child in children if child.poll() is None)
        time.sleep(0.05)
    end_groups(children)  # a worker left behind would keep the pipe open
    for reader in readers:
        reader.join()
    return first or max(map(exit_status, statuses))


def main() -> None:
    own, program = sys.argv[1:], []
    if "--" in own:
        own, program = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--devices", type=int, help="virtual CPU devices a process")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds that the others have once one has failed")
    args = parser.parse_args(own)
    if not program or args.processes < 1 or (args.devices is not None and args.devices < 1):
        parser.error("give the module and its arguments after `--`; --processes and --devices are at least 1")
    command = [sys.executable, "-m", *program]
    sys.exit(run(command, environments(args.processes, args.devices), args.grace))


if __name__ == "__main__":
    main()
