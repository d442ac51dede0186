"""local.py with small Python programs: environments, prefixes, ends and signals."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LOCAL = Path(__file__).parents[2] / "launch" / "local.py"

PROGRAM = """
import os, signal, subprocess, sys, time
index, act = os.environ["HIR_PROCESS"], sys.argv[1]
names = "HIR_COORDINATOR", "HIR_PROCESSES", "JAX_PLATFORMS", "XLA_FLAGS", "XLA_CLIENT_MEM_FRACTION", "CUDA_VISIBLE_DEVICES"
if act == "show":
    print(*(os.environ.get(name) for name in names), sep="|")
    print(sys.argv[2:], file=sys.stderr)
    print("no end of line", end="")
elif act == "lines":
    for i in range(300):
        print(index * 50, flush=True)
elif act == "fail":
    if index == "1":
        sys.exit(3)
    time.sleep(60)
elif act == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if index == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"])
elif act == "wait":
    def end(signum, _):
        print("got", signal.Signals(signum).name, flush=True)
        sys.exit(0)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, end)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    base = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES")}

    def start(*arguments, **environment):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, LOCAL, *arguments]
        return subprocess.Popen(command, cwd=tmp_path, env=base | environment, **pipes)

    return start


def ended(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_environment_arguments_and_prefixes(start):
    given = ["a b", "it's $HOME"]
    status, out, _ = ended(
        start("--processes=2", "--devices=4", "--", "program", "show", *given, XLA_FLAGS="--xla_a=1")
    )
    shared = r"(127\.0\.0\.1:\d+)\|2\|cpu\|--xla_a=1 --xla_force_host_platform_device_count=4\|None\|None"
    ports = re.findall(rf"^\[([01])\] {shared}$", out, re.M)
    assert status == 0 and {index for index, _ in ports} == {"0", "1"} and len({port for _, port in ports}) == 1
    for index in "01":  # stderr too, and a last line without an end
        assert f"[{index}] {given}\n" in out and f"[{index}] no end of line\n" in out


def test_lines_are_not_mixed(start):
    _, out, _ = ended(start("--processes=3", "--devices=1", "--", "program", "lines"))
    assert sorted(out.splitlines()) == sorted(f"[{i}] {str(i) * 50}" for i in range(3) for _ in range(300))


def test_gpus_are_shared_out(start):
    status, out, _ = ended(start("--processes=2", "--", "program", "show", CUDA_VISIBLE_DEVICES="2,3,6,7"))
    assert (
        status == 0
        and re.search(r"\[0\] .*\|2\|None\|None\|0\.95\|2,3$", out, re.M)
        and re.search(r"\[1\] .*\|6,7$", out, re.M)
    )
    status, out, err = ended(start("--processes=3", "--", "program", "show", CUDA_VISIBLE_DEVICES="2,3,6,7"))
    assert status == 1 and "4 GPUs cannot be shared by 3 processes" in err and out == ""


@pytest.mark.parametrize(
    ("name", "shown"), [("XLA_CLIENT_MEM_FRACTION", "0.5"), ("XLA_PYTHON_CLIENT_MEM_FRACTION", "None")]
)
def test_the_share_of_the_memory_is_the_users_if_given(start, name, shown):
    _, out, _ = ended(start("--processes=1", "--", "program", "show", **{"CUDA_VISIBLE_DEVICES": "0", name: "0.5"}))
    assert f"|{shown}|0\n" in out


def test_gpus_that_nvidia_smi_lists(start, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    _, out, _ = ended(start("--processes=2", "--", "program", "show", PATH=f"{tmp_path}:{os.environ['PATH']}"))
    assert re.search(r"\[0\] .*\|0$", out, re.M) and re.search(r"\[1\] .*\|1$", out, re.M)


def test_one_that_fails_ends_the_others(start):
    status, _, err = ended(start("--processes=3", "--", "program", "fail", CUDA_VISIBLE_DEVICES=""))
    assert status == 3 and "process 1 failed with status 3: ending the others" in err


def test_one_that_does_not_end_is_killed_after_the_grace_period(start):
    """Its own child processes must end too: they would hold the pipe open."""
    status, _, err = ended(start("--processes=2", "--grace=0.5", "--", "program", "stubborn", CUDA_VISIBLE_DEVICES=""))
    assert status == 128 + signal.SIGKILL and "process 1 failed with status 137" in err


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_all(start, signum):
    process = start("--processes=2", "--", "program", "wait", CUDA_VISIBLE_DEVICES="")
    assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(signum)
    status, out, _ = ended(process)
    assert status == 0 and sorted(out.splitlines()) == [f"[{i}] got {signum.name}" for i in range(2)]


@pytest.mark.parametrize("arguments", [("--processes=2",), ("--processes=0", "--", "program"), ("--", "program")])
def test_misuse(start, arguments):
    status, out, err = ended(start(*arguments))
    assert status == 2 and "usage:" in err and out == ""
