"""Several processes as one run, each with four virtual devices: against one process; stopped, killed, moved, refused.

With parameters replicated, and as the configs of the paper's backbones have them: split over all devices of both processes,
with a layout of its own for sampling, whose cache has room for some of the rows.
"""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import bucket_server
import jax
import numpy as np
import pytest
from jax._src.clusters import cloud_tpu_cluster
from small_runs import ROOT, arguments, environment, small_config

from hir_jax import paths
from hir_jax.engine import Engine
from hir_jax.parallel import processes
from hir_jax.run.checkpoints import Checkpoints

COMPARED = 5  # steps of the comparison with one process
STEPS = 20  # long enough to be interrupted
SETTINGS = {
    "total_steps": STEPS, "eval_every": 5, "checkpoint_every": 5, "checkpoint_keep": 20, "data__batch_prompts": 8,
    "data__eval_size": 8, "data__eval_batch": 8, "logging__tensorboard": False, "rollout__response_buckets": (6,),
    "rollout__m": 5,
}  # fmt: skip
# Four pairs of devices share the rows; each holds two prompts of 96 columns and has room for one slot of 96 + 11, not for all
# ten rows of 12. A column takes 2 x 16 float32 numbers, of the one key head of two that a device has.
SPLIT = {"mesh__data": 1, "mesh__fsdp": -1, "rollout__tensor": 2, "rollout__cache_bytes": (2 * 96 + 107) * 128}
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
            more, own = each(i)
            with output.open("w") as file:
                process = subprocess.Popen(
                    [sys.executable, *program, *given, *more],
                    cwd=ROOT, env=environment(devices) | variables | own, stdout=file, stderr=subprocess.STDOUT,
                )  # fmt: skip
            self.members.append(process)

    def said(self, i: int) -> str:
        return self.outputs[i].read_text()

    def all_said(self) -> str:
        return "\n".join(f"---- {output}\n{output.read_text()[-6000:]}" for output in self.outputs)

    def wait(self, *statuses: int | tuple[int, ...], seconds=LIMIT):
        """Waits until all have ended, and checks their statuses (each given as one, or as several allowed ones)."""
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
    """metrics.jsonl without times and without metrics that depend on the layout."""
    clocks = re.compile("seconds|per_s|padding|decode_busy")
    return [{k: v for k, v in row.items() if not clocks.search(k)} for row in lines(workdir / "metrics.jsonl")]


def state(workdir, step):
    """The TrainState of the checkpoint of a step, restored to one device."""
    engine = Engine(small_config(**SETTINGS), devices=jax.devices()[:1])
    with Checkpoints(workdir / "checkpoints", keep=20) as saved:
        return jax.device_get(saved.restore(step, engine.abstract_state)[0])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


def undisturbed(place, name, **changes):
    """The workdir of such a run of two processes with four devices each."""
    group = Group(place / name, place / "cache", record=place / name, **changes)
    group.wait(0, 0)
    assert "metrics:" in group.said(0)
    # Only the first process reports on the run, and both end in order.
    assert "metrics:" not in group.said(1) and "step " not in group.said(1)
    assert "error" not in group.said(0) + group.said(1), group.all_said()
    return place / name


@pytest.fixture(scope="module")
def two(place):
    return undisturbed(place, "two", total_steps=COMPARED)


@pytest.fixture(scope="module")
def split(place):
    return undisturbed(place, "split", **SPLIT)


@pytest.fixture(scope="module")
def one(place):
    """The same run in one process."""
    Group(place / "one", place / "cache", count=1, devices=8, record=place / "one", total_steps=COMPARED).wait(0)
    return place / "one"


@pytest.mark.parametrize("name", ["two", "split"])
def test_two_processes_do_what_one_does(one, name, request):
    """Tokens, verdicts and selection are equal; metrics and parameters after five steps within 1e-5.

    Takes long because three runs start one after the other, and each compiles the step for eight devices; it protects that a run
    of several processes trains the same model as one process.
    """
    run = request.getfixturevalue(name)
    with np.load(f"{one}-0.npz") as alone, np.load(f"{run}-0.npz") as a, np.load(f"{run}-1.npz") as b:
        assert a["checked"] > 0 and b["checked"] > 0 and abs(int(a["checked"]) - int(b["checked"])) <= COMPARED + 8
        assert a["checked"] + b["checked"] >= alone["checked"] - 16  # a last evaluation comes after the last selection
        for field in set(alone.files) - {"checked"}:
            np.testing.assert_array_equal(a[field], alone[field], err_msg=field)
            np.testing.assert_array_equal(b[field], alone[field], err_msg=field)
        assert any(alone[f"{step}/valid"].any() for step in range(COMPARED))
    expected, found = trajectory(one), trajectory(run)[: COMPARED + 1]
    for row, other in zip(expected, found, strict=True):
        assert other == pytest.approx(row, rel=1e-5, abs=1e-7)
    assert any("heldout_ila" in row for row in found)
    expected, found = (jax.tree.leaves(state(workdir, COMPARED)) for workdir in (one, run))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1e-3, np.abs(b).max()))
    names = [{path.name for path in workdir.iterdir()} for workdir in (one, run)]
    assert names[0] == names[1] and "report.html" in names[0] and "model" in names[0]


def test_the_model_that_all_processes_held_parts_of_is_written_whole(split):
    written = Engine(small_config(**SETTINGS, model__checkpoint=str(split / "model")), devices=jax.devices()[:1])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(written.load_params()), state(split, STEPS).params)


def said_soon(group, i, pattern):
    """The last message may be another process's and may come late."""
    end = time.monotonic() + 30
    while not re.search(pattern, group.said(i)) and time.monotonic() < end:
        time.sleep(0.1)
    return re.search(pattern, group.said(i))


def test_stopped_and_killed_it_resumes_exactly(place, split):
    """SIGTERM to one process: all save after the same step and exit 0. SIGKILL of one, be it the first, which all others are
    connected to: the other ends by itself.

    Takes long because only real processes can be stopped and killed, and the run is started four times; it protects that nothing
    is lost or done twice.
    """
    workdir = place / "disturbed"

    def reached(step):
        metrics = workdir / "metrics.jsonl"
        return metrics.exists() and len(metrics.read_text().splitlines()) > step

    group = Group(workdir, place / "cache", **SPLIT)
    group.wait_for(lambda: reached(2))
    group.members[1].send_signal(signal.SIGTERM)
    group.wait(0, 0)
    stopped = re.search(r"stopped by SIGTERM after step (\d+)", group.said(0))
    assert stopped and 2 <= int(stopped[1]) < STEPS, group.all_said()
    assert "stopped" not in group.said(1)

    for killed, step in ((1, int(stopped[1])), (0, int(stopped[1]) + 1)):
        group = Group(workdir, place / "cache", **SPLIT)
        group.wait_for(lambda step=step: reached(step + 1))
        assert re.search(rf"resuming .* from step {stopped[1]}\n" if killed else "resuming", group.said(0))
        group.members[killed].kill()
        # A broken connection is an error in the program, status 1, where the collective hears of it; else jax aborts it, after
        # the heartbeats, or at once where the first is gone.
        statuses = (1, -signal.SIGABRT), -signal.SIGKILL
        group.wait(*(statuses if killed else reversed(statuses)), seconds=120)
        assert said_soon(group, 1 - killed, "error: .*Start all processes again with the same command"), (
            group.all_said()
        )

    group = Group(workdir, place / "cache", **SPLIT)
    group.wait(0, 0)
    assert re.search(r"resuming .* from step \d+\n", group.said(0)), group.all_said()
    assert trajectory(workdir) == trajectory(split)
    assert lines(workdir / "replays.jsonl") == lines(split / "replays.jsonl")
    for a, b in zip(*(jax.tree.leaves(state(run, STEPS)) for run in (workdir, split)), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_run_goes_on_with_fewer_devices_and_says_so(place, split):
    """From a checkpoint of which eight devices of two processes wrote their parts.

    Takes long because the step is compiled again for four devices; it protects that a run can move to another machine.
    """
    workdir, kept = place / "moved", STEPS - 5
    shutil.copytree(split, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    room = {"rollout__cache_bytes": (4 * 96 + 2 * 107) * 128}  # each device has twice the prompts now, and two slots
    group = Group(workdir, place / "cache", count=1, devices=4, **SPLIT | room)
    group.wait(0)
    moved = "it ran on a mesh of data 1, fsdp 8, tensor 1 and goes on with data 1, fsdp 4, tensor 1"
    assert f"from step {kept}; {moved}" in group.said(0)
    for row, other in zip(trajectory(split), trajectory(workdir), strict=True):
        assert other == pytest.approx(row, rel=1e-5, abs=1e-7)


def test_of_a_run_in_a_bucket_only_the_first_process_writes_more_than_its_shards(place, two):
    """Each process has a proxy of its own, so that its requests can be told apart.

    Takes long because two processes start; it protects that several hosts can have their run in a bucket.
    """
    workdir = f"{bucket_server.ROOT}/run"
    with (
        bucket_server.serving() as port,
        bucket_server.proxy(port) as first,
        bucket_server.proxy(port) as second,
        bucket_server.used_here(first.url),
    ):
        members = first, second
        group = Group(
            place / "unused", place / "cache", total_steps=COMPARED,
            each=lambda i: ([f"--workdir={workdir}"], members[i].environment),
        )  # fmt: skip
        group.wait(0, 0)
        assert "metrics:" in group.said(0) and "metrics:" not in group.said(1), group.all_said()
        assert trajectory(paths.at(workdir)) == trajectory(two)
        for a, b in zip(*(jax.tree.leaves(state(run, COMPARED)) for run in (paths.at(workdir), two)), strict=True):
            assert a.tobytes() == b.tobytes()
        assert {path.name for path in paths.at(workdir).iterdir()} == {path.name for path in two.iterdir()}
    assert not (place / "unused").exists()
    written = [path for method, path in second.seen if method != "GET"]
    assert written and all("checkpoints" in path and "process_1" in path for path in written), written
    for name in ("run.lock", "config.json", "metrics.jsonl", "replays.jsonl", "model.safetensors", "report.html"):
        assert any(method == "POST" and name in path for method, path in first.seen), name


def test_what_one_process_cannot_do_ends_all(place, two):
    """A refusal by the first process, flags that differ, and an error in one process only.

    Takes long because three pairs of processes start; it protects that none waits for ever for one that has ended.
    """
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


# Answers of the metadata server of a Cloud TPU host: worker-network-endpoints in its older and its newer form
FIRST = {"worker-network-endpoints": "a:1:10.0.0.2,b:2:10.0.0.3", "agent-worker-number": "0", "tpu-env": "ZONE: 'z'"}
GKE = {"TPU_WORKER_HOSTNAMES": "pod-0.tpu,pod-1.tpu", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "pod-0.tpu:8080"}


@pytest.mark.parametrize(
    ("metadata", "values", "launcher", "count", "index"),
    [
        (FIRST, {}, "gcetpu", 2, 0),
        (FIRST | {"worker-network-endpoints": "10.0.0.2,10.0.0.3", "agent-worker-number": "1"}, {}, "gcetpu", 2, 1),
        (FIRST | {"worker-network-endpoints": "10.0.0.2"}, {}, None, 1, 0),  # v5litepod-8 and the like: one host
        (FIRST | {"tpu-env": "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'"}, {}, "gcetpu", 4, 2),
        ({}, GKE, "gketpu", 2, 1),
        ({}, GKE | SLICES, "gketpu", 4, 3),
        ({}, GKE | {"TPU_WORKER_HOSTNAMES": "pod-0.tpu", "TPU_WORKER_ID": "0"}, None, 1, 0),
    ],
    ids=["gce-0", "gce-1", "gce-one-host", "gce-slices", "gke", "gke-slices", "gke-one-host"],
)
def test_cloud_tpu_hosts(given, monkeypatch, metadata, values, launcher, count, index):
    """jax's own detection, with libtpu installed and this answer of the metadata server."""
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    answers = {key: (text, 200) for key, text in metadata.items()}
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: answers.get(key, ("", 404)))
    given(**values)
    assert processes._launched_group() == (launcher and {"cluster_detection_method": launcher})
    found = cloud_tpu_cluster.GceTpuCluster if metadata else cloud_tpu_cluster.GkeTpuCluster
    assert (found.get_process_count(), found.get_process_id()) == (count, index)


def test_one_process_alone(given):
    given()
    with processes.joined(preemption=True):
        assert processes.first() and processes.share([1, 2, 3]) == [1, 2, 3]
        assert processes.total({"a": 2.5}) == {"a": 2.5} and processes.agree(lambda: [1]) == [1]
