"""`make demo`: a tiny model fitted by sft and trained by HiR, its curve, then two real steps of SmolLM2-135M.

    python -m experiments.demo [DIR]        (DIR: runs/demo)

Each part is a run of `python -m hir_jax.train`, so a demo that was stopped goes on where it was.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.run import read_metrics

TINY, SMOLLM2 = "configs/tiny_hir.py:demo", "configs/smollm2_135m_hir.py:demo"


def run(title: str, config: str, workdir: Path, *overrides: str) -> None:
    """One training run in its own process; ends the demo if it fails."""
    print(f"\n== {title}", flush=True)
    command = [sys.executable, "-m", "hir_jax.train", f"--config={config}", f"--workdir={workdir}", *overrides]
    print("   " + " ".join(["python", *command[1:]]), flush=True)
    started = time.monotonic()
    if status := subprocess.run(command).returncode:
        sys.exit(f"error: that command ended with status {status}; the lines above say why")
    print(f"   {time.monotonic() - started:.0f} s", flush=True)


def plot(workdir: Path, path: Path) -> tuple[float, float]:
    """Accuracy over steps as a PNG; returns held-out ILA before and after."""
    rows = read_metrics(workdir)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for key, label, colour in (
        ("cla", "constraints met (CLA)", "tab:gray"),
        ("ila", "instructions met (ILA)", "tab:blue"),
    ):
        sampled = [(r["step"], r[key]) for r in rows if key in r]
        heldout = [(r["step"], r[f"heldout_{key}"]) for r in rows if f"heldout_{key}" in r]
        axes.plot(*zip(*sampled, strict=True), color=colour, alpha=0.3, linewidth=1)
        axes.plot(*zip(*heldout, strict=True), color=colour, marker="o", label=f"{label}, held-out, greedy")
    axes.set(
        xlabel="step", ylabel="share", ylim=(0, 1), title="HiR on the tiny environment (faint: sampled, in training)"
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    first, *_, last = [r["heldout_ila"] for r in rows if "heldout_ila" in r]
    return first, last


def main(directory: Path) -> None:
    base, tiny, real = directory / "tiny_sft", directory / "tiny_hir", directory / "smollm2_hir"
    run("1/3 a tiny model, fitted to instructions with one or two constraints (sft)", f"{TINY}_sft", base)
    run(
        "2/3 the same model, trained by HiR on three or four",
        TINY,
        tiny,
        f"--config.model.checkpoint={base / 'model'}",
    )
    before, after = plot(tiny, directory / "curve.png")
    print(f"   ILA on held-out instructions, greedy: {before:.1%} before, {after:.1%} after")
    run("3/3 two steps of SmolLM2-135M-Instruct, with what is replayed", SMOLLM2, real)
    print(
        f"\ncurve:                 {directory / 'curve.png'}\n"
        f"tiny run:              {tiny} (report.html, metrics.jsonl, replays.jsonl, tensorboard/, checkpoints/, model/)\n"
        f"SmolLM2 run:           {real}\n"
        f"look at curves with:   pip install tensorboard; tensorboard --logdir {directory}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
