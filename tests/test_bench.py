"""The bench program on the tiny model: its JSON, and the FLOP counts against hand-worked numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hir_jax import bench, peers
from hir_jax.models.config import ModelConfig
from hir_jax.types import InputError

ROOT = Path(__file__).parents[1]
SMALL = (
    "--config=configs/tiny_hir.py", "--config.model.num_layers=1", "--config.model.hidden_size=16",
    "--config.model.intermediate_size=32", "--prompts=2", "--samples=2", "--new_tokens=3", "--learner_rows=2",
    "--learner_columns=100", "--rounds=2",
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
