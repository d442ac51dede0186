"""Fills in the tables of docs/results.md from the committed figures of the suites, and draws its picture.

    python -m experiments.document [--check] [--results=experiments/results/tiny] [--document=docs/results.md]

RESULTS/easy, medium and hard hold the files SUITE.json that `experiments.report` has written; RESULTS/tuned.json and others
in its form are written by `experiments.run --tune`. The text between a line `<!-- NAME ... -->` and the next `<!-- end -->`
becomes a table:

    <!-- across SUITE FIGURE -->      one FIGURE of report.FIGURES at all difficulties, with differences between variants
    <!-- suite DIFFICULTY SUITE -->   the figures of a suite, and their differences, in the report's columns that SHOWN names
    <!-- tuning -->                   the mean following of every setting of the grid, of tuned.json
    <!-- tuning NAME -->              the same of NAME.json

The picture, beside the document and with its name, shows held-out following over generated samples at all difficulties for the
suite that the document names first. --check writes nothing, and ends with status 1 if the document's tables are out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from experiments import report
from experiments.report import plt
from hir_jax.bench.table import markdown_table
from hir_jax.pathflags import expanded
from hir_jax.paths import local
from hir_jax.run import files
from hir_jax.textfiles import read_json, read_text
from hir_jax.types import InputError

ROOT = Path(__file__).parents[1]
DIFFICULTIES = ("easy", "medium", "hard")
SHOWN = ("following", "area_samples", "ila_shuffled", "pass@1", "pass@8", "distinct", "entropy")
BLOCK = re.compile(r"(<!-- (across|suite|tuning)([^\n]*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
LEVEL = 0.2  # needed by the report's figures; these tables leave out "samples to reach the level"


def _rows(results: Path, difficulty: str, suite: str) -> list[dict]:
    record = report.read(results / difficulty).get(suite)
    if not record:
        raise InputError(f"{results / difficulty}: there is no {suite}.json")
    found = report.collect(record["runs"], LEVEL)
    return report.rows_of(found, report.references(suite, found))


def across(results: Path, suite: str, figure: str) -> str:
    """One line a variant: for each difficulty the figure and its difference from the variant that the suite compares it with."""
    if figure not in report.FIGURES:
        raise InputError(f"no figure {figure!r}; there are {', '.join(report.FIGURES)}")
    columns, against = {}, {}
    for difficulty in DIFFICULTIES:
        for row in _rows(results, difficulty, suite):
            if row["figure"] == figure:
                columns.setdefault(row["variant"], {})[difficulty] = row
                against[row["variant"]] = row["against"]
    head = [cell for each in DIFFICULTIES for cell in (each, "difference")]
    lines = [[report.FIGURES[figure], "less", *head]]
    for variant, found in columns.items():
        cells = []
        for row in (found.get(difficulty) for difficulty in DIFFICULTIES):
            cells += [row["shown"], report.difference(row)] if row else ["", ""]
        lines.append([variant, against[variant], *cells])
    return markdown_table(lines)


def suite(results: Path, difficulty: str, name: str) -> str:
    """The report's two tables of a suite with the figures SHOWN, and the variants whose following is below half of their ILA."""
    rows = [row for row in _rows(results, difficulty, name) if row["figure"] in SHOWN]
    parts = [f"{caption}\n\n{markdown_table(lines)}\n" for caption, lines in report.tables(rows, SHOWN)]
    mean = {(row["variant"], row["figure"]): row["mean"] for row in rows}
    if idle := [v for v, figure in mean if figure == "following" and mean[v, figure] < mean[v, "pass@1"] / 2]:
        parts.append(f"Following is below half of ILA, so these have not learnt to follow: {', '.join(idle)}.\n")
    return "\n".join(parts)


def tuning(results: Path, name: str = "tuned") -> str:
    """One line a variant, one column a setting; the chosen one is in bold."""
    found = read_json(results / f"{name}.json")
    areas = found["area"]
    names = {name: [float(n) for n in re.findall(r"[\d.e-]+\d", name)] for each in areas.values() for name in each}
    names = sorted(names, key=lambda name: names[name][::-1])  # by weight of the KL, then by rate
    lines = [["mean following over samples", *names]]
    for variant, each in areas.items():
        best = found["chosen"][variant]
        best = f"lr {best['learner.learning_rate']:g}, kl {best['learner.kl']:g}"
        cells = [f"{each[name]:.3f}" if name in each else "" for name in names]
        lines.append([variant, *(f"**{cell}**" if name == best else cell for name, cell in zip(names, cells))])
    return markdown_table(lines)


MAKE = {"across": across, "suite": suite, "tuning": tuning}


def filled(text: str, results: Path) -> str:
    """The document with new tables."""

    def block(found: re.Match) -> str:
        head, name, words, _, end = found.groups()
        try:
            return head + "\n" + MAKE[name](results, *words.split()).rstrip("\n") + "\n\n" + end
        except (InputError, OSError, TypeError) as error:
            raise InputError(f"{head.strip()}: {error}") from None

    return BLOCK.sub(block, text)


def picture(text: str, results: Path, path: Path) -> None:
    """Draws the curves of the suite that the document names first, a panel for each difficulty."""
    if not (named := re.search(r"<!-- across (\S+)", text)):
        return
    name = named[1]
    figure, axes = plt.subplots(1, len(DIFFICULTIES), figsize=(13, 4), layout="constrained")
    for axis, difficulty in zip(axes, DIFFICULTIES, strict=True):
        report.draw(axis, report.read(results / difficulty)[name]["runs"], "samples")
        axis.set(title=difficulty, ylim=(0, None))
    axes[0].set(ylabel="held-out following")
    axes[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.document", allow_abbrev=False)
    path = {"type": lambda name: local(expanded(name))}
    parser.add_argument("--results", default=ROOT / "experiments" / "results" / "tiny", **path)
    parser.add_argument("--document", default=ROOT / "docs" / "results.md", **path)
    parser.add_argument("--check", action="store_true", help="only say whether the tables are the ones of the results")
    args = parser.parse_args(arguments)
    old = read_text(args.document)
    new = filled(old, args.results)
    if args.check and new != old:
        raise InputError(f"{args.document}: its tables are not the ones of {args.results}; run this without --check")
    if not args.check:
        files.write_atomically(args.document, new)
        picture(new, args.results, args.document.with_suffix(".png"))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
