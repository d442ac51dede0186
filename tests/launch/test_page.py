"""docs/launch.md: every command in it is one of ours, which a dry run takes, or Google's, which its own parser takes."""

import json
import os
import re
import shutil
import subprocess
import tomllib

import pytest
from far_side import ROOT, tpu_vm
from test_tpu_vm import DRY

PAGE = ROOT / "docs" / "launch.md"


def commands(text):
    """The indented lines of a page, with their continuations."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line.strip() for line in lines if line.startswith("    ")]


@pytest.fixture
def dry_run(tmp_path):
    """Gives what a command of the page prints with --dry_run, where there is a file of keys."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    (tmp_path / "my.env").write_text("HF_TOKEN=x\n")
    lines = commands(PAGE.read_text())
    names = [one for one in lines if one.startswith("TPU=(")]

    def call(line):
        command, behind, program = line.split("  #")[0].partition(" -- ")
        script = "\n".join([*names, f"{command} --dry_run{behind}{program}"])
        return subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)

    return call


def test_the_page_leads_to_a_running_job_in_ten_commands():
    """The first section, up to the command that starts the run."""
    section = PAGE.read_text().split("\n## ")[1]
    begun = [line for line in commands(section) if line.startswith(("gcloud ", "launch/"))]
    begun = begun[: 1 + next(i for i, line in enumerate(begun) if " run " in line)]
    assert len(begun) <= 10 and "--workdir=gs://" in begun[-1]
    assert begun[0].startswith("gcloud auth login") and any("buckets create" in line for line in begun)


def test_every_command_of_ours_takes_a_dry_run(dry_run):
    lines = commands(PAGE.read_text())
    ours = [line for line in lines if line.startswith("launch/tpu_vm.py ")]
    assert {line.split()[1] for line in ours} == {"create", "setup", "run", "status", "logs", "stop", "fetch", "delete"}
    for line in ours:
        done = dry_run(line)
        assert done.returncode == 0 and "gcloud " in done.stdout, (line, done.stderr)


def test_the_page_offers_jax_for_every_cuda_that_the_package_does():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    offered = {name for name in re.findall(r"pip install .*'jax\[(\w+)\]'", PAGE.read_text())}
    assert offered == {name for name in extras if name.startswith("cuda")} == {"cuda12", "cuda13"}


@pytest.mark.slow
def test_the_real_gcloud_knows_every_command(far, tmp_path, dry_run):
    """Google's own parser, offline, where the SDK is installed: `gcloud meta lint-gcloud-commands` runs nothing."""
    if not shutil.which("gcloud"):
        pytest.skip("no Google Cloud SDK on the PATH")
    lines = commands(PAGE.read_text())
    printed = [dry_run(line).stdout for line in lines if line.startswith("launch/tpu_vm.py ")]
    for command in DRY:
        # the linter cannot read all that a shell can: `run` with plain arguments
        flags = command[1:] if command[:2] != ("run", "--workers=2") else ("--", "--workdir=runs/x")
        printed.append(tpu_vm(far, command[0], "--dry_run", *flags).stdout)
    lines += "".join(printed).splitlines()
    known = sorted({re.split(r" \| |  #", line)[0] for line in lines if line.startswith("gcloud ")})
    (tmp_path / "commands.json").write_text(json.dumps([{"command_string": one} for one in known]))
    empty = {"CLOUDSDK_CONFIG": str(tmp_path / "sdk"), "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false"}
    lint = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={tmp_path / 'commands.json'}"]
    done = subprocess.run(lint, env=os.environ | empty, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert len(found) == len(known) > 40
    assert [(one["command_string"], one["error_message"]) for one in found if not one["success"]] == []
