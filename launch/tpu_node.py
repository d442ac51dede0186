"""A Cloud TPU node and its workers, through `gcloud compute tpus`; `tpu_vm.py` uses it. Standard library only.

A node that was requested through the queue belongs to a queued resource of the same name. Each worker has its own gcloud command,
all at the same time, instead of one with `--worker=all`: a failure then names its worker, and no ssh-agent is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

NODE, QUEUED = "tpu-vm", "queued-resources"  # gcloud's names
NAMES = {NODE: "node", QUEUED: "queued resource"}
# States that a node, or a request in the queue, does not leave by itself
LOST = {
    NODE: ("PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "DELETING"),
    QUEUED: ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING"),
}
TRIES = 6  # of a look or a deletion before it counts as failed
CONNECT = 20  # seconds that ssh has for a connection
# Seconds in which a worker must answer: gcloud's ssh tries to connect 10 times and waits 5 s between two tries
ANSWER = 10 * (CONNECT + 5) + 60
SSH_OPTIONS = (f"-oConnectTimeout={CONNECT}", "-oServerAliveInterval=30", "-oServerAliveCountMax=4")

Worker = tuple[int, str]  # index, internal address


class LaunchError(Exception):
    """An error whose message says what to do; the program ends with it and status 1."""


def say(text: str) -> None:
    """Prints to stderr; stdout is for the requested output."""
    print(text, file=sys.stderr, flush=True)


def state_of(kind: str, resource: dict) -> str:
    return resource["state"]["state"] if kind == QUEUED else resource["state"]


def listed(found: dict[str, dict]) -> str:
    return " and ".join(f"{NAMES[k]} {one['name'].split('/')[-1]} ({state_of(k, one)})" for k, one in found.items())


def reason(done: subprocess.CompletedProcess) -> str:
    """The line in which a command names its error, or its last line of output."""
    lines = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
    return next((line for line in reversed(lines) if line.lower().startswith("error")), lines[-1])


RUNNING: set[subprocess.Popen] = set()  # commands under way, each in a session of its own


def end_commands() -> None:
    """Kills the commands under way with all the processes that they have started (gcloud's ssh)."""
    for process in tuple(RUNNING):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Node:
    """Identifies a node, and runs commands about it and on its workers. A dry run prints them and has no answers."""

    name: str
    zone: str
    project: str
    poll: float = 30.0  # seconds between two looks at a state
    dry_run: bool = False
    assumed_workers: int = 1  # in a dry run
    connection: tuple[str, ...] = ()  # flags of gcloud's ssh and scp

    # ---- commands

    def gcloud(self, kind: str, verb: str, *rest: str) -> list[str]:
        # Only the alpha commands can tunnel through IAP (SDK 528)
        track = ["alpha"] if "--tunnel-through-iap" in rest else []
        where = (f"--zone={self.zone}", f"--project={self.project}")
        return ["gcloud", *track, "compute", "tpus", kind, verb, *rest, *where]

    def ssh(self, worker: int, remote: str) -> list[str]:
        """The command that runs `remote` in the worker's shell; gcloud and ssh hand it on unchanged."""
        rest = ("--quiet", *(f"--ssh-flag={one}" for one in SSH_OPTIONS), *self.connection)
        return self.gcloud(NODE, "ssh", self.name, *rest, f"--worker={worker}", f"--command={remote}")

    def scp(self, worker: int, path: str, remote: str) -> list[str]:
        """The command that copies a file to the worker; `remote` is relative to the home directory there."""
        rest = ("--quiet", *(f"--scp-flag={one}" for one in SSH_OPTIONS), *self.connection)
        return self.gcloud(NODE, "scp", path, f"{self.name}:{remote}", *rest, f"--worker={worker}")

    def call(self, command: list[str], timeout: float | None = None) -> subprocess.CompletedProcess:
        """Runs a command and captures its output. Status 127: it cannot run; 124: it took longer than `timeout` seconds. What it
        has started ends with it when it takes too long or this program is interrupted."""
        if self.dry_run:
            print(shlex.join(command), flush=True)
            return subprocess.CompletedProcess(command, 0, "", "")
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        try:
            process = subprocess.Popen(command, start_new_session=True, **pipes)
        except FileNotFoundError:
            return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: not installed, or not on the PATH")
        RUNNING.add(process)
        try:
            out, err = process.communicate(timeout=timeout)
            return subprocess.CompletedProcess(command, process.returncode, out, err)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return subprocess.CompletedProcess(command, 124, "", f"no answer within {timeout:g} s")
        finally:
            RUNNING.discard(process)

    def must(self, command: list[str]) -> str:
        """Runs a command and returns its stdout. LaunchError with its stderr if it fails."""
        done = self.call(command)
        if done.returncode:
            raise LaunchError(f"{shlex.join(command)}\nended with status {done.returncode}:\n{done.stderr.strip()}")
        return done.stdout

    # ---- the node and its request

    def find(self) -> dict[str, dict]:
        """The node and the queued resource of this name, by kind, as Google Cloud describes them."""
        found = {}
        for kind in (QUEUED, NODE):
            for one in json.loads(self.must(self.gcloud(kind, "list", "--format=json")) or "[]"):
                if one["name"].split("/")[-1] == self.name:
                    found[kind] = one
        return found

    def state(self) -> str:
        """The node's state, or "not there"."""
        found = self.find()
        return state_of(NODE, found[NODE]) if NODE in found else "not there"

    def remove(self, found: dict[str, dict]) -> None:
        """Deletes what was found, and tries again until all is gone: some states do not allow it at once."""
        force = {QUEUED: ("--force",), NODE: ()}  # a queued resource with its nodes
        for _ in range(TRIES):
            kinds = [kind for kind in (QUEUED, NODE) if kind in found or self.dry_run]
            said = [reason(self.call(self.gcloud(k, "delete", self.name, *force[k], "--quiet"))) for k in kinds]
            if self.dry_run or not (found := self.find()):
                return
            say(f"still there: {listed(found)} ({'; '.join(said)})")
            time.sleep(self.poll)
        raise LaunchError(f"{listed(found)} could not be deleted and may go on costing money: see the console")

    def wait_for(self, kind: str, good: str) -> None:
        """Returns once the resource is in the state `good`. LaunchError if it is lost, or cannot be looked at."""
        begun, state, failures = time.monotonic(), "", 0
        while True:
            done = self.call(self.gcloud(kind, "describe", self.name, "--format=json"))
            if self.dry_run:
                return
            failures = failures + 1 if done.returncode else 0
            if failures == TRIES:
                raise LaunchError(f"{NAMES[kind]} {self.name}: cannot be looked at: {reason(done)}")
            if not failures:
                resource = json.loads(done.stdout)
                before, state = state, state_of(kind, resource)
                if state != before:
                    say(f"{NAMES[kind]} {self.name}: {state} after {(time.monotonic() - begun) / 60:.0f} min")
                if state == good:
                    return
                if state in LOST[kind]:
                    raise LaunchError(f"{listed({kind: resource})}: {json.dumps(resource['state'])}")
            time.sleep(self.poll)

    # ---- workers

    def workers(self) -> list[Worker]:
        """All workers of the node. LaunchError if it is not READY."""
        text = self.must(self.gcloud(NODE, "describe", self.name, "--format=json"))
        if self.dry_run:
            return [(index, "?") for index in range(self.assumed_workers)]
        node = json.loads(text)
        if node["state"] != "READY":
            raise LaunchError(f"node {self.name} is {node['state']}, not READY; if it is lost: `delete`, then `create`")
        return [(index, end.get("ipAddress", "?")) for index, end in enumerate(node["networkEndpoints"])]

    def ask(self, workers: list[Worker], commands, timeout: float | None = None) -> tuple[dict[int, str], list[str]]:
        """Runs the list `commands(index)` up to the first that fails, for all workers at the same time. Returns (stdout of the
        last command by worker, a line for each worker on which one failed)."""

        def one(worker: Worker) -> subprocess.CompletedProcess:
            for command in commands(worker[0]):
                done = self.call(command, timeout)
                if done.returncode:
                    break
            return done

        with ThreadPoolExecutor(1 if self.dry_run else max(1, len(workers))) as pool:
            try:
                done = dict(zip(workers, pool.map(one, workers)))
            except BaseException:  # an interrupt: the pool waits for its threads, and these for their commands
                end_commands()
                raise
        failed = [f"worker {i} ({address}): {reason(d)}" for (i, address), d in done.items() if d.returncode]
        return {i: d.stdout.strip() for (i, _), d in done.items() if not d.returncode and not self.dry_run}, failed

    def tell(self, workers: list[Worker], commands, what: str, error: type[LaunchError] = LaunchError) -> None:
        """Runs commands as `ask` does and prints the answers. Raises `error` if one fails."""
        said, failed = self.ask(workers, commands)
        for index, text in said.items():
            say(f"worker {index}: {text}")
        if failed:
            raise error(f"{what} failed on {len(failed)} of {len(workers)} workers:\n" + "\n".join(failed))
