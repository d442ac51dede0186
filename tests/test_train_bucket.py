"""The programs on a run in a bucket, against fake-gcs-server: killed and resumed, evaluated, exported, reported, refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import bucket_server
import pytest
from bucket_server import ROOT
from small_runs import CONFIG, arguments, small_config
from small_runs import ROOT as CHECKOUT

from hir_jax import paths
from hir_jax.data import dataset, native
from hir_jax.run.files import RunError
from hir_jax.run.lock import NAME as LOCK
from hir_jax.textfiles import read_jsonl
from hir_jax.train import train

STEPS = 6
# wherever a program starts, it is that of this checkout
IMPORTS = {"PYTHONPATH": f"{CHECKOUT}:{os.environ.get('PYTHONPATH', '')}"}
RUN = {
    "total_steps": STEPS, "eval_every": 3, "checkpoint_every": 3, "checkpoint_keep": 2, "lora__rank": 2,
    "replay__fill": "mask",
}  # fmt: skip


@pytest.fixture(scope="module")
def port():
    with bucket_server.serving() as port:
        yield port


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of a local file, which are also in the bucket (`bucket`)."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = dataset.witness.generate(0, 24, split="train", min_constraints=3, max_constraints=4, templates=("type1",))
    native.write(path, [row for row, _ in rows])
    return path


@pytest.fixture(scope="module")
def local(data, tmp_path_factory):
    """The run on local files, undisturbed."""
    workdir = tmp_path_factory.mktemp("local") / "run"
    train(small_config(**RUN, data__source="jsonl", data__path=str(data), data__eval_path=str(data)), workdir)
    return workdir


@pytest.fixture(scope="module")
def bucket(port, local, data):
    """(its directory in the bucket, the environment of a sound server) of the same run, killed in its second save and resumed,
    on a server that fails one request in ten. Takes long because the program starts twice, and waits before each request that
    it makes again; it protects that a run in a bucket is the run on a disk."""
    with bucket_server.proxy(port) as sound, bucket_server.used_here(sound.url):
        paths.at(f"{ROOT}/rows.jsonl").write_text(data.read_text())
        workdir, first = paths.at(f"{ROOT}/runs/a"), len(sound.seen)
        changes = {"data__source": "jsonl", "data__path": f"{ROOT}/rows.jsonl", "data__eval_path": f"{ROOT}/rows.jsonl"}
        with bucket_server.proxy(port, bucket_server.every_tenth()) as faulty:
            given = workdir, RUN | changes
            process = begin(faulty, *given)
            while not saving_the_second(faulty.seen):
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            process = begin(faulty, *given)
            output, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors
            assert re.search(rf"resuming {workdir} from step \d", output), output
            assert len(faulty.seen) > 100 and first == len(sound.seen)
        yield workdir, sound.environment


def saving_the_second(seen):
    return any(method == "POST" and "runs/a/checkpoints/6" in path for method, path in seen)


def begin(server, workdir, changes):
    variables = os.environ | server.environment
    command = [sys.executable, "-m", "hir_jax.train", *arguments(workdir, **changes)]
    return subprocess.Popen(
        command, cwd=CHECKOUT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def programs(requests, variables, directory=CHECKOUT):
    """[status, stdout, stderr] of each program, by a server of programs: one process imports jax for all."""
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "tests" / "program_server.py")], input=json.dumps(requests), cwd=directory,
        env=os.environ | variables | IMPORTS, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def lines(path):
    """The rows of a file without what a clock says."""
    clocks = re.compile("seconds|per_s")
    return [{k: v for k, v in row.items() if not clocks.search(k)} for _, row in read_jsonl(path)]


def test_killed_and_resumed_it_is_the_run_on_a_disk(local, bucket):
    workdir, _ = bucket
    for name in ("metrics", "replays", "kept"):
        assert lines(workdir / f"{name}.jsonl") == lines(local / f"{name}.jsonl") != []
    assert [row["step"] for row in lines(workdir / "metrics.jsonl")] == list(range(STEPS + 1))
    files = {path.name for path in (local / "model").iterdir()}
    assert {path.name for path in (workdir / "model").iterdir()} == files and "model.safetensors" in files
    for name in files - {"config.json"}:
        assert (workdir / "model" / name).read_bytes() == (local / "model" / name).read_bytes(), name
    steps = {path.name for path in (local / "checkpoints").iterdir()}
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == steps == {"3", "6"}
    assert len(list((workdir / "tensorboard").iterdir())) == 2
    assert "</html>" in (workdir / "report.html").read_text() and not (workdir / LOCK).exists()


def test_the_other_programs_read_and_write_the_bucket(local, bucket, tmp_path):
    """Each on the local run and on that in the bucket: the same results."""
    workdir, variables = bucket
    asked = ["--benchmark=heldout", "--temperature=1", "--samples=2"]
    requests = []
    for run, out in ((local, tmp_path), (workdir, f"{ROOT}/out")):
        requests += [
            ["hir_jax.evaluate", [f"--workdir={run}@3,{run}", *asked]],
            ["hir_jax.export", [f"--workdir={run}", f"--output={out}/whole", "--step=3"]],
            ["hir_jax.export", [f"--workdir={run}", f"--output={out}/adapter", "--adapter"]],
            ["hir_jax.run.report", [f"a={run}", f"--output={out}/page.html"]],
        ]
    requests.append(["hir_jax.export", [f"--workdir={workdir}", f"--output={ROOT}/out/whole"]])
    *ended, refused = programs(requests, variables)
    assert [status for status, _, _ in ended] == [0] * 8, ended
    assert refused[0] == 1 and "gs://hir-test/out/whole: exists and is not empty" in refused[2], refused
    here, there = (json.loads(ended[place][1].splitlines()[-1]) for place in (0, 4))
    assert [*here["runs"].values()] == [*there["runs"].values()]
    for step in (3, STEPS):
        name = f"evaluations/heldout-step-{step}-t1-n2/responses.jsonl"
        assert lines(workdir / name) == lines(local / name)
    out = paths.at(f"{ROOT}/out")
    for name in ("whole/model.safetensors", "adapter/adapter_model.safetensors", "whole/tokenizer.json"):
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes(), name
    assert (out / "whole" / "config.json").exists() and "</html>" in (out / "page.html").read_text()


def test_a_model_in_a_bucket_is_trained_and_the_lock_refuses_a_second(bucket, port):
    """Uploads of rows take two seconds; SIGTERM leaves all of them there."""
    workdir, changes = paths.at(f"{ROOT}/runs/b"), RUN | {"total_steps": 100_000, "checkpoint_every": 100_000}
    changes |= {"model__checkpoint": f"{ROOT}/runs/a/model", "save_model": False}

    def slow(method, path):
        return 2.0 if method == "POST" and "runs/b/" in path and "jsonl" in path else None

    with bucket_server.proxy(port, slow) as server:
        process = begin(server, workdir, changes)
        while not (workdir / "metrics.jsonl").exists() or len(lines(workdir / "metrics.jsonl")) < 4:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        with pytest.raises(RunError, match=rf"{workdir}: a run is under way there \(process {process.pid} on "):
            train(small_config(**changes), workdir)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    stopped = int(re.search(r"stopped by SIGTERM after step\s+(\d+)", output)[1])
    assert [row["step"] for row in lines(workdir / "metrics.jsonl")] == list(range(stopped + 1))
    assert (workdir / "checkpoints" / str(stopped)).is_dir()
    assert not (workdir / LOCK).exists()


def test_what_is_not_there_is_one_message_and_leaves_nothing(port, tmp_path):
    given = arguments(tmp_path / "run", **RUN | {"data__source": "jsonl", "data__path": "x"})[1:]
    given = [f"--config={CHECKOUT / CONFIG}", *given]
    absent = f"--config.data.path={ROOT}/absent.jsonl"
    requests = [
        ["hir_jax.train", [*given, "--workdir=gs://no-such/run"]],
        ["hir_jax.train", [*given, absent]],
        ["hir_jax.train", [*given, absent, f"--workdir={ROOT}/runs/empty"]],
        ["hir_jax.evaluate", [f"--workdir={ROOT}/runs/empty", "--benchmark=heldout"]],
        ["hir_jax.run.report", [f"{ROOT}/runs/empty"]],
    ]
    with bucket_server.proxy(port) as server, bucket_server.used_here(server.url):
        ended = programs(requests, server.environment, tmp_path)
        assert not paths.at(f"{ROOT}/runs/empty").exists()
    words = ["error: gs://no-such: no such bucket", *[f"error: {ROOT}/absent.jsonl: cannot be read: No such file"] * 2]
    words += [f"error: {ROOT}/runs/empty: no such run", f"error: {ROOT}/runs/empty: not a directory"]
    for (status, output, errors), wanted in zip(ended, words, strict=True):
        assert status == 1 and "Traceback" not in output + errors, errors
        assert wanted in errors.splitlines()[-1], errors
    assert not list(tmp_path.iterdir())
