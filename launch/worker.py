"""Keeps the training program running on each worker of a TPU node, and reports its state. Called by tpu_vm.py through ssh.

    python launch/worker.py start [--pause=30] -- ARGUMENTS OF hir_jax.train
    python launch/worker.py status|stop
    python launch/worker.py keep                                        (by systemd, unit hir_jax; see setup_worker.sh)
    python launch/worker.py finished -- ARGUMENTS OF hir_jax.train      (status 0: yes; for slurm.sh)

`start` records the run and lets systemd start the keeper, a process that runs `python -m hir_jax.train` and starts it again
until the run is finished. systemd also starts the keeper when the machine boots and when the keeper was killed; the keeper then
continues the recorded run, unless that has ended. The program ends with 0 both when it is finished and when SIGTERM has made it
save, and one worker's SIGTERM ends all of them. So the run's own files decide: a run is finished when the last row of
WORKDIR/metrics.jsonl has the step `total_steps` of WORKDIR/config.json, and given up when three starts in a row added no step.
Several workers must see the same WORKDIR (a bucket, or a shared file system), which their checkpoints need anyway. `stop` ends
the run for now; a SIGTERM to the keeper means that the machine goes down ("interrupted"). The program saves in both cases.

WORKDIR may be gs://BUCKET/NAME. If it is on a file system that was mounted when the run was started, the run only goes on while
that is mounted: it would begin again at step 0 on the disk below.

In the checkout, .launch/ holds ready (the commit that setup has installed), mount.sh (mounts the share), lock (the keeper holds
it; its text is the process id), run.json, outcome and log.txt; .env may hold variables for the program (env_file.py). Standard
library only, except for gs://.
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

import env_file

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".launch"
UNIT = "hir_jax"  # systemd's name of the keeper
STARTS_WITHOUT_A_STEP = 3
ENDED = ("finished", "stopped", "given up")  # outcomes after which only `start` starts the run


def workdir_of(arguments: list[str]):
    """The run's directory; a relative one is in the checkout."""
    name = next(a for a in reversed(arguments) if a.startswith("--workdir=")).split("=", 1)[1]
    if "://" in name:
        # else gcsfs asks for the kind of the bucket, which takes a further permission
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        from etils import epath

        return epath.Path(name)
    return ROOT / Path(name).expanduser()


def mount_point(workdir) -> str:
    """Where the file system is mounted that holds a directory, which need not exist yet; "" of a bucket."""
    if not isinstance(workdir, Path):
        return ""
    path = workdir.resolve()
    while not os.path.ismount(path):
        path = path.parent
    return str(path)


def last_row(workdir) -> str:
    """The last whole line of metrics.jsonl, or ""."""
    try:
        with (workdir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2**20))
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline is still being written
    except FileNotFoundError:
        return ""
    return lines[-1].decode() if lines else ""


def last_step(workdir) -> int | None:
    row = last_row(workdir)
    return json.loads(row)["step"] if row else None


def finished(workdir) -> bool:
    step = last_step(workdir)
    return step is not None and step >= json.loads((workdir / "config.json").read_text())["total_steps"]


def environment() -> dict[str, str]:
    path = ROOT / ".env"
    return dict(os.environ) | (env_file.read(path) if path.exists() else {})


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
        note(f"start, last step {before}, commit {commit() or 'unknown'}")
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
        while not (text := (STATE / "lock").read_text()):
            time.sleep(0.01)  # it is about to be written
        return int(text)


def recorded() -> dict | None:
    """The run that was started last: `arguments`, `pause` in seconds, `mount` (mount_point of its directory)."""
    path = STATE / "run.json"
    return json.loads(path.read_text()) if path.exists() else None


def outcome() -> str:
    path = STATE / "outcome"
    return path.read_text() if path.exists() else ""


def commit() -> str:
    """What setup has installed, or "" if it has not ended well."""
    path = STATE / "ready"
    return path.read_text().strip() if path.exists() else ""


def refuse_another_disk(run: dict | None, workdir) -> None:
    """Ends the program if the run in this directory was on another file system than the directory is now."""
    if run and workdir_of(run["arguments"]) == workdir and run["mount"] != (now := mount_point(workdir)):
        sys.exit(
            f"error: {workdir} was on the file system mounted at {run['mount']}, which is not mounted now: mount it. To begin "
            f"anew on that of {now}, delete {STATE / 'run.json'}"
        )


def start(arguments: list[str], pause: float) -> None:
    if not commit():
        sys.exit("error: this worker is not set up, or not wholly: `setup` first")
    if pid := holder():
        if recorded()["arguments"] != arguments:
            sys.exit(f"error: another run is under way here (process {pid}): stop it first")
        return print(f"runs already (process {pid})")
    environment()  # a line that cannot be read is an error here, not three failed starts
    workdir = workdir_of(arguments)
    if (STATE / "mount.sh").exists():  # of setup
        as_root("bash", str(STATE / "mount.sh"))
    refuse_another_disk(recorded(), workdir)
    run = {"arguments": arguments, "pause": pause, "mount": mount_point(workdir)}
    (STATE / "outcome").unlink(missing_ok=True)
    (STATE / "run.json").write_text(json.dumps(run))
    as_root("systemctl", "restart", UNIT)
    end = time.monotonic() + 60
    while not (pid := holder()) and not outcome():
        if time.monotonic() > end:
            sys.exit(f"error: the run did not start: see `systemctl status {UNIT}` and {STATE / 'log.txt'}")
        time.sleep(0.05)
    print(f"started (process {pid})" if pid else f"started, and {outcome()} already")


def as_root(*command: str) -> None:
    done = subprocess.run(["sudo", "-n", *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")


def keep() -> None:
    run = recorded()
    if not run or outcome() in ENDED:
        return
    with open(STATE / "lock", "a") as lock, open(STATE / "log.txt", "ab") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)  # `holder` of another process may have it for a moment
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
        refuse_another_disk(run, workdir_of(run["arguments"]))
        (STATE / "outcome").unlink(missing_ok=True)
        ended = keep_running(run["arguments"], run["pause"])
        note(ended)
        (STATE / "outcome").write_text(ended)


def status() -> None:
    """Prints one line of JSON: `state` (running, died, or how the run ended), `metrics` (the last row of metrics.jsonl),
    `arguments` and `commit` (installed by setup)."""
    run = recorded()
    state = "running" if holder() else outcome() or ("died" if run else "nothing was started")
    arguments = run["arguments"] if run else []
    row = last_row(workdir_of(arguments)) if run else ""
    print(json.dumps({"state": state, "metrics": row, "arguments": arguments, "commit": commit()}))


def stop() -> None:
    pid = holder()
    if pid:
        os.kill(pid, signal.SIGUSR1)
    elif recorded() and outcome() not in ENDED:
        (STATE / "outcome").write_text("stopped")  # systemd may be about to start it again
    print(f"asked to save and end (process {pid})" if pid else "nothing runs here")


def main() -> None:
    own, program = sys.argv[1:], []
    if "--" in own:
        own, program = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("start", "keep", "status", "stop", "finished"))
    parser.add_argument("--pause", type=float, default=30.0, help="seconds between two starts of the program")
    args = parser.parse_args(own)
    if args.command == "start":
        start(program, args.pause)
    elif args.command == "finished":
        sys.exit(not finished(workdir_of(program)))
    else:
        {"keep": keep, "status": status, "stop": stop}[args.command]()


if __name__ == "__main__":
    main()
