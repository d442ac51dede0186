"""Whether the package imports, trains and scores at all: `make smoke`, on every Python that is supported."""

import json
import subprocess
import sys

import pytest
from small_runs import ROOT, rows, start

import hir_jax

pytestmark = pytest.mark.smoke


def test_names_for_a_notebook_are_there():
    assert all(getattr(hir_jax, name) for name in hir_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'engin'"):
        hir_jax.engin  # noqa: B018


def test_three_steps_of_training(tmp_path):
    process = start(tmp_path / "run", total_steps=3)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, output + errors
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2, 3]


def test_scoring_a_response(tmp_path):
    prompt = {"key": 1, "prompt": "Say hello.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt))
    (tmp_path / "responses.jsonl").write_text(json.dumps({"prompt": "Say hello.", "response": "Hello there."}))
    files = [f"--{name}={tmp_path / name}.jsonl" for name in ("prompts", "responses", "output")]
    command = [sys.executable, "-m", "hir_jax.score", "--benchmark=ifeval", *files]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["prompt_strict"] == 1.0
