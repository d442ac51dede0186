"""`make demo`: fits a tiny model by sft, trains it by HiR, shows the gain, then makes two steps of SmolLM2-135M.

    python -m experiments.demo [DIR] [--smollm2]        (DIR: runs/demo; --smollm2: the last part alone)

Each part is a run of `python -m hir_jax.train`, so a demo that was stopped continues where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.run import read_metrics

TINY, SMOLLM2 = "configs/tiny_hir.py:demo", "configs/smollm2_135m_hir.py:demo"
FIGURES = {"ila": "ILA", "following": "following"}


def program(title: str, module: str, *arguments: str) -> str:
    """Runs one program in its own process; prints its command, its output and its seconds, and returns the output. Ends the demo
    if the program fails."""
    print(f"\n== {title}", flush=True)
    command = [sys.executable, "-m", module, *arguments]
    print("   " + " ".join(["python", *command[1:]]), flush=True)
    started, said = time.monotonic(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            said.append(line)
            if not line.startswith("{"):  # the JSON summary at the end of `evaluate` is for programs
                print(line, end="", flush=True)
    if process.returncode:
        sys.exit(f"error: that command ended with status {process.returncode}; the lines above say why")
    print(f"   {time.monotonic() - started:.0f} s", flush=True)
    return "".join(said)


def gains(said: str) -> list[str]:
    """A line for each of FIGURES: before, after, and the gain with its 95% interval, from the last line of `evaluate`."""
    found = json.loads(said.splitlines()[-1])
    before, after = (run["intervals"] for run in found["runs"].values())
    (gap,) = found["differences"].values()
    return [
        f"{label}: {before[key][0]:.3f} before, {after[key][0]:.3f} after; gain {gap[key][0]:+.3f} "
        f"(95% interval {gap[key][1]:+.3f} to {gap[key][2]:+.3f})"
        for key, label in FIGURES.items()
    ]


def plot(workdir: Path, path: Path) -> None:
    """Draws the shares of met constraints and instructions over steps: of training's samples, and on held-out instructions."""
    rows = read_metrics(workdir)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for key, label, colour in (
        ("cla", "constraints met (CLA)", "tab:gray"),
        ("ila", "instructions met (ILA)", "tab:blue"),
        ("ila_shuffled", "other instructions met (control)", "tab:red"),
    ):
        sampled = [(r["step"], r[key]) for r in rows if key in r]
        heldout = [(r["step"], r[f"heldout_{key}"]) for r in rows if f"heldout_{key}" in r]
        axes.plot(*zip(*sampled, strict=True), color=colour, alpha=0.3, linewidth=1)
        axes.plot(*zip(*heldout, strict=True), color=colour, marker="o", label=f"{label}, held-out")
    axes.set(
        xlabel="step", ylabel="share", ylim=(0, 1), title="HiR on the tiny environment (faint: the training's samples)"
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def tiny_part(directory: Path) -> None:
    base, tiny = directory / "tiny_sft", directory / "tiny_hir"
    train = "hir_jax.train"
    fit = (f"--config={TINY}_sft", f"--workdir={base}")
    program("1/4 a tiny model, fitted to instructions with one to four constraints (sft)", train, *fit)
    how = (f"--config={TINY}", f"--workdir={tiny}", f"--config.model.checkpoint={base / 'model'}")
    program("2/4 the same model, trained by HiR on four", train, *how)
    plot(tiny, directory / "curve.png")
    steps = read_metrics(tiny)[-1]["step"]
    asked = (f"--workdir={tiny}@0,{tiny}@{steps}", "--benchmark=heldout", "--samples=4", "--temperature=1")
    said = program("3/4 1,024 samples at temperature 1 on held-out instructions", "hir_jax.evaluate", *asked)
    print("\n".join(f"   {line}" for line in gains(said)))
    print(
        f"\ncurve:                 {directory / 'curve.png'}\n"
        f"tiny run:              {tiny} (report.html, metrics.jsonl, replays.jsonl, tensorboard/, checkpoints/, model/)"
    )


def smollm2_part(directory: Path) -> None:
    real = directory / "smollm2_hir"
    how = (f"--config={SMOLLM2}", f"--workdir={real}")
    program("4/4 two steps of SmolLM2-135M-Instruct, with what is replayed", "hir_jax.train", *how)
    print(f"\nSmolLM2 run:           {real}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.demo", allow_abbrev=False)
    parser.add_argument("directory", nargs="?", default="runs/demo", type=Path)
    parser.add_argument("--smollm2", action="store_true", help="the two steps of SmolLM2 alone")
    args = parser.parse_args(arguments)
    if not args.smollm2:
        tiny_part(args.directory)
    smollm2_part(args.directory)
    print(f"look at curves with:   pip install tensorboard; tensorboard --logdir {args.directory}")


if __name__ == "__main__":
    main(sys.argv[1:])
