"""The bench program on the tiny model: its JSON, and the FLOP counts against hand-worked numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hir_jax import bench, bench_verify, peers
from hir_jax.instructions import synthesis
from hir_jax.models.config import ModelConfig
from hir_jax.types import InputError

ROOT = Path(__file__).parents[1]
SMALL = (
    "--config=configs/tiny_hir.py", "--config.model.num_layers=1", "--config.model.hidden_size=16",
    "--config.model.intermediate_size=32", "--prompts=2", "--samples=2", "--new_tokens=3", "--learner_rows=2",
    "--learner_columns=100", "--verify_rows=4", "--rounds=2",
)  # fmt: skip
# weights of matrices: 2 layers of 8 x 4 (q), 2 of 8 x 2 (k, v), 4 x 8 (o), 3 of 8 x 16: 2 * (32 + 32 + 32 + 384) = 960;
# output projection 8 x 10 = 80; attention 4 * (2 heads * 2) * 2 layers = 32 a pair
MODEL = ModelConfig("llama", 10, 8, 16, 2, 2, 1, 2)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "hir_jax.bench", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False,
    )  # fmt: skip


def test_flops_worked_by_hand():
    layers = 2 * (8 * 4 + 2 * 8 * 2 + 4 * 8 + 3 * 8 * 16)
    assert layers == 960
    assert bench.forward_flops(MODEL, tokens=5, unembedded=3, pairs=7) == 2 * (960 * 5 + 80 * 3) + 32 * 7 == 10304
    # prompt of 3: 3 tokens, 6 pairs, 1 projection; two rows, each a 4th and a 5th token: 9 pairs, 2 projections
    prefill, decode = 2 * (960 * 3 + 80) + 32 * 6, 2 * (960 * 2 + 80 * 2) + 32 * 9
    assert bench.rollout_flops(MODEL, [3], samples=2, new_tokens=3) == prefill + 2 * decode == 15008
    # prompt of 3 and response of 2: 4 tokens are read, 10 pairs, 2 projections; forward and twice as much backward
    assert bench.learner_flops(MODEL, [3, 3], responses=2) == 2 * 3 * (2 * (960 * 4 + 80 * 2) + 32 * 10) == 49920


def test_the_program_prints_and_writes_one_json_object(tmp_path):
    found = run(*SMALL, f"--output={tmp_path / 'bench.json'}")
    assert found.returncode == 0, found.stderr
    figures = json.loads(found.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "bench.json").read_text()) == figures
    assert figures["rollout"]["tokens"] == 2 * 2 * 3 and figures["rollout"]["stop_ids"] == [-1]
    assert figures["learner"]["tokens"] == 64 + 96 + 2 * 4
    assert figures["peak_memory_gb"] > 0.05 and figures["matmul_flops_per_s"]["float32"] > 1e8
    for phase in ("rollout", "learner"):
        part = figures[phase]
        assert part["tokens_per_s"] == pytest.approx(part["tokens"] / part["seconds"]["median"])
        assert part["flops_per_s"] == pytest.approx(part["flops"] / part["seconds"]["median"])
        expected = part["flops_per_s"] / figures["matmul_flops_per_s"]["float32"] / figures["devices"]
        assert part["fraction_of_matmul"]["float32"] == pytest.approx(expected)
        assert part["compile_seconds"] > 0 and part["compile_seconds_after_warm_up"] == 0
        assert "times_peer" not in part


def test_host_checks_are_measured():
    found = run(*SMALL, "--phase=verify")
    assert found.returncode == 0, found.stderr
    figures = json.loads(found.stdout.splitlines()[-1])
    assert "rollout" not in figures and "learner" not in figures
    part = figures["verify"]
    assert (part["rows"], part["constraints"], part["workers"]) == (4, 6, 2)
    for name in ("seconds", "pool_seconds", "language_seconds"):
        assert 0 < part[name]["min"] <= part[name]["median"] <= part[name]["max"]
    assert part["checks_per_s"] == pytest.approx(4 * 6 / part["core_seconds"])
    assert part["pool_checks_per_s"] == pytest.approx(2 * 4 * 6 / part["pool_core_seconds"])
    assert part["language_share"] == pytest.approx(part["language_seconds"]["median"] / part["core_seconds"])


def test_rows_to_verify_are_of_all_types_and_of_the_stated_length():
    rows = bench_verify.batch(0, 200)
    assert rows == bench_verify.batch(0, 200) and not {r.response for r in rows} & {
        r.response for r in bench_verify.batch(1, 9)
    }
    assert {c.id for row in rows for c in row.constraints} == set(synthesis.DRAWS)
    assert all(len({c.id for c in row.constraints}) == 6 for row in rows)
    words = sum(len(row.response.split()) for row in rows) / len(rows)
    assert 280 < bench_verify.TOKENS_PER_WORD * words < 320


def test_the_peer_runs_beside_ours():
    pytest.importorskip("torch", reason="torch is optional: make test TORCH=1")
    found = run(*SMALL, "--peer=hf")
    assert found.returncode == 0, found.stderr
    figures = json.loads(found.stdout.splitlines()[-1])
    for phase in ("rollout", "learner"):
        assert 0 < figures[phase]["times_peer"]["min"] <= figures[phase]["times_peer"]["max"]


def test_unknown_phase_and_missing_torch_give_one_message(monkeypatch):
    found = run(*SMALL, "--phase=rolout")
    assert found.returncode != 0 and "rolout" in found.stderr and "Traceback" not in found.stderr
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="torch"):
        peers.require_torch()
