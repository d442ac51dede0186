"""Keeps the training program running on each worker of a TPU node, and reports its state. Called by tpu_vm.py through ssh.

    python launch/worker.py start [--pause=30] -- ARGUMENTS OF hir_jax.train
    python launch/worker.py status|stop
    python launch/worker.py finished -- ARGUMENTS OF hir_jax.train      (status 0: yes; for slurm.sh)

`start` leaves a keeper process, in a session of its own (it outlives the ssh connection), that runs `python -m hir_jax.train` and
starts it again until the run is finished. The program ends with 0 both when it is finished and when SIGTERM has made it save, and
one worker's SIGTERM ends all of them. So the run's own files decide: a run is finished when the last row of WORKDIR/metrics.jsonl
has the step `total_steps` of WORKDIR/config.json, and given up when three starts in a row added no step. Several workers must see
the same WORKDIR (a shared file system), which their checkpoints need anyway. `stop` ends the run for now; a SIGTERM to the keeper
means that the machine goes down ("interrupted"). The program saves in both cases.

In the checkout, .launch/ holds lock (the keeper holds it; its text is the process id), arguments.json, outcome and log.txt; .env
may hold NAME=VALUE lines for the program's environment. Standard library only.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".launch"
STARTS_WITHOUT_A_STEP = 3


def workdir_of(arguments: list[str]) -> Path:
    """The run's directory; a relative one is in the checkout."""
    name = next(a for a in reversed(arguments) if a.startswith("--workdir=")).split("=", 1)[1]
    return ROOT / Path(name).expanduser()


def last_row(workdir: Path) -> str:
    """The last whole line of metrics.jsonl, or ""."""
    try:
        with open(workdir / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2**20))
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline is still being written
    except FileNotFoundError:
        return ""
    return lines[-1].decode() if lines else ""


def last_step(workdir: Path) -> int | None:
    row = last_row(workdir)
    return json.loads(row)["step"] if row else None


def finished(workdir: Path) -> bool:
    step = last_step(workdir)
    return step is not None and step >= json.loads((workdir / "config.json").read_text())["total_steps"]


def environment() -> dict[str, str]:
    path = ROOT / ".env"
    lines = path.read_text(encoding="utf-8-sig").splitlines() if path.exists() else []
    return dict(os.environ) | dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def note(text: str) -> None:
    print(f"==== {datetime.now(UTC):%F %T} UTC: {text}", flush=True)


def keep_running(arguments: list[str], pause: float) -> str:
    """Runs the program until the run is "finished", "stopped", "interrupted" or "given up", and returns that word."""
    workdir, useless, ended, child = workdir_of(arguments), 0, "", None

    def end(signum, _):
        nonlocal ended
        if child and not ended:  # once: a second signal would end it in the middle of saving
            child.terminate()
        ended = ended or ("interrupted" if signum == signal.SIGTERM else "stopped")

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGUSR1, end)
    while True:
        before = last_step(workdir)
        note(f"start, last step {before}")
        child = subprocess.Popen([sys.executable, "-m", "hir_jax.train", *arguments], cwd=ROOT, env=environment())
        if ended:  # the signal came while there was no child
            child.terminate()
        status = child.wait()
        note(f"end, status {status}")
        useless = useless + 1 if last_step(workdir) == before else 0
        due = time.monotonic() + pause
        while True:  # worker 0 writes the last row, maybe a moment after this worker's program has ended
            if ended:
                return ended
            if status == 0 and finished(workdir):
                return "finished"
            if time.monotonic() >= due:
                break
            time.sleep(min(1.0, pause))
        if useless == STARTS_WITHOUT_A_STEP:
            return "given up"


def holder() -> int | None:
    """The id of the keeper process in this checkout, or None."""
    try:
        with open(STATE / "lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return int((STATE / "lock").read_text())


def start(arguments: list[str], pause: float) -> None:
    if pid := holder():
        if json.loads((STATE / "arguments.json").read_text()) != arguments:
            sys.exit(f"error: another run is under way here (process {pid}): stop it first")
        return print(f"runs already (process {pid})")
    STATE.mkdir(exist_ok=True)
    (STATE / "outcome").unlink(missing_ok=True)
    (STATE / "arguments.json").write_text(json.dumps(arguments))
    command = [sys.executable, __file__, "keep", f"--pause={pause}", "--", *arguments]
    with open(STATE / "lock", "a") as lock, open(STATE / "log.txt", "ab") as log:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The lock belongs to the open file, which the child inherits: it ends with that process.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=[lock.fileno()]
        )
        lock.truncate(0)
        lock.write(str(child.pid))
    print(f"started (process {child.pid})")


def keep(arguments: list[str], pause: float) -> None:
    outcome = keep_running(arguments, pause)
    note(outcome)
    (STATE / "outcome").write_text(outcome)


def status() -> None:
    """Prints one line of JSON: `state` (running, died, or how the run ended) and `metrics`, the last row of metrics.jsonl."""
    ended, given = STATE / "outcome", STATE / "arguments.json"
    if holder():
        state = "running"
    elif ended.exists():
        state = ended.read_text()
    else:
        state = "died" if given.exists() else "nothing was started"
    row = last_row(workdir_of(json.loads(given.read_text()))) if given.exists() else ""
    print(json.dumps({"state": state, "metrics": row}))


def stop() -> None:
    pid = holder()
    if pid:
        os.kill(pid, signal.SIGUSR1)
    print(f"asked to save and end (process {pid})" if pid else "nothing runs here")


def main() -> None:
    own, program = sys.argv[1:], []
    if "--" in own:
        own, program = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("start", "keep", "status", "stop", "finished"))
    parser.add_argument("--pause", type=float, default=30.0, help="seconds between two starts of the program")
    args = parser.parse_args(own)
    if args.command in ("start", "keep"):
        {"start": start, "keep": keep}[args.command](program, args.pause)
    elif args.command == "finished":
        sys.exit(not finished(workdir_of(program)))
    else:
        {"status": status, "stop": stop}[args.command]()


if __name__ == "__main__":
    main()
