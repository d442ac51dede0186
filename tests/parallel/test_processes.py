"""Several processes as one run, each with four virtual devices: against one process; stopped, killed, moved, refused."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_runs import ROOT, arguments, small_config

from hir_jax.engine import Engine
from hir_jax.parallel import processes
from hir_jax.runs.checkpoints import Checkpoints

COMPARED = 5  # steps of the comparison with one process
STEPS = 20  # long enough to be disturbed on the way
SETTINGS = {
    "total_steps": STEPS, "eval_every": 5, "checkpoint_every": 5, "checkpoint_keep": 20, "data__batch_prompts": 8,
    "data__eval_size": 8, "data__eval_batch": 8, "logging__tensorboard": False, "rollout__response_buckets": (6,),
}  # fmt: skip
XLA_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={}"  # 0: half the seconds of a start
)
RECORDED = str(Path(__file__).with_name("recorded.py"))
LIMIT = 900  # seconds for a start, far more than it takes: the machine may be busy


class Group:
    """Processes of one run, each with its output in a file."""

    def __init__(self, workdir, cache, count=2, devices=4, record=None, each=lambda i: ([], {}), **changes):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = arguments(workdir, **SETTINGS | {"compilation_cache": str(cache)} | changes)
        self.outputs = [Path(workdir).with_name(f"{Path(workdir).name}-{port}-{i}.txt") for i in range(count)]
        self.members = []
        for i, output in enumerate(self.outputs):
            program = [RECORDED, f"{record}-{i}.npz", str(COMPARED)] if record else ["-m", "hir_jax.train"]
            variables = {"HIR_COORDINATOR": f"127.0.0.1:{port}", "HIR_PROCESSES": str(count), "HIR_PROCESS": str(i)}
            variables = variables if count > 1 else {}
            variables |= {"XLA_FLAGS": XLA_FLAGS.format(devices), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
            more, environment = each(i)
            with output.open("w") as file:
                process = subprocess.Popen(
                    [sys.executable, *program, *given, *more],
                    cwd=ROOT, env=os.environ | variables | environment, stdout=file, stderr=subprocess.STDOUT,
                )  # fmt: skip
            self.members.append(process)

    def said(self, i: int) -> str:
        return self.outputs[i].read_text()

    def all_said(self) -> str:
        return "\n".join(f"---- {output}\n{output.read_text()[-6000:]}" for output in self.outputs)

    def wait(self, *statuses: int | tuple[int, ...], seconds=LIMIT):
        """Until all have ended, with these statuses (or one of several)."""
        try:
            found = [process.wait(seconds) for process in self.members]
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail("still running\n" + self.all_said())
        for status, expected in zip(found, statuses, strict=True):
            assert status in (expected if isinstance(expected, tuple) else (expected,)), self.all_said()

    def wait_for(self, condition):
        end = time.monotonic() + LIMIT
        while not condition():
            if time.monotonic() > end or any(process.poll() is not None for process in self.members):
                self.kill()
                pytest.fail("ended too early, or never came so far\n" + self.all_said())
            time.sleep(0.02)

    def kill(self):
        for process in self.members:
            process.kill()


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trajectory(workdir):
    """metrics.jsonl without what a clock says, or what follows from the layout."""
    clocks = re.compile("seconds|per_s|padding")
    return [{k: v for k, v in row.items() if not clocks.search(k)} for row in lines(workdir / "metrics.jsonl")]


def state(workdir, step):
    """Leaves of the checkpoint of a step, restored to one device."""
    engine = Engine(small_config(**SETTINGS), devices=jax.devices()[:1])
    with Checkpoints(workdir / "checkpoints", keep=20) as saved:
        return jax.tree.leaves(jax.device_get(saved.restore(step, engine.abstract_state)[0]))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def two(place):
    """The workdir of an undisturbed run of two processes with four devices each."""
    group = Group(place / "two", place / "cache", record=place / "two")
    group.wait(0, 0)
    assert "metrics:" in group.said(0)
    # The other one says nothing that a run says of itself, and both have left in good order.
    assert "metrics:" not in group.said(1) and "step " not in group.said(1)
    assert "error" not in group.said(0) + group.said(1), group.all_said()
    return place / "two"


def test_two_processes_do_what_one_does(place, two):
    """Tokens, verdicts and selection are equal; metrics and parameters after five steps within 1e-5."""
    Group(place / "one", place / "cache", count=1, devices=8, record=place / "one", total_steps=COMPARED).wait(0)
    with np.load(place / "one-0.npz") as one, np.load(place / "two-0.npz") as a, np.load(place / "two-1.npz") as b:
        assert a["checked"] > 0 and b["checked"] > 0 and abs(int(a["checked"]) - int(b["checked"])) <= COMPARED + 8
        assert a["checked"] + b["checked"] >= one["checked"] - 16  # a last evaluation comes after the last selection
        for name in set(one.files) - {"checked"}:
            np.testing.assert_array_equal(a[name], one[name], err_msg=name)
            np.testing.assert_array_equal(b[name], one[name], err_msg=name)
        assert any(one[f"{step}/valid"].any() for step in range(COMPARED))
    expected, found = trajectory(place / "one"), trajectory(two)[: COMPARED + 1]
    for row, other in zip(expected, found, strict=True):
        assert other == pytest.approx(row, rel=1e-5, abs=1e-7)
    assert any("heldout_ila" in row for row in found)
    expected, found = state(place / "one", COMPARED), state(two, COMPARED)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1e-3, np.abs(b).max()))
    names = [{path.name for path in (place / run).iterdir()} for run in ("one", "two")]
    assert names[0] == names[1] and "report.html" in names[0] and "model" in names[0]


def test_stopped_and_killed_it_resumes_exactly(place, two):
    """SIGTERM to one process: all save after the same step and exit 0. SIGKILL of one: the other ends by itself."""
    workdir = place / "disturbed"

    def reached(step):
        metrics = workdir / "metrics.jsonl"
        return metrics.exists() and len(metrics.read_text().splitlines()) > step

    group = Group(workdir, place / "cache")
    group.wait_for(lambda: reached(2))
    group.members[1].send_signal(signal.SIGTERM)
    group.wait(0, 0)
    stopped = re.search(r"stopped by SIGTERM after step (\d+)", group.said(0))
    assert stopped and 2 <= int(stopped[1]) < STEPS, group.all_said()
    assert "stopped" not in group.said(1)

    group = Group(workdir, place / "cache")
    group.wait_for(lambda: reached(int(stopped[1]) + 1))
    assert f"from step {stopped[1]}" in group.said(0)
    group.members[1].kill()
    # A broken connection is an error in the program, status 1, where the collective hears of it; else jax aborts it after the
    # heartbeats, and the last words are then another process's, which may take a moment.
    group.wait((1, -signal.SIGABRT), -signal.SIGKILL, seconds=120)
    advice, end = "error: .*Start all processes again with the same command", time.monotonic() + 30
    while not re.search(advice, group.said(0)) and time.monotonic() < end:
        time.sleep(0.1)
    assert re.search(advice, group.said(0)), group.all_said()

    group = Group(workdir, place / "cache")
    group.wait(0, 0)
    assert re.search(r"resuming .* from step \d+\n", group.said(0)), group.all_said()
    assert trajectory(workdir) == trajectory(two)
    assert lines(workdir / "replays.jsonl") == lines(two / "replays.jsonl")
    for a, b in zip(state(workdir, STEPS), state(two, STEPS), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_run_goes_on_with_fewer_devices_and_says_so(place, two):
    workdir = place / "moved"
    shutil.copytree(two, workdir)
    group = Group(workdir, place / "cache", count=1, devices=4, total_steps=STEPS + 1, eval_every=0)
    group.wait(0)
    moved = "it ran on a mesh of data 8, fsdp 1, tensor 1 and goes on with data 4, fsdp 1, tensor 1"
    assert f"from step {STEPS}; {moved}" in group.said(0)
    assert [row["step"] for row in lines(workdir / "metrics.jsonl")] == list(range(STEPS + 2))


def test_what_one_process_cannot_do_ends_all(place, two):
    """A refusal that the first decides, flags that differ, and a fault that one process alone has."""
    group = Group(two, place / "cache", seed=7)
    group.wait(1, 1)
    for i in (0, 1):
        assert re.search(r"error: .*holds a run of another config; changed: seed", group.said(i)), group.all_said()
        assert "Traceback" not in group.said(i)
    group = Group(place / "differs", place / "cache", each=lambda i: ([f"--config.seed={i}"], {}))
    group.wait(1, 1)
    assert "error: the config is not the same in processes 0 and 1: start all" in group.said(0), group.all_said()
    fault = "rows.jsonl:3: cannot be read"
    group = Group(
        place / "fails", place / "cache", record=place / "fails", each=lambda i: ([], {"FAILS": fault} if i else {})
    )
    group.wait(1, 1)
    assert f"error: process 1 of 2: {fault}" in group.said(0) and f"error: {fault}" in group.said(1), group.all_said()
    assert "Traceback" not in group.said(1)


# ---- without other processes ---------------------------------------------------------------------------------------


@pytest.fixture
def given(monkeypatch):
    """Sets HIR_ variables; the flags are at their defaults."""
    flags = processes.flags.FlagValues()
    for name in ("coordinator", "processes", "process"):
        processes.flags.DEFINE_string(name, None, "", flag_values=flags)
    flags.mark_as_parsed()
    monkeypatch.setattr(processes.flags, "FLAGS", flags)

    def use(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        return flags

    return use


WHOLE = {"HIR_COORDINATOR": "host:1234", "HIR_PROCESSES": "2", "HIR_PROCESS": "1"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"HIR_PROCESSES": "2"}, "not given: --coordinator .or HIR_COORDINATOR., --process .or HIR_PROCESS."),
        (WHOLE | {"HIR_PROCESS": "2"}, "process 2 of 2: HIR_PROCESS counts from 0"),
        (WHOLE | {"HIR_PROCESSES": "many"}, "must be whole numbers"),
        (WHOLE | {"HIR_COORDINATOR": "host"}, "'host' must be HOST:PORT"),
    ],
)
def test_a_group_that_is_described_badly(given, values, words):
    given(**values)
    with pytest.raises(processes.ProcessError, match=words), processes.joined(preemption=True):
        pass


def test_flags_come_before_variables_and_these_before_a_launcher(given):
    flags = given(**WHOLE, OMPI_COMM_WORLD_SIZE="4")
    flags["process"].value = "0"
    assert processes._named_group() == {"coordinator_address": "host:1234", "num_processes": 2, "process_id": 0}


SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
}  # fmt: skip
MPIRUN = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("values", "launcher"),
    [
        ({}, None),
        (SLURM, "slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),  # in a batch script, not in a step
        (MPIRUN, "ompi"),
        (MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
    ],
)
def test_launchers(given, values, launcher):
    given(**values)
    assert processes._launched_group() == (launcher and {"cluster_detection_method": launcher})


def test_one_process_alone(given):
    given()
    with processes.joined(preemption=True):
        assert processes.first() and processes.share([1, 2, 3]) == [1, 2, 3]
        assert processes.total({"a": 2.5}) == {"a": 2.5} and processes.agree(lambda: [1]) == [1]
