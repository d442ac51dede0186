#!/usr/bin/env python3
"""Makes a Cloud TPU node and trains on it, from your own machine, through `gcloud compute tpus` (see docs/launch.md).

    launch/tpu_vm.py create --type=v5p-16 [--version=V] [--spot] [--queued [--wait=6h]] [--service-account=A]
    launch/tpu_vm.py setup  [--python=3.12] [--nfs=HOST:/SHARE]
    launch/tpu_vm.py run    [--keep] [--env=FILE] -- --config=configs/X.py --workdir=gs://BUCKET/X [--config.key=value ...]
    launch/tpu_vm.py status|stop
    launch/tpu_vm.py logs   [--lines=20] [--follow [--worker=0]]
    launch/tpu_vm.py fetch  --workdir=gs://BUCKET/X [--output=runs/X] [--checkpoints]
    launch/tpu_vm.py delete [--yes]

each with --name=N --zone=Z --project=P, and with --internal-ip or --tunnel-through-iap where the node has no external addresses.
`run --keep` stays until the run has ended, and replaces a lost node by a new one (with the flags of create and setup). --dry_run
only prints the commands, as a shell script; it cannot know how many workers there are: --workers=W. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys

import env_file
from tpu_node import ANSWER, NODE, QUEUED, LaunchError, Node, listed, say
from tpu_run import WORKER, costs, create, keep, reports, setup, start


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


def run(node: Node, args) -> None:
    workdir = next((a.split("=", 1)[1] for a in reversed(args.program) if a.startswith("--workdir=")), "")
    if not workdir:
        raise LaunchError("give the program's arguments after `--`, --workdir=DIR among them")
    if args.env:
        args.env = os.path.expanduser(args.env)
        env_file.read(args.env)
    if not args.keep:
        return start(node, node.workers(), args)
    if not workdir.startswith("gs://") and not (args.nfs and workdir.startswith("runs/")):
        raise LaunchError(
            f"--workdir={workdir}: --keep makes a lost node anew, which has only a bucket or the share: give "
            "--workdir=gs://BUCKET/NAME, or --workdir=runs/NAME with --nfs=HOST:/SHARE"
        )
    if node.dry_run:  # what happens where there is no node
        create(node, args)
        setup(node, args)
        return start(node, node.workers(), args)
    end = keep(node, args)
    say(f"{end}; {costs(node)}")
    if "given up" in end:
        raise LaunchError("given up: `logs` says why")


def stop(node: Node, args) -> None:
    node.tell(node.workers(), lambda i: [node.ssh(i, f"{WORKER} stop")], "stop")


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
    """Copies the run's directory from the bucket, or from worker 0: its files may grow meanwhile (tar's status 1)."""
    if args.workdir.startswith("gs://"):
        output = args.output or f"runs/{args.workdir.rstrip('/').split('/')[-1]}"
        node.must(["mkdir", "-p", output])
        without = [] if args.checkpoints else ["--exclude=^checkpoints/.*"]
        copy = ["gcloud", "storage", "rsync", args.workdir, output, *without, "--recursive"]
        node.must([*copy, f"--project={node.project}"])
        return None if node.dry_run else say(f"{args.workdir} is in {output}")
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
MORE = {"action": "append", "default": []}
# flag: (the commands that have it, "" for all; argparse's arguments)
FLAGS = {
    "--name": ("", {"required": True, "help": "of the node, and of its queued resource"}),
    "--zone": ("", {"required": True}),
    "--project": ("", {"required": True}),
    "--dry_run": ("", ON | {"help": "print the commands as a shell script"}),
    "--workers": ("", {"type": int, "default": 1, "help": "of a dry run"}),
    "--internal-ip": ("", ON | {"help": "the node has no external addresses; from a machine in its network"}),
    "--tunnel-through-iap": ("", ON | {"help": "reach it through Identity-Aware Proxy (gcloud alpha)"}),
    "--gcloud_ssh": ("", MORE | {"help": "other flags of gcloud's ssh and scp, as =--plain"}),
    "--poll": ("", {"type": float, "default": 30.0, "help": "seconds between two looks at a state"}),
    "--type": ("create run", {"help": "accelerator type: v5litepod-16, v5p-16, v6e-16, ..."}),
    "--version": ("create run", {"help": "runtime version, if not the usual one of the type"}),
    "--spot": ("create run", ON | {"help": "cheaper; may be taken away at any time"}),
    "--queued": ("create run", ON | {"help": "wait in the queue until there is room"}),
    "--wait": ("create run", {"default": "6h", "help": "how long a queued request stands: 90m, 6h, 2d"}),
    "--reserved": ("create run", ON | {"help": "from the project's reservation"}),
    "--network": ("create run", {"help": "if not `default`"}),
    "--subnetwork": ("create run", {}),
    "--service-account": ("create run", {"help": "as which the workers act; it needs access to the bucket"}),
    "--gcloud_create": ("create run", MORE | {"help": "other flags of gcloud's create, as =--labels=team=x"}),
    "--python": ("setup run", {"default": "3.12", "help": "3.11 or 3.12; requirements.txt has a jax for each"}),
    "--nfs": ("setup run", {"help": "HOST:/SHARE, mounted at hir_jax/runs on every worker"}),
    "--env": ("run", {"help": "file of lines NAME=VALUE: the program's environment, copied to every worker"}),
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
    args = parser.parse_args(argv, argparse.Namespace(program=program, commit=""))
    if program and args.act is not run:
        parser.error(f"{args.act.__name__} takes nothing after `--`")
    return args


def main() -> None:
    args = parse(sys.argv[1:])
    route = ["--tunnel-through-iap"] if args.tunnel_through_iap else ["--internal-ip"] if args.internal_ip else []
    connection = (*route, *args.gcloud_ssh)
    node = Node(args.name, args.zone, args.project, args.poll, args.dry_run, args.workers, connection)
    if node.dry_run:
        print("#!/usr/bin/env bash\n# shellcheck disable=SC2016  # what is quoted is meant for the far end")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: a node half made is deleted, no ssh stays
    try:
        args.act(node, args)
    except (LaunchError, env_file.EnvError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
