"""`run --keep`, and what befalls a node meanwhile: setups that fail, hosts that reboot, pre-emption, wiped disks."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from far_side import ROOT, WHERE, tpu_vm, until

NFS = "--nfs=10.0.0.9:/share"
BUCKET, SHARE = ("--", "--workdir=gs://b/x"), (NFS, "--", "--workdir=runs/x")


@pytest.fixture
def keeping(far):
    """Starts `run --keep` in the background; it ends with the test."""
    started = []

    def start(*arguments):
        command = [sys.executable, ROOT / "launch" / "tpu_vm.py", "run", "--keep", *WHERE, "--type=v6e-16", *arguments]
        with open(far.directory / "keep.txt", "ab") as log:
            started.append(subprocess.Popen(command, env=far.environment, stdout=log, stderr=log))
        return started[-1]

    yield start
    for one in started:
        one.terminate()
        one.wait()


def steps(directory):
    """The steps in the run's metrics, in the order in which they were written."""
    rows = directory / "metrics.jsonl"
    return [json.loads(row)["step"] for row in rows.read_text().splitlines()] if rows.exists() else []


def starts(far, index):
    """The steps at which the program was started on a worker."""
    log = far.worker(index) / ".launch" / "log.txt"
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith("step ")]


def one_worker(far):
    far.environment["WORKERS"] = "1"
    return far


# ---- setup


def test_a_setup_that_failed_is_made_again(fresh, keeping, share):
    """On one worker of two, the first time. The other must not start alone: it would wait for its peer."""
    fresh.record("uv", 'if [ "$1" = venv ] && [ ! -e "$FAKE/failed" ] && mkdir "$FAKE/failed"; then exit 1; fi; '
                 'mkdir -p .venv/bin && cp "$FAKE/python" .venv/bin/ && cp "$FAKE/program.py" hir_jax/train.py')  # fmt: skip
    assert tpu_vm(fresh, "setup").returncode == 1
    end = keeping(*SHARE, "--all").wait(120)
    said = (fresh.directory / "keep.txt").read_text()
    assert end == 0 and "worker 0: finished; worker 1: finished" in said, said
    assert len([call for call in fresh.calls("pip") if "jax[tpu]" in call]) == 2


def test_a_setup_that_fails_again_and_again_ends(fresh, keeping, share):
    fresh.record("uv", "exit 1")
    assert keeping(*SHARE).wait(120) == 1
    said = (fresh.directory / "keep.txt").read_text()
    assert "setup failed on 2 of 2 workers" in said and "setup failed 3 times in a row" in said
    assert "node hir is there and costs money until you `delete` it" in said and fresh.left()


def test_a_host_whose_disk_was_wiped_is_set_up_alone(fresh, keeping):
    """The other keeps its code, and its run under way."""
    assert tpu_vm(fresh, "setup").returncode == 0
    keeping(*BUCKET, "--wait")
    until(lambda: starts(fresh, 0) and starts(fresh, 1))
    fresh.power_off(1)
    shutil.rmtree(fresh.home(1))
    until(lambda: starts(fresh, 1))
    assert (fresh.worker(1) / ".launch" / "ready").read_text() == (fresh.worker(0) / ".launch" / "ready").read_text()
    assert len([call for call in fresh.calls("pip") if "jax[tpu]" in call]) == 3


def test_code_that_is_not_here_ends_it(far, keeping):
    """Worker 0 has a commit that this checkout does not know, so worker 1 cannot get the same."""
    far.nodes(node=["READY"])
    far.install(0)
    assert keeping(*BUCKET).wait(120) == 1
    assert "valid object name: 0123abc" in (far.directory / "keep.txt").read_text()


# ---- reboot


@pytest.mark.parametrize("workdir", ["runs/x", "gs://b/x"])
def test_a_host_that_reboots_goes_on(fresh, share, workdir):
    """Without any command from here. The first boot finds the file server away: nothing is started on the local disk."""
    far = one_worker(fresh)
    directory = share / "x" if workdir == "runs/x" else far.directory / "bucket" / "b" / "x"
    assert tpu_vm(far, "setup", NFS).returncode == 0
    assert tpu_vm(far, "run", "--", f"--workdir={workdir}", "--all", "--wait").returncode == 0
    until(lambda: steps(directory) == [0])
    far.power_off(0)
    (far.directory / "share").rename(far.directory / "away")
    far.boot(0)
    assert starts(far, 0) == [0] and not list((far.worker(0) / "runs").iterdir())
    (far.directory / "away").rename(far.directory / "share")
    far.boot(0)
    until(lambda: starts(far, 0) == [0, 1])
    (directory / "go").touch()
    until(lambda: steps(directory) == [0, 1, 2])
    until(lambda: "finished" in tpu_vm(far, "status").stdout)
    far.power_off(0)
    far.boot(0)
    assert tpu_vm(far, "status").stdout.count("finished") == 1 and starts(far, 0) == [0, 1]


def test_a_share_mounted_by_hand_is_waited_for(far, share):
    """After a reboot without it neither systemd nor `run` starts the run on the disk below."""
    one_worker(far).nodes(node=["READY"])
    far.install(0)
    (far.home(0) / "enabled").touch()
    mine = far.home(0) / "mine"
    mine.symlink_to(share)
    if os.stat(share).st_dev == os.stat(far.home(0)).st_dev:
        pytest.skip("no second file system")
    program = ("run", "--", f"--workdir={mine}/x", "--all", "--wait")
    assert tpu_vm(far, *program).returncode == 0
    until(lambda: steps(share / "x") == [0])
    far.power_off(0)
    mine.unlink()
    mine.mkdir()
    far.boot(0)
    until(lambda: "which is not mounted now" in (far.worker(0) / ".launch" / "log.txt").read_text())
    done = tpu_vm(far, *program)
    assert done.returncode == 1 and f"mine/x was on the file system mounted at {os.path.dirname(share)}" in done.stderr
    assert starts(far, 0) == [0] and not list(mine.iterdir())
    mine.rmdir()
    mine.symlink_to(share)
    far.boot(0)
    until(lambda: starts(far, 0) == [0, 1])


def test_stop_reaches_a_run_that_waits_to_be_started_again(far):
    one_worker(far).nodes(node=["READY"])
    far.install(0)
    (far.home(0) / "enabled").touch()
    assert tpu_vm(far, "run", *BUCKET, "--sleep").returncode == 0
    until(lambda: starts(far, 0))
    far.power_off(0)
    assert tpu_vm(far, "stop").returncode == 0
    far.boot(0)
    assert "stopped" in tpu_vm(far, "status").stdout and starts(far, 0) == [0]


# ---- pre-emption


@pytest.mark.parametrize("workdir", ["runs/x", "gs://b/x"])
def test_a_new_node_goes_on_from_the_last_checkpoint(fresh, keeping, share, tmp_path, workdir):
    """With the keys, the share, and every flag of the create before."""
    far = one_worker(fresh)
    directory = share / "x" if workdir == "runs/x" else far.directory / "bucket" / "b" / "x"
    keys = tmp_path / "my.env"
    keys.write_text("export SECRET='s e c'\n")
    flags = ("--spot", "--service-account=a@b.c", f"--env={keys}", NFS)
    keep = keeping(*flags, "--", f"--workdir={workdir}", "--all", "--wait")
    until(lambda: steps(directory) == [0])
    far.pre_empt()
    (directory / "go").touch()
    said = far.directory / "keep.txt"
    assert keep.wait(120) == 0, said.read_text()
    assert "node hir is PREEMPTED" in said.read_text() and "costs money until you `delete` it" in said.read_text()
    assert steps(directory) == [0, 1, 2] and starts(far, 0) == [1]
    assert "step 1 s e c" in (far.worker(0) / ".launch" / "log.txt").read_text()
    assert (far.worker(0) / ".env").stat().st_mode & 0o777 == 0o600
    (made,) = far.calls("create")
    assert {"--spot", "--service-account=a@b.c"} < set(made)


def test_a_lost_request_is_deleted_before_a_new_one(fresh, keeping):
    far = one_worker(fresh)
    far.nodes(node=["PREEMPTED"], queued=["SUSPENDED"])
    far.environment["STATES"] = "PROVISIONING,ACTIVE"
    keep = keeping("--queued", *BUCKET, "--all")
    assert keep.wait(120) == 0
    acts = [(call[3], call[4]) for call in far.calls() if call[0] == "gcloud" and call[4] in ("create", "delete")]
    assert acts[0] == ("queued-resources", "delete") and acts[-1] == ("queued-resources", "create")


# ---- the end, and what cannot be kept


def test_a_run_that_is_given_up_ends_with_status_1(far, keeping):
    one_worker(far).nodes(node=["READY"])
    far.install(0)
    worker = far.worker(0) / "launch" / "worker.py"
    worker.write_text(worker.read_text().replace("default=30.0", "default=0.05"))
    assert keeping(*BUCKET, "--fail").wait(120) == 1
    said = (far.directory / "keep.txt").read_text()
    assert "worker 0: given up" in said and "error: given up: `logs` says why" in said


def test_a_stopped_run_is_started_by_a_new_keep_and_left_alone_by_the_old(far, keeping):
    one_worker(far).nodes(node=["READY"])
    far.install(0)
    for count in (1, 2):
        keep = keeping(*BUCKET, "--sleep")
        until(lambda count=count: len(starts(far, 0)) == count)
        assert tpu_vm(far, "stop").returncode == 0
        assert keep.wait(60) == 0
    assert (far.directory / "keep.txt").read_text().count("worker 0: stopped") == 2


def test_another_run_under_way_is_an_error(far, keeping):
    one_worker(far).nodes(node=["READY"])
    far.install(0)
    assert tpu_vm(far, "run", "--", "--workdir=gs://b/y", "--sleep").returncode == 0
    assert keeping(*BUCKET).wait(60) == 1
    assert "another run is under way on worker 0: stop it first" in (far.directory / "keep.txt").read_text()


@pytest.mark.parametrize("given", [("--", "--workdir=runs/x"), (NFS, "--", "--workdir=/mnt/x")])
def test_a_directory_that_a_new_node_would_not_have_is_refused(far, given):
    done = tpu_vm(far, "run", "--keep", "--type=v6e-16", *given)
    assert done.returncode == 1 and "give --workdir=gs://BUCKET/NAME, or --workdir=runs/NAME with --nfs" in done.stderr
    assert not far.calls()


# ---- a worker that does not answer


def test_status_waits_longer_than_gcloud_tries(far):
    """The figures are those of the SDK's own source, where it is installed."""
    sys.path.insert(0, str(ROOT / "launch"))
    import tpu_node

    (option,) = (o for o in tpu_node.SSH_OPTIONS if "ConnectTimeout" in o)
    seconds = int(option.split("=")[1])
    assert 10 * seconds + 9 * 5 < tpu_node.ANSWER
    gcloud = shutil.which("gcloud")
    source = gcloud and os.path.join(
        os.path.dirname(os.path.dirname(os.path.realpath(gcloud))),
        "lib/googlecloudsdk/command_lib/compute/tpus/tpu_vm/ssh.py",
    )
    if not source or not os.path.exists(source):
        pytest.skip("no Google Cloud SDK")
    text = Path(source).read_text()
    tries, pause = (int(text.split(f"{name} = ", 1)[1].split()[0]) for name in ("max_attempts", "sleep_interval"))
    assert tries * (seconds + pause) < tpu_node.ANSWER


@pytest.mark.parametrize("how", ["too long", "interrupted"])
def test_no_ssh_stays_behind(far, how):
    """gcloud's ssh is a process of its own, which does not end with gcloud."""
    far.nodes(node=["READY"])
    text = (far.directory / "bin" / "gcloud").read_text()
    ssh = 'import subprocess\n    subprocess.run(["bash", "-c", "echo $$ >> $FAKE/ssh; sleep 300; true"])'
    (far.directory / "bin" / "gcloud").write_text(text.replace("home = fake", f"{ssh}\n    home = fake"))
    program = f"import tpu_node, sys; tpu_node.ANSWER = {1 if how == 'too long' else 300}; import tpu_vm; tpu_vm.main()"
    command = [sys.executable, "-c", program, "status", *WHERE]
    environment = far.environment | {"PYTHONPATH": str(ROOT / "launch")}
    status = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    begun = far.directory / "ssh"
    until(lambda: begun.exists() and begun.read_text().count("\n") == 2)
    if how == "interrupted":
        status.send_signal(signal.SIGTERM)
    said = status.communicate(timeout=60)[1]
    assert status.returncode == (1 if how == "too long" else 130)
    assert how == "interrupted" or "worker 1 (10.0.0.3): no answer within 1 s" in said
    for pid in begun.read_text().split():
        until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), 10)
