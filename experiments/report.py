"""Tables, plots and one page about the runs of `experiments.run`.

    python -m experiments.report D [--level=0.2] [--output=D/report]

D is the runner's directory, or one with files SUITE.json of an earlier report, which hold all that tables and curves need of each
run: with them a report can be made again without the runs. Written for each suite in D are that file, the curves as PNG over
steps and over samples, and tables in Markdown and CSV:
- the mean over seeds +- its standard error of the FIGURES below. Held-out `following` (the primary measure: ILA minus the ILA of
  the same responses under other prompts' constraints), that control, ILA (pass@1), pass@8, the share of distinct responses and
  the entropy are from 8 samples a prompt at the rollouts' temperature after the last step. Then held-out following before the
  first step, its mean over steps and over equally many generated samples, and the generated samples until it first reaches
  --level (mean of the seeds that reach it, and their number);
- the differences from the suite's first variant, or from the one that the suite names, paired by seed, with 95% intervals by
  Student's t over seeds.
report.md and the single page report.html hold all of this, with the commands that made the runs.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import itertools
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import jinja2
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.run import COMMANDS, curves, read_metrics, slug, summary
from experiments.suites import SUITES
from hir_jax.bench.table import markdown_table
from hir_jax.eval.statistics import area_under_curve, first_reaching, over_seeds, standard_error
from hir_jax.pathflags import expanded
from hir_jax.paths import local
from hir_jax.run import files
from hir_jax.textfiles import read_json, read_text
from hir_jax.types import InputError

Runs = dict[str, dict[int, dict]]  # label -> seed -> run, as `gather` gives them

COLUMNS = ("variant", "figure", "seeds", "reached", "mean", "standard_error", "against", "difference", "low", "high")
FIGURES = {
    "following": "following",
    "ila_shuffled": "ILA, others' constraints",
    "pass@1": "ILA (pass@1)",
    "pass@8": "pass@8",
    "distinct": "distinct",
    "entropy": "entropy",
    "start": "following before",
    "area_steps": "mean following over steps",
    "area_samples": "mean following over samples",
    "to_level": "samples to reach the level",
}


def _evaluation(directory: Path) -> Path | None:
    """The summary of the evaluation after the last step; None if the run is not finished."""
    if not (directory / "config.json").exists():
        return None
    config = files.read_config(directory)
    path = summary(directory, config["total_steps"], config["rollout.temperature"])
    return path if path.exists() else None


def gather(suite: Path) -> dict:
    """The record of a suite's finished runs, as in SUITE.json: {"commands": lines of the runner's commands, "runs": {label:
    {seed: run}}}, variants in the suite's order. A run is {"curve": held-out following by step and by generated samples, "end":
    figures of the evaluation after the last step}."""
    runs = {}
    for label in SUITES[suite.name].variants:
        if seeds := finished(suite, label):
            runs[label] = {seed: _run(path) for seed, path in seeds.items()}
    commands = read_text(suite / COMMANDS).splitlines() if (suite / COMMANDS).exists() else []
    return {"commands": commands, "runs": runs}


def _run(directory: Path) -> dict:
    curve = curves(read_metrics(directory))
    if not curve["following"]:
        raise InputError(
            f"{directory}: no held-out following was measured; run it with config.eval_every above 0 and "
            "config.constraints.control"
        )
    summary = read_json(_evaluation(directory))
    end = {name: summary["intervals"][name][0] for name in ("following", "ila_shuffled", "distinct")}
    end |= {"pass@1": summary["pass_at_k"]["1"], "pass@8": summary["pass_at_k"]["8"], "entropy": summary["entropy"]}
    return {"curve": curve, "end": end}


def read(root: Path) -> dict[str, dict]:
    """Suite -> record, as `gather` gives it, for all suites of which `root` has finished runs, a file SUITE.json, or both, in
    their order. Runs of the file that are not in the directory are kept, so that a suite may be made in parts."""
    found = {}
    for name in SUITES:
        records = [_of_file(path)] if (path := root / f"{name}.json").exists() else []
        records += [gather(root / name)] if (root / name).is_dir() else []
        runs = {label: {} for label in SUITES[name].variants}
        for label, seeds in (each for record in records for each in record["runs"].items()):
            runs.setdefault(label, {}).update(seeds)
        runs = {label: dict(sorted(seeds.items())) for label, seeds in runs.items() if seeds}
        if runs:
            commands = dict.fromkeys(line for record in records for line in record["commands"])
            found[name] = {"commands": list(commands), "runs": runs}
    return found


def _of_file(path: Path) -> dict:
    record = read_json(path)
    try:
        runs = {label: {int(seed): run for seed, run in seeds.items()} for label, seeds in record["runs"].items()}
        return {"commands": list(record["commands"]), "runs": runs}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a file that experiments.report has written ({error!r})") from None


def figures(run: dict, level: float, budget: float) -> dict[str, float]:
    """FIGURES of one run; the mean over samples takes the first `budget` of them."""
    curve = run["curve"]
    within = np.append([n for n in curve["samples"] if n < budget], budget)
    return run["end"] | {
        "start": curve["following"][0],
        "area_steps": area_under_curve(curve["step"], curve["following"]),
        "area_samples": area_under_curve(within, np.interp(within, curve["samples"], curve["following"])),
        "to_level": first_reaching(curve["samples"], curve["following"], level),
    }


def finished(suite: Path, label: str) -> dict[int, Path]:
    """Directories of a variant's finished runs by seed, in order."""
    runs = {int(path.name.removeprefix("seed-")): path for path in suite.glob(f"{slug(label)}/seed-*")}
    return {seed: runs[seed] for seed in sorted(runs) if _evaluation(runs[seed])}


def collect(runs: Runs, level: float) -> dict[str, dict[int, dict[str, float]]]:
    """Label -> seed -> figures. Means over generated samples take as many as the run with the fewest has."""
    budget = min(run["curve"]["samples"][-1] for seeds in runs.values() for run in seeds.values())
    return {label: {seed: figures(run, level, budget) for seed, run in seeds.items()} for label, seeds in runs.items()}


def rounded(value):
    """`value` with its floats rounded to six decimals, so that committed files stay small."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 6) if isinstance(value, float) else value


def _digits(value: float) -> int:
    """Decimals of a figure: three for shares and nats, none for numbers of samples."""
    return 3 if abs(value) < 100 else 0


def _cell(values: list[float]) -> str:
    """mean +- standard error of the finite values, and how many these are if not all."""
    reached = [v for v in values if math.isfinite(v)]
    if not reached:
        return "never"
    digits = _digits(max(reached))
    text = f"{np.mean(reached):.{digits}f}"
    if len(reached) > 1:
        text += f" +- {standard_error(reached):.{digits}f}"
    return text + (f" ({len(reached)} of {len(values)})" if len(reached) < len(values) else "")


def references(suite: str, found: Iterable[str]) -> dict[str, str]:
    """Variant -> the one of `found` that it is compared with: the first of them if the suite declares none."""
    first, *others = found
    declared = SUITES[suite].against
    pairs = dict.fromkeys(others, first) if declared is None else declared
    return {label: other for label, other in pairs.items() if {label, other} <= {first, *others}}


def rows_of(found: dict[str, dict[int, dict[str, float]]], against: dict[str, str]) -> list[dict[str, str | float]]:
    """The rows of the CSV, one for each variant and figure. Mean and standard error are over the `reached` seeds with a finite
    value (that reach the level); a difference is given only if all seeds of both variants have one."""
    rows = []
    for (label, seeds), name in itertools.product(found.items(), FIGURES):
        values = [run[name] for run in seeds.values()]
        reached = [value for value in values if math.isfinite(value)]
        row = {"variant": label, "figure": name, "seeds": len(seeds), "reached": len(reached)}
        row |= {"mean": float(np.mean(reached)) if reached else math.nan, "standard_error": standard_error(reached)}
        row |= {"shown": _cell(values), "against": against.get(label, "")}
        other = found.get(against.get(label), {})
        gaps = [seeds[seed][name] - other[seed][name] for seed in seeds if seed in other]
        if name != "start" and len(gaps) > 1 and all(map(math.isfinite, gaps)):
            gap = over_seeds(gaps)
            row |= {"difference": gap.mean, "low": gap.low, "high": gap.high}
        rows.append(row)
    return rows


def difference(row: dict) -> str:
    if "difference" not in row:
        return ""
    form = f"+.{_digits(row['mean'])}f"
    return f"{row['difference']:{form}} ({row['low']:{form}} to {row['high']:{form}})"


def tables(rows: list[dict], shown: Iterable[str] = FIGURES) -> list[tuple[str, list[list[str]]]]:
    """(Caption, lines of cells with the head first): the figures `shown`, and the differences where there are any."""
    labels = list(dict.fromkeys(row["variant"] for row in rows))
    by = {(row["variant"], row["figure"]): row for row in rows}
    lines = [["variant", "seeds", *(FIGURES[name] for name in shown)]]
    for label in labels:
        lines.append([label, str(by[label, "following"]["seeds"]), *(by[label, name]["shown"] for name in shown)])
    caption = "Mean over seeds +- its standard error"
    if "to_level" in shown:
        caption += "; samples to reach the level: mean of the seeds that reach it (how many, where not all do)"
    found = [(f"{caption}:", lines)]
    if compared := [label for label in labels if by[label, "following"]["against"]]:
        named = [name for name in shown if any("difference" in by[label, name] for label in labels)]
        lines = [["variant", "against", *(FIGURES[name] for name in named)]]
        for label in compared:
            lines.append([label, by[label, "following"]["against"], *(difference(by[label, name]) for name in named)])
        caption = "Differences of a variant from the one in `against`, paired by seed, with 95% intervals over seeds:"
        found.append((caption, lines))
    return found


def markdown(suite: str, rows: list[dict]) -> str:
    """A table of the figures and one of the differences."""
    lines = [f"## {suite}", "", SUITES[suite].question]
    for caption, table in tables(rows):
        lines += ["", caption, "", markdown_table(table)]
    return "\n".join(lines) + "\n"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1rem; color: #1a1a1a; background: #fff }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.875rem }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #d0d0d0; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } img { max-width: 100% }
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #161616 } th, td { border-color: #444 } a { color: #8ab4f8 } }
</style>
<h1>{{ title }}</h1>
<p>{{ about }}</p>
<nav>{% for part in parts %}<a href="#{{ part.name }}">{{ part.name }}</a> {% endfor %}</nav>
{% for part in parts %}
<h2 id="{{ part.name }}">{{ part.name }}</h2>
<p>{{ part.question }}</p>
<img alt="Held-out following over steps and over generated samples" src="data:image/png;base64,{{ part.picture }}">
{% for caption, lines in part.tables %}
<p>{{ caption }}</p>
<div class="wide" tabindex="0"><table>
<tr>{% for cell in lines[0] %}<th scope="col">{{ cell }}</th>{% endfor %}</tr>
{% for cells in lines[1:] %}<tr>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}{% if part.commands %}<pre class="wide" tabindex="0">{{ part.commands }}</pre>{% endif %}{% endfor %}
</html>
"""


def draw(axis: plt.Axes, runs: Runs, name: str) -> None:
    """Draws each variant's mean held-out following over its seeds, with the standard error shaded, by `name`: step or samples."""
    for label, seeds in runs.items():
        found = [run["curve"] for run in seeds.values() if len(run["curve"]["following"]) > 1]
        if not found:
            continue
        x = np.linspace(0, min(curve[name][-1] for curve in found), 50)
        heights = np.array([np.interp(x, curve[name], curve["following"]) for curve in found])
        error = np.array([standard_error(column) for column in heights.T]) if len(found) > 1 else np.zeros(len(x))
        (line,) = axis.plot(x, heights.mean(0), label=label)
        axis.fill_between(
            x, heights.mean(0) - error, heights.mean(0) + error, color=line.get_color(), alpha=0.2, linewidth=0
        )
    axis.set_xlabel({"step": "step", "samples": "generated samples"}[name])
    axis.grid(alpha=0.3)


def plot(suite: str, runs: Runs, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for axis, name in zip(axes, ("step", "samples"), strict=True):
        draw(axis, runs, name)
    axes[0].set(ylabel="held-out following", ylim=(0, None))
    axes[0].legend()
    figure.suptitle(f"{suite} (mean over seeds, shaded: standard error)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(root: Path, output: Path, level: float) -> str:
    """Writes all files of the report; returns the Markdown."""
    parts, texts, about = [], [], f"The level that samples are counted to is a held-out following of {level:g}."
    output.mkdir(parents=True, exist_ok=True)
    for name, record in read(root).items():
        found = collect(record["runs"], level)
        rows, picture = rows_of(found, references(name, found)), output / f"{name}.png"
        files.write_atomically(output / f"{name}.json", json.dumps(rounded(record)) + "\n")
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        files.write_atomically(output / f"{name}.csv", text.getvalue())
        plot(name, record["runs"], picture)
        made = "".join(f"\n    {line}" for line in record["commands"])
        made = f"\nMade by\n{made}\n" if made else ""
        texts.append(markdown(name, rows) + f"\n![{name}]({name}.png)\n" + made)
        coded = base64.b64encode(picture.read_bytes()).decode()
        part = {"name": name, "question": SUITES[name].question, "picture": coded, "tables": tables(rows)}
        part["commands"] = "\n".join(record["commands"])
        parts.append(part)
    if not parts:
        raise InputError(
            f"{root}: no finished run of a suite; start one with python -m experiments.run SUITE --workdir={root}"
        )
    files.write_atomically(output / "report.md", f"{about}\n\n" + "\n".join(texts))
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    files.write_atomically(
        output / "report.html", page.render(title=f"Suites of {root.name}", about=about, parts=parts)
    )
    return "\n".join(texts)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.report", allow_abbrev=False)
    parser.add_argument("workdir", type=lambda name: local(expanded(name)))
    parser.add_argument("--level", type=float, default=0.2, help="held-out following that 'samples to reach' is about")
    parser.add_argument("--output", type=lambda name: local(expanded(name)))
    args = parser.parse_args(arguments)
    output = args.output or args.workdir / "report"
    print(write(args.workdir, output, args.level))
    print(f"written: {output}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
