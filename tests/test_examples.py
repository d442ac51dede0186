"""The examples run, and show what they say."""

import subprocess
import sys

import nbformat
from nbclient import NotebookClient
from small_runs import ROOT, rows


def test_a_scoring_function_of_ones_own_is_trained_on(tmp_path):
    command = [sys.executable, "examples/custom_reward.py", str(tmp_path), "3"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2, 3]
    kept = rows(tmp_path / "run" / "kept.jsonl")
    assert "mine:long_words" in str(kept) and (tmp_path / "run" / "model").is_dir()


def test_the_notebook_shows_a_step(tmp_path):
    """Takes long because the notebook compiles a fit and a whole step of the tiny config; it protects that each cell runs."""
    notebook = nbformat.read(ROOT / "examples" / "hir_in_one_page.ipynb", 4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("FIT_STEPS = 60", "FIT_STEPS = 15")
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    for heading in ("ASKED", "ANSWERED", "REPLAYED", "replays: 8 rows, mean reward 1.00"):
        assert heading in text
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "grad_norm" in str(outputs[-1]["data"])
