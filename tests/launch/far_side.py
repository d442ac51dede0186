"""Programs to put on the PATH in place of gcloud, SLURM's, sudo and systemctl: they record their arguments, fail on demand, and
act for the cloud, the cluster and a worker's system as far as tests need it. FAKE names their directory: calls.jsonl, fail.json
(how calls fail), nodes.json, worker-I (its home, with the unit that it has installed), bucket, share (what --nfs mounts)."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Stands for hir_jax.train: says what it was given, and takes one step at a start (--all: all that are left of two; --wait: none
# after step 0 until there is a file `go`). The rows stand for its checkpoint.
PROGRAM = """
import json, os, sys, time
from pathlib import Path
from etils import epath
workdir = epath.Path(next(a for a in reversed(sys.argv) if a.startswith("--workdir=")).split("=", 1)[1])
workdir.mkdir(parents=True, exist_ok=True)
(workdir / "argv.json").write_text(json.dumps(sys.argv[1:]))
rows = workdir / "metrics.jsonl"
step = len(rows.read_text().splitlines()) if rows.exists() else 0
(workdir / "config.json").write_text(json.dumps({"total_steps": 2}))
print("step", step, os.environ.get("SECRET"), flush=True)
if "--sleep" in sys.argv:
    time.sleep(60)
if "--fail" in sys.argv:
    sys.exit("error: no such key")
for step in range(step, 3 if "--all" in sys.argv else step + 1):
    while "--wait" in sys.argv and step and not (workdir / "go").exists():
        time.sleep(0.05)
    with rows.open("a") as file:
        file.write(json.dumps({"step": step, "ila": 0.5}) + "\\n")
"""

# Stands for epath with access to Google Cloud Storage.
EPATH = """
import os, pathlib
def Path(name):
    return pathlib.Path(os.environ["FAKE"] + "/bucket/" + name[5:] if name.startswith("gs://") else name)
"""

GCLOUD = '''#!{python} -SE
import glob, json, os, shutil, signal, sys
fake = os.environ["FAKE"] + "/"
argv = sys.argv[1:]
with open(fake + "calls.jsonl", "a") as calls:
    calls.write(json.dumps(["gcloud", *argv]) + "\\n")
argv = argv[1:] if argv[0] == "alpha" else argv
flags = dict(a[2:].split("=", 1) for a in argv if a.startswith("--") and "=" in a)
kind, verb, *rest = argv[2:]
text = " ".join([kind, verb, *rest])
nodes = json.load(open(fake + "nodes.json"))
queued = kind == "queued-resources"

def keep():
    with open(fake + "nodes.json", "w") as file:
        json.dump(nodes, file)

def shown(states):
    """Answers describe and list with the first of the states still to come."""
    state = states[0]
    return {{
        "name": "projects/p/locations/z/" + ("queuedResources/" if queued else "nodes/") + rest[0],
        "state": {{"state": state}} if queued else state,
        "networkEndpoints": [{{"ipAddress": f"10.0.0.{{2 + i}}"}} for i in range(int(os.environ["WORKERS"]))],
    }}

def wipe():
    """A new node has new disks, and no processes."""
    for home in glob.glob(fake + "worker-*"):
        if os.path.exists(home + "/pid"):
            try:
                os.killpg(int(open(home + "/pid").read()), signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(home)

failure = None
for pattern, (status, message) in json.load(open(fake + "fail.json")).items():
    if all(word in text for word in pattern.split()):
        failure = status, message
if verb == "create":  # a failed one leaves something half made
    wipe()
    states = os.environ.get("STATES", "ACTIVE").split(",") if queued else ["READY"]
    nodes[kind] = {{rest[0]: states if not failure else ["FAILED"]}}
    if queued and not failure and "ACTIVE" in states:
        nodes["tpu-vm"] = {{rest[0]: ["READY"]}}
    keep()
if failure:
    print(failure[1], file=sys.stderr)
    sys.exit(failure[0])
if verb == "list":
    found = []
    for name, states in nodes.get(kind, {{}}).items():
        rest = [name]
        found.append(shown(states))
    print(json.dumps(found))
elif verb == "describe":
    states = nodes.get(kind, {{}}).get(rest[0])
    if not states:
        sys.exit("NOT_FOUND")
    print(json.dumps(shown(states)))
    if len(states) > 1:
        del states[0]
        keep()
elif verb == "delete":
    gone = nodes.pop(kind, None)
    if queued and "--force" in rest:
        nodes.pop("tpu-vm", None)
    keep()
    if not gone:
        sys.exit("NOT_FOUND")
elif verb in ("ssh", "scp"):
    home = fake + "worker-" + flags["worker"]
    os.makedirs(home, exist_ok=True)
    if verb == "scp":
        os.execvp("cp", ["cp", rest[0], home + "/" + rest[1].split(":", 1)[1]])
    # as gcloud and ssh do: cut at single spaces, put together again, given to the login shell
    command = " ".join(flags["command"].split(" "))
    os.chdir(home)
    os.execvpe("bash", ["bash", "-c", command], os.environ | {{"HOME": home}})
'''

# Only records its arguments; what else it does, a shell's lines, comes behind.
RECORDER = """#!{python} -SE
import json, os, sys
with open(os.environ["FAKE"] + "/calls.jsonl", "a") as calls:
    calls.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
os.execvp("bash", ["bash", "-c", {lines!r}, *sys.argv])
"""


# What a worker's `sudo` and `mount -t nfs -o OPTIONS SHARE DIRECTORY` do: a share is mounted as a link to it.
SUDO = """
[ "$1" != -n ] || shift
case "$1" in
    systemctl | bash) exec "$@" ;;
    cp) cp "$2" ~/unit ;;
esac
"""
MOUNT = """
[ -e "$FAKE/share" ] || { echo "mount.nfs: Connection timed out" >&2; exit 32; }
rmdir "$6" && ln -s "$(readlink -f "$FAKE/share")" "$6"
"""

# Runs the one unit that there is: systemctl VERB [--quiet] [hir_jax].
SYSTEMCTL = """
unit() { sed -n "s/^$1=+*//p" ~/unit; }
case "$1" in
    enable) touch ~/enabled ;;
    start | restart)
        [ -f ~/unit ] || { echo "Failed to $1 hir_jax.service: Unit hir_jax.service not found." >&2; exit 5; }
        [ ! -f ~/pid ] || kill -9 -- "-$(cat ~/pid)" 2> /dev/null
        cd "$(unit WorkingDirectory)" || exit 1
        eval "$(unit ExecStartPre)" || { echo "Job for hir_jax.service failed" >&2; exit 1; }
        set -m
        eval "$(unit ExecStart)" > ~/journal 2>&1 < /dev/null &
        echo $! > ~/pid ;;
esac
"""


WHERE = ("--name=hir", "--zone=us-east5-a", "--project=my-project", "--poll=0.05")


def tpu_vm(far, command, *rest, answer="", states=None):
    environment = far.environment | ({"STATES": states} if states else {})
    command = [sys.executable, ROOT / "launch" / "tpu_vm.py", command, *WHERE, *rest]
    return subprocess.run(command, env=environment, input=answer, capture_output=True, text=True, timeout=120)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def run_states(far):
    return re.findall(r"^worker \d \(10\.0\.0\.\d\): (.*)$", tpu_vm(far, "status").stdout, re.M)


class FarSide:
    """The directory of the fake programs, and their recorded calls."""

    def __init__(self, directory: Path, workers: int = 2):
        self.directory = directory
        (directory / "bin").mkdir(parents=True)
        self.put("gcloud", GCLOUD)
        self.record("sudo", SUDO)
        self.record("systemctl", SYSTEMCTL)
        self.record("mount", MOUNT)
        self.record("chown")
        self.record("mountpoint", '[ -L "$2" ]')
        (directory / "etils").mkdir()
        (directory / "etils" / "__init__.py").touch()
        (directory / "etils" / "epath.py").write_text(EPATH)
        self.environment = os.environ | {
            "FAKE": str(directory),
            "WORKERS": str(workers),
            "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(directory),
        }
        self.nodes()
        self.fails()

    def put(self, name: str, text: str, **more) -> None:
        path = self.directory / "bin" / name
        path.write_text(text.format(python=sys.executable, name=name, **more))
        path.chmod(0o755)

    def record(self, name: str, lines: str = "true") -> None:
        """Makes a program of that name which records its arguments, then runs lines of shell."""
        self.put(name, RECORDER, lines=lines)

    def nodes(self, **states: list[str]) -> None:
        """Sets the resources that exist, with their states in the order in which they are shown: node=["READY"], queued=[...]."""
        names = {"node": "tpu-vm", "queued": "queued-resources"}
        text = json.dumps({names[kind]: {"hir": one} for kind, one in states.items()})
        (self.directory / "nodes.json").write_text(text)

    def left(self) -> dict:
        return {k: v for k, v in json.loads((self.directory / "nodes.json").read_text()).items() if v}

    def fails(self, **how) -> None:
        """Makes calls fail that hold the given words, joined by _: words=(status, message)."""
        (self.directory / "fail.json").write_text(json.dumps(how))

    def fail(self, words: str, status: int = 1, message: str = "ERROR: (gcloud) no more capacity") -> None:
        self.fails(**{words: (status, message)})

    def calls(self, *words: str) -> list[list[str]]:
        path = self.directory / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if all(word in call for word in words)]

    def worker(self, index: int) -> Path:
        """A worker's checkout."""
        return self.directory / f"worker-{index}" / "hir_jax"

    def home(self, index: int) -> Path:
        return self.directory / f"worker-{index}"

    def install(self, *indices: int) -> None:
        """Makes what `setup` leaves on workers, with PROGRAM in place of hir_jax.train."""
        for index in indices:
            checkout = self.worker(index)
            for folder in (".venv/bin", "launch", "hir_jax", ".launch"):
                (checkout / folder).mkdir(parents=True)
            (checkout / ".venv/bin/python").symlink_to(sys.executable)
            for name in ("worker.py", "env_file.py"):
                shutil.copy(ROOT / "launch" / name, checkout / "launch")
            (checkout / "hir_jax" / "__init__.py").touch()  # else an installed hir_jax goes before this folder
            (checkout / "hir_jax" / "train.py").write_text(PROGRAM)
            (checkout / ".launch" / "ready").write_text("0123abc\n")
            start = f"{checkout}/.venv/bin/python launch/worker.py keep"
            (self.home(index) / "unit").write_text(f"WorkingDirectory={checkout}\nExecStart={start}\n")

    def on_worker(self, index: int, *command: str | Path) -> subprocess.CompletedProcess:
        """Runs a command on a worker, as its user."""
        where = {"cwd": self.home(index), "env": self.environment | {"HOME": str(self.home(index))}}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, **where)

    def power_off(self, index: int) -> None:
        """Ends all processes of a worker at once; what was mounted is not any more."""
        home = self.home(index)
        if (home / "pid").exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int((home / "pid").read_text()), signal.SIGKILL)
            (home / "pid").unlink()
        if (runs := home / "hir_jax" / "runs").is_symlink():
            runs.unlink()
            runs.mkdir()

    def boot(self, index: int) -> None:
        """Starts the unit, as systemd does where it is enabled, and again when it fails."""
        if (self.home(index) / "enabled").exists():
            self.on_worker(index, "systemctl", "start", "hir_jax")

    def pre_empt(self) -> None:
        """Takes the node away."""
        self.stop_all()
        self.nodes(node=["PREEMPTED"])

    def stop_all(self) -> None:
        for home in self.directory.glob("worker-*"):
            self.power_off(int(home.name.split("-")[1]))
