"""The script for an accelerator with its tiny shapes, and its parameter counts against those that Qwen3's makers publish."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import gpu
from hir_jax.model import counting

ROOT = Path(__file__).parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.gpu", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_tiny_shapes_on_this_machine(tmp_path):
    found = run("--tiny", "--rounds=1", f"--output={tmp_path / 'gpu.json'}")
    assert found.returncode == 0, found.stderr
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert set(figures["cases"]) == set(gpu.TINY) and figures["versions"]["jax"] and figures["device"]
    for name in ("decode", "decode-slots"):
        part = figures["cases"][name]
        assert part["sequences"] == 16 and part["step_floor_seconds"] > 0
        assert part["step_floor_seconds"] >= max(part["floor_parts"].values()) * 0.999
    step = figures["cases"]["step"]
    assert step["rollout_tokens_per_s"] > 0 and set(step["phases"]) == {"sample", "learn"}
    assert step["trained_rows"] == 2 * 6 + step["replays"] and step["replays"] > 0
    learn = figures["cases"]["learn"]
    assert learn["mfu"] == pytest.approx(
        learn["flops"] / learn["seconds"]["median"] / figures["matmul_flops_per_s"]["bfloat16"]
    )


def test_shapes_are_the_published_ones():
    # Qwen3's model cards: 4.0 B parameters (3.6 B without embeddings), 1.7 (1.4), 0.6 (0.44)
    for name, total, layers in (
        ("qwen3-4b", 4.0e9, 3.6e9),
        ("qwen3-1.7b", 1.7e9, 1.4e9),
        ("qwen3-0.6b", 0.6e9, 0.44e9),
    ):
        model = gpu.make_model(name)
        inside = model.num_layers * counting.layer_weights(model)
        assert inside == pytest.approx(layers, rel=0.02)
        assert inside + model.vocab_size * model.hidden_size == pytest.approx(total, rel=0.02)


def test_messages(tmp_path):
    found = run(f"--output={tmp_path / 'x'}", "--cases=decode-5b")
    assert found.returncode == 1 and "decode-5b" in found.stderr and "Traceback" not in found.stderr
