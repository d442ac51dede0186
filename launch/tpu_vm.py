#!/usr/bin/env python3
"""Makes a Cloud TPU node and trains on it, from your own machine, through `gcloud compute tpus` (see README.md beside this file).

    launch/tpu_vm.py create --type=v5p-16 [--version=V] [--spot] [--queued [--wait=6h]]
    launch/tpu_vm.py setup  [--python=3.11] [--nfs=HOST:/SHARE]
    launch/tpu_vm.py run    [--keep] -- --config=configs/X.py --workdir=runs/X [--config.key=value ...]
    launch/tpu_vm.py status|stop
    launch/tpu_vm.py logs   [--lines=20] [--follow [--worker=0]]
    launch/tpu_vm.py fetch  --workdir=runs/X [--output=runs/X] [--checkpoints]
    launch/tpu_vm.py delete [--yes]

each with --name=N --zone=Z --project=P. `run --keep` stays until the run has ended, and replaces a lost node by a new one (with
the flags of create and setup). --dry_run only prints the commands, as a shell script; it cannot know how many workers there are:
--workers=W. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tpu_node import LOST, NODE, QUEUED, LaunchError, Node, Worker, listed, say, state_of

ROOT = Path(__file__).resolve().parents[1]
# Runtime version by type (cloud.google.com/tpu/docs/runtimes)
VERSIONS = {
    "v6e": "v2-alpha-tpuv6e",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v4": "tpu-ubuntu2204-base",
}
WORKER = "hir_jax/.venv/bin/python hir_jax/launch/worker.py"  # relative to the home directory on a worker
ENDED = ("finished", "stopped", "given up")  # states of a worker's run (worker.py) after which `--keep` starts nothing
ANSWER = 120  # seconds in which a worker must answer


def create(node: Node, args) -> None:
    """Makes a node and waits until it is READY. If that fails, deletes what was made and raises LaunchError."""
    version = args.version or VERSIONS.get((args.type or "").split("-")[0])
    if not args.type or not version:
        known = ", ".join(f"{name}-N" for name in VERSIONS)
        raise LaunchError(f"--type={args.type or ''}: give a type of {known}, or of another family with its --version")
    found = node.find()
    if found:
        raise LaunchError(f"{listed(found)} in {node.zone}: is there already; delete it, or take another --name")
    rest = [node.name, f"--accelerator-type={args.type}", *(["--spot"] if args.spot else [])]
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


def delete(node: Node, args) -> None:
    found = node.find()
    if not node.dry_run:
        if not found:
            return say(f"nothing with the name {node.name} in {node.zone} of {node.project}")
        if not args.yes:
            print(f"Delete {listed(found)} and its disks? [y/N] ", end="", flush=True)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                raise LaunchError("not deleted (--yes deletes without asking)")
    node.remove(found)
    say(f"deleted: {node.name}")


def setup(node: Node, args) -> None:
    """Installs the last commit of this checkout and its environment on every worker."""
    git = ["git", "-C", str(ROOT)]
    if not node.dry_run and node.must([*git, "status", "--porcelain"]):
        say("note: the last commit is copied, without the changes since")
    archive = str(ROOT / "runs" / f"{node.name}.tar.gz")
    node.must(["mkdir", "-p", str(ROOT / "runs")])
    without = (".", ":(exclude)experiments/results", ":(exclude)docs")
    node.must([*git, "archive", "--format=tar.gz", f"--output={archive}", "HEAD", "--", *without])
    install = shlex.join(["bash", "hir_jax/launch/setup_worker.sh", args.python, *([args.nfs] if args.nfs else [])])
    # The code under a run must not change; a run holds the lock (worker.py).
    refuse = "{ echo 'error: a run is under way here: stop it first' >&2; exit 1; }"
    free = f"mkdir -p hir_jax/.launch && {{ flock -n hir_jax/.launch/lock true || {refuse}; }}"
    unpack = f"{free} && tar -xzf hir_jax.tar.gz -C hir_jax && {install}"
    scp = node.gcloud(NODE, "scp", archive, f"{node.name}:hir_jax.tar.gz", "--quiet")
    workers = node.workers()
    # The first connection makes the ssh key and sends it to the node. It comes alone: several at once would each make one.
    node.tell(workers[:1], lambda i: [node.ssh(i, "echo connected")], "ssh")
    node.tell(workers, lambda i: [[*scp, f"--worker={i}"], node.ssh(i, unpack)], "setup")


def run(node: Node, args) -> None:
    if not any(a.startswith("--workdir=") for a in args.program):
        raise LaunchError("give the program's arguments after `--`, --workdir=DIR among them")
    if any("=gs://" in a for a in args.program):
        raise LaunchError("the program reads and writes mounted file systems, not gs:// (see launch/README.md)")
    if not args.keep:
        return start(node, node.workers(), args.program)
    if node.dry_run:
        raise LaunchError("--keep does what it finds necessary: try create, setup and run one by one with --dry_run")
    while not (end := kept(node, args)):
        time.sleep(node.poll)
    say(end)
    if "given up" in end:
        raise LaunchError("given up: `logs` says why")


def start(node: Node, workers: list[Worker], program: list[str]) -> None:
    """Starts the run on these workers, except where it is under way already."""
    node.tell(workers, lambda i: [node.ssh(i, f"{WORKER} start -- {shlex.join(program)}")], "start")


def stop(node: Node, args) -> None:
    node.tell(node.workers(), lambda i: [node.ssh(i, f"{WORKER} stop")], "stop")


def reports(node: Node, workers: list[Worker]) -> tuple[dict[int, dict], list[str]]:
    """(the output of `worker.py status` by worker, a line for each worker that does not answer)."""
    said, failed = node.ask(workers, lambda i: [node.ssh(i, f"{WORKER} status")], ANSWER)
    return {index: json.loads(text) for index, text in said.items()}, failed


def kept(node: Node, args) -> str:
    """Looks after the run once: replaces a lost node and starts the run there; starts it on a worker that was rebooted. Returns
    how the run has ended on all workers, or ""."""
    try:
        found = node.find()
        state = state_of(NODE, found[NODE]) if NODE in found else "not there"
        if state in (*LOST[NODE], "not there"):
            say(f"node {node.name} is {state}")
            if found:
                node.remove(found)
            create(node, args)
            setup(node, args)
            start(node, node.workers(), args.program)
        elif state == "READY":
            workers = node.workers()
            states, failed = reports(node, workers)
            for line in failed:
                say(line)
            if not failed and all(one["state"] in ENDED for one in states.values()):
                return "; ".join(f"worker {i}: {one['state']}" for i, one in states.items())
            again = [w for w in workers if w[0] in states and states[w[0]]["state"] not in (*ENDED, "running")]
            if again:
                start(node, again, args.program)
    except LaunchError as error:  # no capacity, no network: try again at the next look
        say(str(error))
    return ""


def status(node: Node, args) -> None:
    """Prints the states of request, node and each worker's run, and the last row of its metrics."""
    found = node.find()
    if not found and not node.dry_run:
        raise LaunchError(f"nothing with the name {node.name} in {node.zone} of {node.project}")
    for kind, resource in found.items():
        print(f"{listed({kind: resource})} {resource.get('health', '')}".rstrip())
    if QUEUED in found and NODE not in found:
        return  # the request waits
    workers = node.workers()
    states, failed = reports(node, workers)
    rows = dict.fromkeys(one["metrics"] for one in states.values())  # workers that share the directory see the same row
    for index, address in workers:
        if index in states:
            print(f"worker {index} ({address}): {states[index]['state']}")
    for row in filter(None, rows):
        print(row)
    if failed:
        raise LaunchError(f"{len(failed)} of {len(workers)} workers do not answer:\n" + "\n".join(failed))


def logs(node: Node, args) -> None:
    tail = f"tail -n {args.lines} hir_jax/.launch/log.txt"
    if args.follow:
        command = node.ssh(args.worker, f"{tail} -F")
        print(shlex.join(command)) if node.dry_run else subprocess.run(command)
        return
    said, failed = node.ask(node.workers(), lambda i: [node.ssh(i, tail)], ANSWER)
    for index, text in said.items():
        for line in text.splitlines():
            print(f"[{index}] {line}")
    if failed:
        raise LaunchError("\n".join(failed))


def fetch(node: Node, args) -> None:
    """Copies the run's directory from worker 0. Its files may grow meanwhile, which tar reports with status 1."""
    without = "" if args.checkpoints else " --exclude=./checkpoints"
    there = shlex.quote(args.workdir)
    if args.workdir.startswith("~/"):  # the home directory on the worker, as for the program
        there = "~/" + shlex.quote(args.workdir[2:])
    pack = f"cd hir_jax && {{ tar -C {there} -cz{without} . || [ $? -eq 1 ]; }}"
    output = os.path.expanduser(args.output or args.workdir)
    node.must(["mkdir", "-p", output])
    far, near = node.ssh(0, pack), ["tar", "-xz", "-C", output]
    if node.dry_run:
        return print(f"{shlex.join(far)} | {shlex.join(near)}")
    with subprocess.Popen(far, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as source:
        unpacked = subprocess.run(near, stdin=source.stdout).returncode
    if source.returncode or unpacked:
        raise LaunchError(f"fetching {args.workdir} from worker 0 failed: what is in {output} is not whole")
    say(f"{args.workdir} of {node.name} is in {output}")


COMMANDS = (create, setup, run, status, stop, logs, fetch, delete)
ON = {"action": "store_true"}
# flag: (the commands that have it, "" for all; argparse's arguments)
FLAGS = {
    "--name": ("", {"required": True, "help": "of the node, and of its queued resource"}),
    "--zone": ("", {"required": True}),
    "--project": ("", {"required": True}),
    "--dry_run": ("", ON | {"help": "print the commands as a shell script"}),
    "--workers": ("", {"type": int, "default": 1, "help": "of a dry run"}),
    "--poll": ("", {"type": float, "default": 30.0, "help": "seconds between two looks at a state"}),
    "--type": ("create run", {"help": "accelerator type: v5litepod-16, v5p-16, v6e-16, ..."}),
    "--version": ("create run", {"help": "runtime version, if not the usual one of the type"}),
    "--spot": ("create run", ON | {"help": "cheaper; may be taken away at any time"}),
    "--queued": ("create run", ON | {"help": "wait in the queue until there is room"}),
    "--wait": ("create run", {"default": "6h", "help": "how long a queued request stands: 90m, 6h, 2d"}),
    "--python": ("setup run", {"default": "3.11", "help": "3.11 or 3.12; requirements.txt has a jax for each"}),
    "--nfs": ("setup run", {"help": "HOST:/SHARE, mounted at hir_jax/runs on every worker"}),
    "--keep": ("run", ON | {"help": "stay until the run has ended, and make a lost node anew"}),
    "--lines": ("logs", {"type": int, "default": 20}),
    "--follow": ("logs", ON | {"help": "go on, for one worker"}),
    "--worker": ("logs", {"type": int, "default": 0, "help": "the one to follow"}),
    "--workdir": ("fetch", {"required": True, "help": "as it was given to the program"}),
    "--output": ("fetch", {"help": "directory on this machine; the same name if not given"}),
    "--checkpoints": ("fetch", ON | {"help": "those too"}),
    "--yes": ("delete", ON | {"help": "without asking"}),
}


def parse(argv: list[str]) -> argparse.Namespace:
    program = []
    if "--" in argv:
        argv, program = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for act in COMMANDS:
        command = commands.add_parser(act.__name__, allow_abbrev=False)
        command.set_defaults(act=act)
        for flag, (where, settings) in FLAGS.items():
            if not where or act.__name__ in where.split():
                command.add_argument(flag, **settings)
    args = parser.parse_args(argv, argparse.Namespace(program=program))
    if program and args.act is not run:
        parser.error(f"{args.act.__name__} takes nothing after `--`")
    return args


def main() -> None:
    args = parse(sys.argv[1:])
    node = Node(args.name, args.zone, args.project, args.poll, args.dry_run, args.workers)
    if node.dry_run:
        print("#!/usr/bin/env bash\n# shellcheck disable=SC2016  # what is quoted is meant for the far end")
    try:
        args.act(node, args)
    except (LaunchError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
