"""The training program: every method, exact resume after SIGKILL and SIGTERM, what is compiled, refusals."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import CONFIG, ROOT, arguments, rows, small_config, start, trajectory

from hir_jax import config as configs
from hir_jax.data import dataset, native
from hir_jax.engine import Engine, bucket
from hir_jax.run.checkpoints import Checkpoints
from hir_jax.train import train

STEPS = 12
LONG = {"total_steps": STEPS, "eval_every": 4, "checkpoint_keep": 3, "constraints__workers": 1}


def state(workdir):
    """The newest checkpoint's TrainState."""
    engine = Engine(small_config(**LONG))
    with Checkpoints(workdir / "checkpoints", keep=3) as saved:
        return jax.device_get(saved.restore(saved.latest(), engine.abstract_state)[0])


# ---- methods, in this process ------------------------------------------------------------------------------------


EASY = ("tiny:no_postscript", "keywords:forbidden_words")


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "ilr"},
        {"method": "clr"},
        # the same four pairs in every step
        {"method": "sft", "rollout__max_response": 48, "data__size": 4, "learner__warmup_steps": 0},
        {"method": "hir_clr", "learner__baseline": "originals", "learner__std_floor": 0.3},
        # constraints that nearly any text meets, so that there are successes
        {"method": "rft", "data__min_constraints": 1, "data__max_constraints": 1, "data__constraint_ids": EASY},
        {"method": "dpo", "rollout__m": 3, "learner__dpo_pairs": "instruction"},
        {
            "method": "dpo",
            "rollout__m": 3,
            "learner__dpo_pairs": "both",
            "constraints__on_device": True,
            "learner__kl": 0.0,
        },
        {
            "learner__kl_in": "loss",
            "learner__average": "sequence",
            "learner__estimator": "rloo",
            "replay__schedule": "cosine",
        },
        {"replay__fill": "mask", "replay__scope": "even", "learner__estimator": "grpo"},
        {"replay__behaviour": "rewritten", "replay__scope": "group"},
        {"rollout__dtype": "bfloat16", "rollout__method": "inverse_cdf"},
    ],
    ids=lambda c: "-".join(str(v) for k, v in c.items() if not k.startswith(("data", "rollout"))),
)
def test_methods_run_and_give_finite_metrics(tmp_path, changes):
    """Takes long because each method and option is a step of its own to compile; nothing else trains with most of them."""
    config = small_config(**changes)
    configs.check(config)
    before = signal.getsignal(signal.SIGTERM)
    train(config, tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) is before
    found = rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in found] == [0, 1, 2]
    for row in found[1:]:
        assert (
            all(math.isfinite(value) for value in row.values()) and row["grad_norm"] > 0 and row["updates_skipped"] == 0
        )
    if config.method == "sft":
        assert found[2]["nll"] < found[1]["nll"]
    elif config.method == "dpo":
        assert found[1]["pairs"] > 0 and found[1]["loss"] == pytest.approx(math.log(2), abs=1e-3)  # policy = reference
        assert found[1]["samples"] == 4 * 4
    elif config.method in ("hir", "hir_clr"):
        assert found[1]["replays"] > 0
    elif config.method == "rft":
        assert found[1]["ila"] > 0 and found[1]["loss"] == pytest.approx(found[1]["nll"], rel=1e-4)
    else:
        assert found[1]["replays"] == 0 and found[1]["samples"] == 4 * 3
        # On-policy and without replays, the learner finds the log-probs that the sampler gave.
        assert found[1]["gap"] < 1e-4
    assert (tmp_path / "run" / "model" / "model.safetensors").stat().st_size > 0
    assert "<title>run</title>" in (tmp_path / "run" / "report.html").read_text()


def test_checks_on_the_device_change_nothing(tmp_path):
    """One compiled function a step, and the device's checks between two compiled halves, against the host's checks.

    Takes long because it compiles the step in eight forms; it protects that the fast forms train the same model as the plain one.
    """
    seen, rewritten = {}, {"replay__behaviour": "rewritten", "replay__fill": "mask"}
    for name, changes in {
        "host": {"constraints__on_device": False, "replay__fill": "mask"},
        "host, verified in parts": {
            "constraints__on_device": False,
            "replay__fill": "mask",
            "rollout__response_buckets": (3, 8),
        },
        "one function": {"constraints__on_device": True, "replay__fill": "mask"},
        "one function, slots": {"constraints__on_device": True, "replay__fill": "mask", "rollout__slots": 5},
        "host, rewritten": rewritten,
        "one function, rewritten": rewritten | {"constraints__on_device": True},
        "host, resampling": {"constraints__on_device": False},
        "device, resampling": {"constraints__on_device": True},
    }.items():
        config = small_config(
            total_steps=5, data__batch_prompts=8, eval_every=5, logging__replays_per_step=4, **changes
        )
        train(config, tmp_path / name)
        steps = trajectory(tmp_path / name)
        assert len(steps) == 6 and any(row.get("replays") for row in steps)
        replays = (tmp_path / name / "replays.jsonl").read_text()
        seen[name] = steps, replays, load_file(tmp_path / name / "model" / "model.safetensors")
        on_device = "seconds/step_on_device" in rows(tmp_path / name / "metrics.jsonl")[-1]
        assert on_device == name.startswith("one function")
    assert seen["host, resampling"][:2] == seen["device, resampling"][:2]
    # Two compilations of the same sums may round differently; nothing that is counted or chosen does.
    pairs = [(seen["host"], seen[name]) for name in ("host, verified in parts", "one function", "one function, slots")]
    pairs.append((seen["host, rewritten"], seen["one function, rewritten"]))
    for (steps, replays, _), (others, other_replays, _) in pairs:
        for step, other in zip(steps, others, strict=True):
            how_busy = {key: other[key] for key in ("decode_busy",) if key in other}  # 5 slots are seldom idle
            assert other == pytest.approx(step | how_busy, rel=1e-4, abs=1e-6)
            for key in ("ila", "cla", "unknown_constraints", "replays", "replay_integrity", "heldout_cla"):
                assert other.get(key) == step.get(key)
        for row, other in zip(replays.splitlines(), other_replays.splitlines(), strict=True):
            assert json.loads(other) == json.loads(row) | {"score": pytest.approx(json.loads(row)["score"])}
    for one, other, tolerance in (
        ("host", "host, verified in parts", 1e-6),
        ("host", "one function", 1e-6),
        ("host", "one function, slots", 1e-5),
        ("host, rewritten", "one function, rewritten", 1e-6),
        ("host, resampling", "device, resampling", 0),
    ):
        for tensor, values in seen[one][2].items():
            np.testing.assert_allclose(values, seen[other][2][tensor], rtol=0, atol=tolerance, err_msg=tensor)


def test_pi_old_of_the_trainer_is_the_same_in_one_function(tmp_path):
    seen = []
    for name in ("host", "device"):
        how = {
            "rollout__old_logp": "trainer",
            "rollout__dtype": "bfloat16",
            "replay__fill": "mask",
            "learner__mini_batches": 2,
        }
        train(small_config(constraints__on_device=name == "device", **how), tmp_path / name)
        seen.append(trajectory(tmp_path / name)[1:])
    for step, other in zip(*seen, strict=True):
        assert other == pytest.approx(step, rel=1e-3, abs=1e-6) and step["sampler_gap"] > 1e-4


def test_keys_outside_the_trajectory_may_change_and_a_finished_run_goes_on(tmp_path, capsys):
    run = tmp_path / "run"
    train(small_config(method="ilr"), run)
    (run / "report.html").unlink()
    (run / "report.html").mkdir()  # a page that cannot be written is no reason to fail
    train(small_config(method="ilr", total_steps=3, eval_every=3, logging__tensorboard=False, checkpoint_keep=1), run)
    assert "from step 2" in capsys.readouterr().out
    (run / "report.html").rmdir()
    found = rows(run / "metrics.jsonl")
    assert [row["step"] for row in found] == [0, 1, 2, 3] and "heldout_ila" in found[3]
    with pytest.raises(ValueError, match=r"changed: learner.learning_rate, seed\."):
        train(small_config(method="ilr", seed=5, learner__learning_rate=0.5), run)
    assert rows(run / "metrics.jsonl") == found


@pytest.mark.parametrize(("length", "expected"), [(1, 8), (8, 8), (9, 16), (17, 40), (40, 40)])
def test_smallest_bucket(length, expected):
    assert bucket(length, (16, 8), 40) == expected


# ---- stopping and starting again, in processes of their own --------------------------------------------------------


@pytest.fixture(scope="module")
def programs_cache(tmp_path_factory):
    """The compilation cache of the runs in processes of their own; `undisturbed` finds it empty."""
    return str(tmp_path_factory.mktemp("compiled_by_programs"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, programs_cache):
    """A run that nobody stopped; it compiles everything itself, the others take it from the cache.

    Takes long because the program starts and compiles as a user's does; with it the tests below protect that a run stopped or
    killed at any point ends with the same bytes.
    """
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(workdir, **LONG, checkpoint_every=1, compilation_cache=programs_cache)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert "Traceback" not in output + errors
    (workdir.parent / "output").write_text(output)
    return workdir


def compiled(output) -> tuple[int, float, int]:
    """What a program says at its end: functions compiled, seconds, how many of them came from the cache."""
    found = re.search(r"(\d+) compilations, ([\d.]+) s; (\d+) of them read from the cache", output)
    assert found, output
    return int(found[1]), float(found[2]), int(found[3])


def wait_for(process, condition):
    """Until the condition holds; fails if the program ends before."""
    while not condition():
        assert process.poll() is None, process.communicate(timeout=400)
        time.sleep(0.001)


def resume(workdir, undisturbed, **changes) -> int:
    """Starts the program again, compares its end with the undisturbed run's, and returns the step it resumed from. It
    compiles nothing that takes long, being a second start of the same config: what is left is small, and not in the cache."""
    process = start(workdir, **LONG, **changes)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    said = re.search(r"resuming .*\s+from\s+step\s+(\d+)", output)
    assert said, output
    count, seconds, cached = compiled(output)
    assert 4 <= cached <= count, output  # all of the step's functions at least
    _, first_seconds, first_cached = compiled((undisturbed.parent / "output").read_text())
    assert first_cached == 0 and seconds < first_seconds / 4, (seconds, first_seconds)
    assert trajectory(workdir) == trajectory(undisturbed)
    for name in ("replays.jsonl", "kept.jsonl"):
        assert rows(workdir / name) == rows(undisturbed / name)
    expected, found = state(undisturbed), state(workdir)
    assert int(found.step) == STEPS
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.tobytes() == b.tobytes()
    name = "model/model.safetensors"
    assert (workdir / name).read_bytes() == (undisturbed / name).read_bytes()
    return int(said[1])


def test_undisturbed_run_records_every_step(undisturbed):
    found = rows(undisturbed / "metrics.jsonl")
    assert [row["step"] for row in found] == list(range(STEPS + 1))
    assert [row["step"] for row in found if "heldout_ila" in row] == [0, 4, 8, 12]
    assert sum(row.get("replays", 0) for row in found) > 0
    for row in rows(undisturbed / "kept.jsonl"):
        total, metrics = sum(kept for kept, _ in row["kept"].values()), found[row["step"]]
        assert total == pytest.approx(metrics["replays"] * metrics["replay_kept_constraints"])
    assert {row["step"] for row in rows(undisturbed / "kept.jsonl")} == {r["step"] for r in found if r.get("replays")}
    pairs = rows(undisturbed / "replays.jsonl")
    assert pairs and all(0 < pair["integrity"] < 1 and pair["rewritten"] != pair["original"] for pair in pairs)
    assert json.loads((undisturbed / "config.json").read_text())["model.hidden_size"] == 32


def test_nothing_is_compiled_after_warm_up(undisturbed):
    """Exempt are the first step, the one after the first save, and the first that resamples."""
    seen_resampling = False
    for row in rows(undisturbed / "metrics.jsonl")[1:]:
        first_resampling = row["resample_rounds"] > 0 and not seen_resampling
        seen_resampling |= first_resampling
        if row["step"] > 2 and not first_resampling:
            assert row["seconds/compiling"] == 0.0, row["step"]


def test_killed_in_the_next_save_it_resumes_exactly(tmp_path, undisturbed, programs_cache):
    """Takes long because the program starts twice; it protects the checkpoint before the one whose writing was cut off."""
    workdir = tmp_path / "run"
    process = start(workdir, **LONG, checkpoint_every=1, compilation_cache=programs_cache)

    def saving_the_next():
        names = [p.name for p in (workdir / "checkpoints").glob("*")]
        return any(n.isdigit() for n in names) and any("tmp" in n for n in names)

    wait_for(process, saving_the_next)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=400)
    assert process.returncode == -signal.SIGKILL
    assert 1 <= resume(workdir, undisturbed, checkpoint_every=1, compilation_cache=programs_cache) < STEPS


def test_sigterm_saves_and_the_run_resumes_exactly(tmp_path, undisturbed, programs_cache):
    """Takes long because the program starts twice; it protects what a machine that is taken away leaves behind."""
    workdir = tmp_path / "run"
    metrics = workdir / "metrics.jsonl"
    process = start(workdir, **LONG, compilation_cache=programs_cache)
    wait_for(process, lambda: metrics.exists() and '"step": 2' in metrics.read_text())
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    stopped = re.search(r"stopped by SIGTERM after step\s+(\d+)", output)
    assert stopped and 2 <= int(stopped[1]) < STEPS, output
    assert resume(workdir, undisturbed, compilation_cache=programs_cache) == int(stopped[1])


# ---- bad input -----------------------------------------------------------------------------------------------------


def write_native(path, broken_line=None):
    """Three rows, the third replaced by `broken_line`."""
    data = dataset.witness.generate(0, 3, split="train", min_constraints=2, max_constraints=2, templates=("type1",))
    native.write(path, [q for q, _ in data])
    if broken_line is not None:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:2]) + broken_line, encoding="utf-8")
    return path


def truncated_model(model, target):
    shutil.copytree(model, target)
    weights = target / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return target


def broken_checkpoint(run, target):
    shutil.copytree(run, target)
    newest = max((target / "checkpoints").iterdir(), key=lambda p: int(p.name))
    for path in newest.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:10])
    return target, newest


def foreign(directory):
    directory.mkdir()
    (directory / "metrics.jsonl").write_text("mine\n")
    return directory


@pytest.fixture(scope="module")
def refusals(undisturbed, tmp_path_factory):
    """name -> (status, stdout, stderr, expected words), of programs that were given something bad."""
    d = tmp_path_factory.mktemp("bad")
    one = {"data__source": "jsonl"}
    corrupt = write_native(d / "corrupt.jsonl", '{"task": "half a row\n')
    unknown = write_native(
        d / "unknown.jsonl", '{"task": "a", "constraints": [{"id": "keyword:existence"}], "template": "type1"}\n'
    )
    model = truncated_model(undisturbed / "model", d / "model")
    damaged, newest = broken_checkpoint(undisturbed, d / "damaged")
    (d / "file").write_text("a file\n")
    same = LONG | {"checkpoint_every": 1}
    cases = {
        "unknown key": ([*arguments(d / "new"), "--config.rollout.temprature=1"], ["did you mean --config.rollout.temperature"]),
        "wrong type": (arguments(d / "new", total_steps="abc"), ["--config.total_steps=abc"]),
        "wrong value": (arguments(d / "new", method="ppo"), ["config.method is 'ppo'", "hir, ilr, clr, hir_clr, sft, rft, dpo"]),
        "wrong tuple": (arguments(d / "new", data__prompt_buckets="('a',)"), ["config.data.prompt_buckets", "'a'"]),
        "wrong template": (arguments(d / "new", data__templates="('type9',)"), ["type9", "type1, type2"]),
        "stray argument": ([*arguments(d / "new"), "seed=1"], ["unexpected argument 'seed=1'"]),
        "no workdir": ([f"--config={CONFIG}"], ["--workdir"]),
        "no config": (["--config=configs/none.py", f"--workdir={d / 'new'}"], ["configs/none.py: no such config file"]),
        "corrupt row": (arguments(d / "new", **one, data__path=corrupt), [f"{corrupt}:3: not JSON"]),
        "unknown constraint": (arguments(d / "new", **one, data__path=unknown), [f"{unknown}:3", "keyword:existence"]),
        "missing data": (arguments(d / "new", **one, data__path=d / "none.jsonl"), [f"{d / 'none.jsonl'}: cannot be read"]),
        "truncated weights": (arguments(d / "new", model__checkpoint=model), [str(model / "model.safetensors")]),
        "missing weights": (arguments(d / "new", model__checkpoint=d / "none"), [f"{d / 'none'}: no such directory"]),
        "mesh": (arguments(d / "new", mesh__data=3), ["wants 3 devices, there are 1"]),
        "other config": (
            arguments(undisturbed, **same | {"seed": 1, "replay__eta": 0.5}), ["changed: replay.eta, seed.", str(undisturbed)]
        ),
        "foreign directory": (arguments(foreign(d / "foreign")), ["holds metrics.jsonl but no config.json"]),
        "workdir is a file": (arguments(d / "file"), [f"{d / 'file'}: not a directory"]),
        "broken checkpoint": (arguments(damaged, **same), [f"{newest}: cannot be read"]),
    }  # fmt: skip
    before = contents(d) | contents(undisturbed)
    answers = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "program_server.py")],
        input=json.dumps([["hir_jax.train", given] for given, _ in cases.values()]),
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = {
        name: (*answer, words)
        for (name, (_, words)), answer in zip(cases.items(), json.loads(answers.stdout), strict=True)
    }
    return found, before, contents(d) | contents(undisturbed)


def contents(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_bad_input_gets_one_message_and_a_status(refusals):
    for name, (status, output, errors, words) in refusals[0].items():
        assert status == 1, (name, output, errors)
        if name == "broken checkpoint":
            # Threads of the storage library report the reads that it gave up on, and not always in lines of their own.
            errors = errors[errors.rindex("error: ") :]
        messages = [line for line in errors.splitlines() if line]
        assert len(messages) == 1 and messages[0].startswith("error: "), (name, errors)
        assert "Traceback" not in output
        for word in words:
            assert word in messages[0], (name, messages)


def test_bad_input_overwrites_nothing(refusals):
    _, before, after = refusals
    assert before.keys() == after.keys()
    assert [str(path) for path in before if before[path] != after[path]] == []


# ---- overrides -------------------------------------------------------------------------------------------------------


def test_tuples_can_be_given_on_the_command_line(undisturbed):
    """`--config.data.templates=('type1',)` and `--config.data.prompt_buckets=()` came through as tuples."""
    found = json.loads((undisturbed / "config.json").read_text())
    assert found["data.templates"] == ["type1"] and found["data.prompt_buckets"] == []
    assert np.isclose(found["learner.kl"], 0.01)
