"""A run on a Cloud TPU node: creates the node, sets it up, starts the run, and looks after it; `tpu_vm.py` uses it. Standard
library only."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path

from tpu_node import ANSWER, LOST, NODE, QUEUED, LaunchError, Node, Worker, listed, say

ROOT = Path(__file__).resolve().parents[1]
# Runtime version by type (cloud.google.com/tpu/docs/runtimes)
VERSIONS = {
    "v6e": "v2-alpha-tpuv6e",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v4": "tpu-ubuntu2204-base",
}
WORKER = "hir_jax/.venv/bin/python hir_jax/launch/worker.py"  # relative to the home directory on a worker
NOT_SET_UP = {"state": "not set up", "metrics": "", "arguments": [], "commit": ""}
ENDED = ("finished", "stopped", "given up")  # states of a worker's run (worker.py) after which `--keep` starts nothing
SETUPS = 3  # that may fail in a row before `--keep` ends


class SetupError(LaunchError):
    """`setup` failed on some workers; a second time it may succeed."""


class HopelessError(LaunchError):
    """An error that `--keep` cannot put right by looking again."""


def kind_of(args) -> tuple[str, str]:
    """(type, runtime version) of the node to be made. LaunchError if either is not known."""
    version = args.version or VERSIONS.get((args.type or "").split("-")[0])
    if not args.type or not version:
        known = ", ".join(f"{name}-N" for name in VERSIONS)
        raise LaunchError(f"--type={args.type or ''}: give a type of {known}, or of another family with its --version")
    return args.type, version


def create(node: Node, args) -> None:
    """Makes a node and waits until it is READY. If that fails, deletes what was made and raises LaunchError."""
    accelerator, version = kind_of(args)
    found = node.find()
    if found:
        raise LaunchError(f"{listed(found)} in {node.zone}: is there already; delete it, or take another --name")
    rest = [node.name, f"--accelerator-type={accelerator}"]
    for name in ("network", "subnetwork", "service_account"):
        if value := getattr(args, name):
            rest.append(f"--{name.replace('_', '-')}={value}")
    chosen = {"--spot": args.spot, "--reserved": args.reserved, "--internal-ips": args.internal_ip}
    rest += [flag for flag, given in chosen.items() if given] + args.gcloud_create
    try:
        if args.queued:
            rest += [f"--node-id={node.name}", f"--runtime-version={version}", f"--valid-until-duration={args.wait}"]
            node.must(node.gcloud(QUEUED, "create", *rest))
            node.wait_for(QUEUED, "ACTIVE")
        else:
            node.must(node.gcloud(NODE, "create", *rest, f"--version={version}"))
        node.wait_for(NODE, "READY")
    except BaseException as error:  # an interrupt from the keyboard too
        say(f"{node.name} was not created ({type(error).__name__}): looking for what was left behind")
        try:
            left = node.find()
            if left:
                node.remove(left)
        except LaunchError as second:
            raise LaunchError(f"{node.name} was not created, and what is left was not deleted: {second}") from error
        say(f"deleted {listed(left)}" if left else "nothing was left behind")
        raise


def git(*arguments: str) -> list[str]:
    return ["git", "-C", str(ROOT), *arguments]


def revision(name: str, node: Node) -> str:
    return node.must(git("rev-parse", name)).strip() or name  # a dry run has no answer


def pack(node: Node, commit: str) -> tuple[str, str]:
    """(commit, path of its archive); the last commit if none is given. HopelessError if git cannot do it."""
    archive = str(ROOT / "runs" / f"{node.name}.tar.gz")
    without = (".", ":(exclude)experiments/results", ":(exclude)docs")
    try:
        if not node.dry_run and not commit and node.must(git("status", "--porcelain")):
            say("note: the last commit is copied, without the changes since")
        commit = commit or revision("HEAD", node)
        node.must(["mkdir", "-p", str(ROOT / "runs")])
        node.must(git("archive", "--format=tar.gz", f"--output={archive}", commit, "--", *without))
    except LaunchError as error:
        raise HopelessError(str(error)) from error
    return commit, archive


def setup(node: Node, args, workers: list[Worker] | None = None) -> None:
    """Installs `args.commit` of this checkout (if none, the last) and its environment on the workers (None: on all). SetupError
    names those on which that failed."""
    if args.nfs and not re.fullmatch(r"[\w.:\[\]-]+:/[\w./-]*", args.nfs):
        raise HopelessError(f"--nfs={args.nfs}: give HOST:/SHARE")
    commit, archive = pack(node, args.commit)
    # The code under a run must not change; a run holds the lock (worker.py). Keys pass through .launch: only the user reads it.
    refuse = "{ echo 'error: a run is under way here: stop it first' >&2; exit 1; }"
    free = f"mkdir -p hir_jax/.launch && chmod 700 hir_jax/.launch && {{ flock -n hir_jax/.launch/lock true || {refuse}; }}"
    install = shlex.join(["bash", "hir_jax/launch/setup_worker.sh", commit, args.python, *filter(None, [args.nfs])])
    unpack = f"{free} && rm -f hir_jax/.launch/ready && tar -xzf hir_jax.tar.gz -C hir_jax && {install}"
    workers = node.workers() if workers is None else workers

    def copy_and_install(index: int) -> list[list[str]]:
        return [node.scp(index, archive, "hir_jax.tar.gz"), node.ssh(index, unpack)]

    # The first connection makes the ssh key and sends it to the node. It comes alone: several at once would each make one.
    node.tell(workers[:1], lambda i: [node.ssh(i, "echo connected")], "ssh", SetupError)
    node.tell(workers, copy_and_install, "setup", SetupError)


def start(node: Node, workers: list[Worker], args) -> None:
    """Sends the file of --env and starts the run on these workers, except where it is under way already."""
    command = f"{WORKER} start -- {shlex.join(args.program)}"
    if not args.env:
        return node.tell(workers, lambda i: [node.ssh(i, command)], "start")
    passing = "hir_jax/.launch/env"
    put = f"install -m 600 {passing} hir_jax/.env && rm {passing}"
    node.tell(workers, lambda i: [node.scp(i, args.env, passing), node.ssh(i, f"{put} && {command}")], "start")


def reports(node: Node, workers: list[Worker]) -> tuple[dict[int, dict], list[str]]:
    """(the output of `worker.py status` by worker, a line for each worker that does not answer)."""
    missing = shlex.quote(json.dumps(NOT_SET_UP))
    command = f"if [ -f hir_jax/.launch/ready ]; then {WORKER} status; else echo {missing}; fi"
    said, failed = node.ask(workers, lambda i: [node.ssh(i, command)], ANSWER)
    return {index: json.loads(text) for index, text in said.items()}, failed


# ---- run --keep


def look_after(node: Node, args, begun: bool) -> str | None:
    """Looks once: replaces a lost node, sets up the workers that are not set up, starts the run where it is not under way. Unless
    the run has `begun`, it is also started where it was stopped or given up before. Returns how it has ended on all workers, ""
    if it has not, and None while the node cannot be used."""
    state, made = node.state(), False
    if state in (*LOST[NODE], "not there"):
        say(f"node {node.name} is {state}")
        if found := node.find():
            node.remove(found)
        create(node, args)
        made = True
    elif state != "READY":
        return None
    workers = node.workers()
    states, failed = reports(node, workers) if not made else ({w[0]: NOT_SET_UP for w in workers}, [])
    for line in failed:
        say(line)
    other = [f"{i}" for i, one in states.items() if one["state"] == "running" and one["arguments"] != args.program]
    if other:
        raise HopelessError(f"another run is under way on worker {', '.join(other)}: stop it first")
    if begun and not failed and all(one["state"] in ENDED for one in states.values()):
        return "; ".join(f"worker {i}: {one['state']}" for i, one in states.items())
    # A new worker gets the code that the others have, or the lost node had
    args.commit = next(filter(None, (one["commit"] for one in states.values())), args.commit)
    without = [w for w in workers if w[0] in states and states[w[0]]["state"] == NOT_SET_UP["state"]]
    if without:
        setup(node, args, without)
    leave = ("running", *ENDED) if begun else ("running",)
    again = [w for w in workers if w[0] in states and states[w[0]]["state"] not in leave]
    if again:
        start(node, again, args)
    return ""


def still_ready(node: Node) -> bool:
    try:
        return node.state() == "READY"
    except LaunchError:
        return False


def keep(node: Node, args) -> str:
    """Looks after the run until it has ended on all workers, and returns how. LaunchError if nothing more can be done."""
    kind_of(args)
    args.commit = revision("HEAD", node)
    begun, failures = False, 0
    while True:
        try:
            end = look_after(node, args, begun)
            if end:
                return end
            begun, failures = begun or end is not None, 0
        except HopelessError:
            raise
        except SetupError as error:
            failures = failures + 1 if still_ready(node) else 0
            if failures == SETUPS:
                raise LaunchError(f"{error}\nsetup failed {SETUPS} times in a row, and {costs(node)}") from error
            say(str(error))
        except LaunchError as error:  # no capacity, no network: try again at the next look
            say(str(error))
        time.sleep(node.poll)


def costs(node: Node) -> str:
    return f"node {node.name} is there and costs money until you `delete` it"
