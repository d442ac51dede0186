"""setup_worker.sh through `tpu_vm.py setup`, in a shell that stands for each worker; the commit of an archive; files of keys."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from far_side import ROOT, tpu_vm, until

sys.path.insert(0, str(ROOT / "launch"))
import env_file

NFS = "--nfs=10.0.0.9:/share"


def head():
    return subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()


def test_setup_copies_the_commit_and_installs_on_every_worker(fresh):
    far = fresh
    done = tpu_vm(far, "setup")
    assert done.returncode == 0, done.stderr
    for index in range(2):
        tree = far.worker(index)
        for name in ("hir_jax/engine.py", "configs", "requirements.txt"):
            assert (tree / name).exists()
        assert not (tree / "experiments" / "results").exists() and not (tree / ".git").exists()
        assert f"worker {index}: jax" in done.stderr
        assert (tree / ".launch" / "ready").read_text().strip() == head()
    installs = [call for call in far.calls("pip") if "jax[tpu]" in call]
    assert len(installs) == 2 and installs[0][installs[0].index("-r") + 1] == "requirements.txt"
    assert far.calls("ssh")[0][-3] == "--command=echo connected"  # worker 0's alone


def test_the_default_python_is_312_and_another_replaces_it(fresh):
    for given, version in (((), "3.12"), ((), "3.12"), (("--python=3.11",), "3.11")):
        assert tpu_vm(fresh, "setup", *given).returncode == 0
        assert (fresh.worker(1) / ".venv" / "version").read_text() == f"Python {version}.1\n"
    made = [call[4] for call in fresh.calls("uv", "venv")]
    assert sorted(made) == ["3.11", "3.11", "3.12", "3.12"]  # the second setup makes none


def test_bubblewrap_and_nfs_are_installed_where_they_lack(fresh, share):
    assert tpu_vm(fresh, "setup").returncode == 0
    assert [call[-1] for call in fresh.calls("apt-get", "install")] == ["bubblewrap"] * 2
    (fresh.directory / "calls.jsonl").unlink()
    fresh.record("bwrap")
    assert tpu_vm(fresh, "setup", NFS).returncode == 0
    assert [call[-1] for call in fresh.calls("apt-get", "install")] == ["nfs-common"] * 2


def test_a_setup_without_bubblewrap_says_so_and_goes_on(fresh):
    fresh.record("sudo", '[ "$1" != apt-get ]')
    done = tpu_vm(fresh, "setup")
    assert done.returncode == 0 and "no bubblewrap: a run with code checkers will not start" in done.stderr


def test_the_share_is_mounted_once_and_again_when_the_machine_boots(fresh, share):
    for given in ((NFS,), (NFS,), ()):  # without --nfs the share stays
        assert tpu_vm(fresh, "setup", *given).returncode == 0
    mounts = fresh.calls("mount", "-t")
    assert [call[1:6] for call in mounts] == [["-t", "nfs", "-o", "hard,nolock", "10.0.0.9:/share"]] * 2
    runs = fresh.worker(1) / "runs"
    fresh.power_off(1)
    assert not runs.is_symlink()
    fresh.boot(1)
    assert runs.is_symlink() and len(fresh.calls("mount", "-t")) == 3


def test_systemd_takes_the_unit(fresh, share):
    """systemd's own check, which wants the programs to be there."""
    assert tpu_vm(fresh, "setup", NFS).returncode == 0
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze")
    unit = fresh.directory / "hir_jax.service"
    shutil.copy(fresh.home(0) / "unit", unit)
    checked = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=mixt"))
    checked = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert "Failed to parse kill mode" in checked.stderr


def test_setup_again_removes_what_the_commit_no_longer_has(fresh):
    far = fresh
    assert tpu_vm(far, "setup").returncode == 0
    gone, own = far.worker(0) / "hir_jax" / "gone.py", far.worker(0) / "runs" / "mine.txt"
    for path in (gone, own):
        path.write_text("")
    with open(far.worker(0) / ".launch" / "files", "a") as listed:
        listed.write("zzz/../hir_jax/gone.py\n")  # sorted behind all others
    (far.worker(0) / "zzz").mkdir()
    assert tpu_vm(far, "setup").returncode == 0
    assert own.exists() and not gone.exists() and (far.worker(0) / "hir_jax" / "types.py").exists()


def test_setup_that_fails_names_the_worker(fresh):
    fresh.fail("scp --worker=1", 1, "scp: Connection closed")
    done = tpu_vm(fresh, "setup")
    assert done.returncode == 1 and "worker 0: jax" in done.stderr
    assert "error: setup failed on 1 of 2 workers:\nworker 1 (10.0.0.3): scp: Connection closed" in done.stderr
    assert "worker 1 (10.0.0.3): not set up" in tpu_vm(fresh, "status").stdout


def test_setup_leaves_a_run_alone(fresh):
    assert tpu_vm(fresh, "setup").returncode == 0
    assert tpu_vm(fresh, "run", "--", "--workdir=runs/x", "--sleep").returncode == 0
    done = tpu_vm(fresh, "setup")
    assert done.returncode == 1 and "worker 1 (10.0.0.3): error: a run is under way here: stop it first" in done.stderr


@pytest.mark.parametrize("share", ["/runs", "10.0.0.9:/a b", "10.0.0.9:/a;id"])
def test_a_share_is_host_and_path(far, share):
    done = tpu_vm(far, "setup", f"--nfs={share}")
    assert done.returncode == 1 and f"error: --nfs={share}: give HOST:/SHARE" in done.stderr and not far.calls()


def test_an_archive_knows_its_commit(tmp_path):
    """As on a worker: there is no .git. `git describe` writes the same."""
    subprocess.run(f"git -C '{ROOT}' archive HEAD | tar -x -C '{tmp_path}'", shell=True, check=True)
    command = [sys.executable, "-c", "from hir_jax.run import files; print(files.__file__, files.commit())"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    where, commit = done.stdout.split()
    assert where.startswith(str(tmp_path)) and re.fullmatch("[0-9a-f]{7,40}", commit) and head().startswith(commit)


# ---- keys


ENV = """\ufeff# keys
export HF_TOKEN="hf_x'y z"

OPENAI_API_KEY='sk-"1"'   # of the judge
export  PLAIN=a=b c  # why
EMPTY=
ESCAPED="a \\"b\\""
"""


def test_the_program_gets_the_keys_and_nobody_else(far, tmp_path):
    """Mode 600 on every worker, and what a shell makes of the file, except for spaces without quotes."""
    far.nodes(node=["READY"])
    far.install(0, 1)
    keys = tmp_path / "my keys.env"
    keys.write_text(ENV + 'export SECRET="s e c"\n')
    os.umask(0o022)
    keys.chmod(0o644)
    done = tpu_vm(far, "run", f"--env={keys}", "--", "--workdir=runs/x", "--sleep")
    assert done.returncode == 0, done.stderr
    for index in range(2):
        there = far.worker(index) / ".env"
        assert there.read_text() == keys.read_text() and there.stat().st_mode & 0o777 == 0o600
        assert not (far.worker(index) / ".launch" / "env").exists()
        log = far.worker(index) / ".launch" / "log.txt"
        until(lambda log=log: "step 0 s e c" in log.read_text())
    assert not any("s e c" in word for call in far.calls() for word in call)


def test_quotes_are_those_of_a_shell(tmp_path):
    path = tmp_path / "x.env"
    path.write_text(ENV)
    found = env_file.read(path)
    assert found.pop("PLAIN") == "a=b c"
    path.write_text(ENV.removeprefix("\ufeff").replace("PLAIN=a=b c", "PLAIN="))
    shell = subprocess.run(["bash", "-c", f"set -a; . {path}; env -0"], capture_output=True, text=True, env={})
    expected = dict(line.split("=", 1) for line in shell.stdout.split("\0") if line)
    assert found == {name: expected[name] for name in ("HF_TOKEN", "OPENAI_API_KEY", "EMPTY", "ESCAPED")}


@pytest.mark.parametrize(
    "line", ["sk-secret", "KEY = sk-secret", 'KEY="sk-secret', "KEY='sk-secret' more", "a-b=sk-secret"]
)
def test_a_line_that_is_none_is_named_without_its_value(far, tmp_path, line):
    path = tmp_path / "x.env"
    path.write_text(f"A=1\n{line}\n")
    done = tpu_vm(far, "run", f"--env={path}", "--", "--workdir=runs/x")
    assert done.returncode == 1 and done.stderr.startswith(f"error: {path}:2: ") and "secret" not in done.stderr
    assert not far.calls()
