"""The report page of a run, or of several that are seeds of one experiment: curves, configs, what was replayed.

    python -m hir_jax.run.report [NAME=]DIR [[NAME=]DIR ...] [--output=FILE] [--title=TEXT]

Directories with the same NAME are seeds of one experiment: the page shows the mean of their curves, with the standard error
shaded. A DIR without a NAME goes by its own name. The page is one file that asks the network for nothing; for a single DIR it is
DIR/report.html. A broken line of a run's files is named and left out, and the exit status is then 1.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from absl import flags

from hir_jax import pathflags, paths
from hir_jax.run import report_data as data
from hir_jax.run import report_replays
from hir_jax.run.files import RunError, write_atomically
from hir_jax.types import InputError

MAX_BYTES = 9_500_000  # of a page; replays are cut and thinned to fit


def page_data(
    runs: Mapping[str, Sequence[Path | str]], title: str, most: int = MAX_BYTES
) -> tuple[dict[str, Any], str]:
    """The data that the page's scripts read, and the same as JSON of about `most` bytes or fewer; `runs` as in `write_report`."""
    notes, groups = [], []
    for group, (name, directories) in enumerate(runs.items()):
        places = [paths.at(directory) for directory in directories]
        names = [p.name if len(places) > 1 else name for p in places]
        if len(set(names)) < len(names):
            names = list(map(str, places))
        groups.append([data.read_run(p, one, group, notes) for p, one in zip(places, names, strict=True)])
    every = [run for group in groups for run in group]
    found = {
        "title": title, "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "groups": list(runs),
        "runs": [data.head(run) for run in every], "config": data.config_table(every),
        "types": report_replays.type_table(groups), "sampled": report_replays.sampled(every), "notes": notes,
        "warnings": [warning for run in every for warning in data.warnings(run)], **data.curves(groups),
    }  # fmt: skip
    if sum(len(replay.response) for run in every for replay in run.replays) < most:
        whole = found | report_replays.coded_replays(every)
        if len((code := data.embedded(whole)).encode()) <= most:
            return whole, code
    whole = found | report_replays.coded_replays(every, most - data.size(found))
    return whole, data.embedded(whole)


def page(title: str, code: str) -> str:
    """The HTML around the JSON of `page_data`."""
    names = ("report.html", "report.css", "report.js", "report_curves.js", "report_replays.js")
    parts = {name: Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names}
    parts |= {"title": html.escape(title).encode("utf-8", "replace").decode(), "data": code}
    return re.sub(r"\{\{([\w.]+)\}\}", lambda place: parts[place[1]], parts["report.html"])


def write_report(path: Path | str, runs: Mapping[str, Sequence[Path | str]], title: str = "") -> list[str]:
    """Writes the page to `path`. runs: group name -> run directories, the seeds of one experiment. Returns a line for each
    broken part of the files, which is left out. Raises RunError for a directory or file that cannot be read."""
    if not runs or not all(runs.values()):
        raise RunError("give one or more run directories for every name")
    title = title or " and ".join(runs)
    found, code = page_data(runs, title)
    write_atomically(path, page(title, code))
    return found["notes"]


def _grouped(arguments: Sequence[str]) -> dict[str, list[Path]]:
    """Directories by NAME. An argument that names a directory as it is has no NAME, even if it holds a "="; else NAME ends at the
    first "=" that a directory follows."""
    groups: dict[str, list[Path]] = {}
    for argument in arguments:
        path = paths.at(pathflags.expanded(argument))
        name = path.resolve().name
        name = argument if name in groups else name
        if "=" in argument and not path.is_dir():
            ends = [i for i, sign in enumerate(argument) if sign == "="]
            splits = [(argument[:i], paths.at(pathflags.expanded(argument[i + 1 :]))) for i in ends]
            name, path = next((one for one in splits if one[1].is_dir()), splits[0])
        groups.setdefault(name, []).append(path)
    return groups


def main(argv: Sequence[str]) -> int:
    given, args = argv[1:], flags.FLAGS
    if not given:
        raise InputError("give the directory of a run, or several as NAME=DIR")
    if len(given) > 1 and not args.output:
        raise InputError("several directories: say with --output=FILE where the page goes")
    groups = _grouped(given)
    output = paths.at(args.output) if args.output else next(iter(groups.values()))[0] / "report.html"
    notes = write_report(output, groups, args.title)
    print(f"report: {output}")
    for note in notes:
        print(note, file=sys.stderr)
    return 1 if notes else 0


def cli() -> None:
    # Not at import: the trainer imports this module and has flags of the same names.
    pathflags.define("output", None, "The page; by default report.html in the one DIR.")
    flags.DEFINE_string("title", "", "Heading of the page.")
    pathflags.run(main, __doc__, positional=True)


if __name__ == "__main__":
    cli()
