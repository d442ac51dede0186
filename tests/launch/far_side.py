"""Programs to put on the PATH in place of gcloud and SLURM's: they record their arguments, fail on demand, and act for the cloud
or cluster as far as tests need it. FAKE names their directory: calls.jsonl, fail.json (how calls fail), nodes.json, worker-I (its
home)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Stands for hir_jax.train: says what it was given, and takes one step at a start (--all: all that are left of two).
PROGRAM = """
import json, os, sys, time
from pathlib import Path
workdir = Path(next(a for a in reversed(sys.argv) if a.startswith("--workdir=")).split("=", 1)[1])
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
    with rows.open("a") as file:
        file.write(json.dumps({"step": step, "ila": 0.5}) + "\\n")
"""

GCLOUD = '''#!{python} -SE
import json, os, sys
fake = os.environ["FAKE"] + "/"
argv = sys.argv[1:]
with open(fake + "calls.jsonl", "a") as calls:
    calls.write(json.dumps(["gcloud", *argv]) + "\\n")
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

failure = None
for pattern, (status, message) in json.load(open(fake + "fail.json")).items():
    if all(word in text for word in pattern.split()):
        failure = status, message
if verb == "create":  # a failed one leaves something half made
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


class FarSide:
    """The directory of the fake programs, and their recorded calls."""

    def __init__(self, directory: Path, workers: int = 2):
        self.directory = directory
        (directory / "bin").mkdir(parents=True)
        self.put("gcloud", GCLOUD)
        self.environment = os.environ | {
            "FAKE": str(directory),
            "WORKERS": str(workers),
            "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
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

    def install(self, *indices: int) -> None:
        """Makes what `setup` leaves on workers, with PROGRAM in place of hir_jax.train."""
        for index in indices:
            checkout = self.worker(index)
            for folder in (".venv/bin", "launch", "hir_jax"):
                (checkout / folder).mkdir(parents=True)
            (checkout / ".venv/bin/python").symlink_to(sys.executable)
            shutil.copy(ROOT / "launch" / "worker.py", checkout / "launch")
            (checkout / "hir_jax" / "__init__.py").touch()  # else an installed hir_jax goes before this folder
            (checkout / "hir_jax" / "train.py").write_text(PROGRAM)

    def stop_all(self) -> None:
        for checkout in self.directory.glob("worker-*/hir_jax"):
            if (checkout / ".venv").exists():
                subprocess.run([sys.executable, checkout / "launch" / "worker.py", "stop"], capture_output=True)
