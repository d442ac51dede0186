"""The bench program on the tiny model, and the JSON that it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import small_config

from hir_jax.bench import __main__ as bench
from hir_jax.bench import machine, peer_hf, scaling, steps, table, verify
from hir_jax.bench.learner import Learner
from hir_jax.bench.rollout import Rollout, bench_engine
from hir_jax.bench.sizes import PROMPT_LONGEST, Sizes, learner_lengths
from hir_jax.data.generate import synthesis
from hir_jax.types import InputError

ROOT = Path(__file__).parents[1]
SMALL = (
    "--config=configs/tiny_hir.py", "--config.model.num_layers=1", "--config.model.hidden_size=16",
    "--config.model.intermediate_size=32", "--config.compilation_cache=", "--config.data.size=24", "--prompts=2",
    "--samples=3", "--new_tokens=8", "--tail_tokens=20", "--slots=2", "--verify_rows=4", "--rounds=2", "--steps=3",
    "--config.data.batch_prompts=2", "--config.constraints.on_device=True", "--config.constraints.workers=2",
)  # fmt: skip


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "hir_jax.bench", *SMALL, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The phases that compile little, in one process.

    Takes long because five phases are measured, three of them compiled first; the tests below protect that the figures agree.
    """
    directory = tmp_path_factory.mktemp("bench")
    output, traces = directory / "bench.json", directory / "traces"
    found = run("--phase=rollout,learner,step,encode,verify", f"--output={output}", f"--trace={traces}")
    assert found.returncode == 0, found.stderr
    figures = json.loads(found.stdout.splitlines()[-1])
    assert json.loads(output.read_text()) == figures
    for name in ("rollout", "learner_even", "learner_packed"):
        assert (
            len(list((traces / name).rglob("*.xplane.pb"))) == len(list((traces / name).rglob("*.trace.json.gz"))) == 1
        )
    return figures


def test_head_of_the_report(report):
    assert report["versions"]["jax"] and report["date"].endswith("Z") and len(report["load_average"]) == 2
    assert set(report["instruction_sets"]) <= {"avx2", "avx512f", "amx_tile"}
    assert report["peak_memory_gb"] > 0.05 and report["matmul_flops_per_s"]["float32"] > 1e8
    assert report["read_bytes_per_s"] > 1e7 and report["config"]["model.num_layers"] == 1
    assert report["command"].startswith("python -m hir_jax.bench --config=") and report["commit"]
    assert report["sizes"]["samples"] == 3 and report["config_file"] == "configs/tiny_hir.py"


def test_rollout_and_learner(report):
    rollout, learner = report["rollout"], report["learner"]
    assert rollout["tokens"] == 2 * 3 * 8 and rollout["stops"] == "off"
    assert learner["even"]["tokens"] == 6 * (80 + 8) and learner["even"]["padding_given"] == 0
    assert 0 < learner["packed"]["padding_given"] < 1 and learner["packed"]["tokens"] < 6 * (96 + 8)
    peak = report["matmul_flops_per_s"]["float32"]
    for part in (rollout, learner["even"], learner["packed"], learner["products"]):
        assert part["tokens_per_s"] == pytest.approx(part["tokens"] / part["seconds"]["median"])
        assert part["flops_per_s"] == pytest.approx(part["flops"] / part["seconds"]["median"])
        assert part["fraction_of_matmul"] == pytest.approx(part["flops_per_s"] / peak)
        assert part["compile_seconds"] > 0 and part["compile_seconds_after_warm_up"] == 0
        assert len(part["rounds"]) == 2 and "times_peer" not in part
    assert rollout["fraction_of_floor"] == pytest.approx(rollout["floor_seconds"] / rollout["seconds"]["median"])
    assert min(rollout["decode_step_floor_seconds"].values()) > 0


@pytest.fixture(scope="module")
def longer_report():
    resampling = "--config.constraints.on_device=False", "--config.replay.fill=resample"
    found = run("--phase=long_tail,grpo", *resampling, "--rounds=3")
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.slow
def test_long_tail(longer_report):
    report = longer_report
    for name in ("synthetic", "real"):
        part = report["long_tail"][name]
        assert part["rows"] == 6 and part["slots"] == 2
        assert 0 < part["utilisation"] <= 1 and 0 <= part["peer_utilisation"] <= 1
        assert part["times_peer"]["median"] > 0
    assert report["long_tail"]["synthetic"]["peer_steps"] == 20
    assert report["long_tail"]["real"]["rows_with_the_plain_tokens"] > 0.5


def test_steps(report):
    part = report["step"]
    assert part["steps"] + part["steps_compiling"] == 3 and part["steps"] > 0 and part["steps_compiling"] > 0
    assert part["sequences"] == 16 and 0 <= part["overhead_share"] < 1 and 0 < part["padding"] < 1
    assert part["steps_per_s"] > 0 and part["phases"]["step_on_device"] > 0 and part["checkpoints"] >= 1
    assert part["compile_seconds"] > 0


def test_steps_that_compile_are_left_out_and_counted():
    """Worked by hand for six steps: the first, one in a new prompt bucket and one after the first save compile."""

    def line(step, compiling):
        return {
            "step": step, "seconds/data": 1.0, "seconds/update": 7.0, "seconds/step": 9.0, "tokens_per_s": 10.0,
            "seconds/compiling": compiling, "padding": step / 100, "shared": step / 10,
        }  # fmt: skip

    lines = [line(i + 1, compiling) for i, compiling in enumerate((30.0, 0.0, 0.1, 4.0, 0.0, 0.0))]
    found = steps.steady(lines, [50.0, 9.0, 9.5, 14.0, 10.0, 11.0], checkpoint_every=2)
    assert found["steps"] == 3 and found["steps_compiling"] == 3
    assert found["seconds"] == {"median": 10.0, "min": 9.0, "max": 11.0} and found["steps_per_s"] == 0.1
    assert found["padding"] == 0.05 and found["shared"] == 0.5
    assert found["checkpoints"] == 1  # saved after the second, the fourth and the sixth
    assert found["overhead_share"] == pytest.approx(0.3) and found["sampled_tokens_per_s"] == 9.0
    with pytest.raises(InputError, match="each of the 2 steps: give more of them, as --steps"):
        steps.steady([line(1, 9.0), line(2, 1.0)], [9.0, 9.0], checkpoint_every=1)


def test_both_starts_are_told_from_what_the_program_prints():
    first = steps.start_figures(
        80.0, 50.0, "metrics\n240 compilations, 52.0 s; 0 of them read from the cache\nreport: x\n"
    )
    second = steps.start_figures(20.0, 15.0, "240 compilations, 6.5 s; 31 of them read from the cache\n")
    assert second == {
        "seconds": 20.0, "seconds_to_step": 5.0, "compilations": 240, "compile_seconds": 6.5, "from_cache": 31,
    }  # fmt: skip
    found = steps.compared(first, second)
    assert found["seconds_ratio"] == 0.25 and found["compile_seconds_ratio"] == 0.125
    with pytest.raises(RuntimeError, match="did not say what it compiled"):
        steps.start_figures(1.0, 1.0, "Killed\n")


@pytest.mark.slow
def test_a_config_is_started_twice():
    found = run("--phase=start", "--config.constraints.on_device=False")
    assert found.returncode == 0, found.stderr
    part = json.loads(found.stdout.splitlines()[-1])["start"]
    for one in (part["first"], part["second"]):
        assert 0 < one["seconds_to_step"] < one["seconds"] and 0 < one["compile_seconds"] < one["seconds"]
        assert one["from_cache"] <= one["compilations"]
    assert part["second"]["from_cache"] > part["first"]["from_cache"]


@pytest.mark.slow
def test_whole_steps_of_both_methods(longer_report):
    assert longer_report["grpo"]["compile_seconds_after_warm_up"] == 0
    for method, sampled in (("ilr", 6), ("hir", 2)):
        part = longer_report["grpo"][method]
        assert part["trained_sequences"] == 6 and sampled <= part["sampled_sequences"] <= 6 and 0 <= part["padding"] < 1
        assert 0 < part["shared"] < 1
        assert part["tokens_per_s"] == pytest.approx(6 * 8 / part["seconds"]["median"])


def test_encoding_of_many_constraints(report):
    part = report["encode"]
    assert (part["constraints"], part["words"], part["rows"]) == (30, 8, 16)
    assert 0 < part["seconds"]["min"] <= part["seconds"]["median"] <= part["seconds"]["max"]
    (line,) = table.PHASES["encode"](part, report)
    assert line.what == "a row of 30 numbered constraints of 8 words"


def test_host_checks(report):
    part = report["verify"]
    assert (part["rows"], part["constraints"], part["workers"]) == (4, 6, 2)
    for name in ("seconds", "pool_seconds", "language_seconds"):
        assert 0 < part[name]["min"] <= part[name]["median"] <= part[name]["max"]
    assert part["checks_per_s"] == pytest.approx(4 * 6 / part["core_seconds"])
    assert part["pool_checks_per_s"] == pytest.approx(2 * 4 * 6 / part["pool_core_seconds"])
    assert part["language_share"] == pytest.approx(part["language_seconds"]["median"] / part["core_seconds"])


@pytest.mark.slow
def test_the_report_becomes_markdown(report, longer_report):
    text = table.markdown(longer_report | report)
    assert "rollout, 6 x (80 + 8)" in text and "hir step" in text and "| --- |" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1  # as many cells in each
    assert "times as fast" in rows[0]  # continuous batching has the plain loop beside it


@pytest.mark.slow
def test_scaling_of_one_case_on_two_virtual_devices():
    case = scaling.Case(batch=8, response=4, hidden=128, layers=1)
    found = scaling.in_a_process(2, case, rounds=1)
    assert (found["devices"], found["batch"], found["parameters"]) == (2, 8, 128 * 8192 + 128 * (2 * 192 + 3 * 384))
    for phase, tokens in (("rollout", 8 * 4), ("learner", 8 * (64 + 4))):
        assert found[phase]["tokens_per_s"] == pytest.approx(tokens / found[phase]["seconds"]["median"])


def test_rows_to_verify_are_of_all_types_and_of_the_stated_length():
    rows = verify.batch(0, 200)
    others = {r.response for r in verify.batch(1, 9)}
    assert rows == verify.batch(0, 200) and not {r.response for r in rows} & others
    assert {c.id for row in rows for c in row.constraints} == set(synthesis.draws_of(("ifeval",)))
    assert all(len({c.id for c in row.constraints}) == 6 for row in rows)
    words = sum(len(row.response.split()) for row in rows) / len(rows)
    assert 280 < verify.TOKENS_PER_WORD * words < 320


def test_torch_runs_beside_ours():
    """Takes long because it loads torch and measures both sides; it protects the comparison with it."""
    pytest.importorskip("torch", reason="torch is optional: make test TORCH=1")
    found = run("--peer=hf")
    assert found.returncode == 0, found.stderr
    figures = json.loads(found.stdout.splitlines()[-1])
    for part in (figures["rollout"], *(figures["learner"][name] for name in ("even", "packed", "products"))):
        assert 0 < part["times_peer"]["min"] <= part["times_peer"]["max"]


def test_each_torch_model_has_the_dtype_of_our_side():
    torch = pytest.importorskip("torch", reason="torch is optional: make test TORCH=1")
    sizes = Sizes(prompts=2, samples=2, new_tokens=4)
    engine = bench_engine(small_config(rollout__dtype="bfloat16"), sizes.new_tokens)
    params = engine.load_params()
    sampler = peer_hf.Rollout(engine, params, Rollout(engine, params, sizes))
    lengths = learner_lengths(sizes.rows, sizes.new_tokens)
    learner = peer_hf.Learner(engine, params, Learner(engine, params, *lengths, PROMPT_LONGEST))
    assert (sampler.model.dtype, learner.model.dtype) == (torch.bfloat16, torch.float32)
    sampler.run()


@pytest.mark.slow
def test_trl_runs_beside_ours():
    pytest.importorskip("torch", reason="torch is optional: make test TORCH=1")
    pytest.importorskip("trl", reason="TRL is optional: make peers")
    found = run("--peer=trl", "--rounds=1")
    assert found.returncode == 0, found.stderr
    part = json.loads(found.stdout.splitlines()[-1])["grpo"]
    assert set(part["peer_variants"]) == {"gradient_checkpointing=True", "gradient_checkpointing=False"}
    for name, variant in part["peer_variants"].items():
        settings = variant["settings"]
        assert variant["sampled_sequences"] == 6 and settings["num_generations"] == 3
        assert name == f"gradient_checkpointing={settings['gradient_checkpointing']}" and settings["bf16"] is False
    fastest = part["peer_variants"][part["peer_fastest"]]
    assert fastest["seconds"]["median"] == min(v["seconds"]["median"] for v in part["peer_variants"].values())
    assert part["ilr"]["times_peer"] == fastest["ilr"]["times_peer"]


def test_unknown_phase_and_missing_packages_give_one_message(monkeypatch):
    found = run("--phase=rolout")
    assert found.returncode != 0 and "rolout" in found.stderr and "Traceback" not in found.stderr
    with pytest.raises(InputError, match="--peer=trl is measured in grpo alone, not in rollout, verify"):
        bench._phases(["rollout", "verify"], "trl", False)
    assert bench._phases([], "hf", True) == ["rollout", "learner", "scaling"]
    assert bench._phases([], None, True) == ["scaling"]
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"torch and trl.*make peers"):
        machine.require(("torch", "trl"), "--peer=trl")
