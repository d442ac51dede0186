"""Reads run directories for the report page: curves with their spread over seeds, configs, and warnings.

Reading is tolerant, and all of it is here, in `read_run`: a line that is no JSON object, or a row of metrics without a step, is
left out and named in `notes`; a value of another type than wanted is null, "" or left out. Only a file or directory that cannot
be read is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from hir_jax import paths
from hir_jax.run.files import RunError, read_config
from hir_jax.textfiles import RowError, read_jsonl

FILES = ("config.json", "metrics.jsonl", "replays.jsonl")
MAX_POINTS = 1_000  # of a curve; of more steps, means of neighbours
NAMED_LINES = 5  # broken lines of a file that are named one by one


class Replay(NamedTuple):
    """One row of replays.jsonl. `constraints`: (type, text, "1" met, "0" not met or "?" unknown) of each."""

    step: int | None
    integrity: float | None
    score: float | None
    key: str
    template: str
    task: str
    original: str
    response: str
    rewritten: str
    constraints: list[tuple[str, str, str]]


class Run(NamedTuple):
    """One run directory. `metrics` and `kept` are by step, ascending; `group` is the index of the group that it is a seed of.
    `kept`: constraint type -> (kept, asked) over all replays of a step; {} if the run is older than kept.jsonl."""

    name: str
    group: int
    path: Path
    config: dict[str, Any]
    metrics: dict[int, dict[str, float | None]]
    replays: list[Replay]
    kept: dict[int, dict[str, tuple[int, int]]]
    written: float  # time of its last write, seconds since 1970


def number(value: Any) -> float | None:
    """A finite number of a sane size as it is, anything else None."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e100  # NaN: False
    return value if usable else None


def text(value: Any) -> str:
    """A string as it is, nothing for None, other values as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def embedded(value: Any) -> str:
    """JSON that may stand in a <script>: nothing in it ends the element or a line, and it can be encoded as UTF-8."""
    plain = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    plain = plain.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    # halves of surrogate pairs, which JSON can name but UTF-8 cannot write
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", plain)


def size(value: Any) -> int:
    """Bytes of `embedded(value)`."""
    return len(embedded(value).encode())


# --- reading ---------------------------------------------------------------------------------------------------------


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _rows(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, [] if there is none; broken lines are added to `notes`, but for the unfinished last
    one that a kill leaves. Raises RowError for a file that cannot be read at all."""
    broken: list[RowError] = []
    rows = [row for _, row in read_jsonl(path, broken.append, own=True)] if path.exists() else []
    notes += [f"{error}; it is left out here. Mend or remove that line" for error in broken[:NAMED_LINES]]
    if len(broken) > NAMED_LINES:
        notes.append(f"{path}: {len(broken) - NAMED_LINES} more lines are no JSON objects")
    return rows


def _by_step(rows: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The rows that have a step, a whole number, in order; of several rows with one step the last."""
    return dict(sorted({row.pop("step"): row for row in rows if _is_step(row.get("step"))}.items()))


def _replay(row: Mapping[str, Any]) -> Replay:
    constraints = row.get("constraints") if isinstance(row.get("constraints"), list) else []
    marks = {True: "1", False: "0"}
    return Replay(
        row["step"] if _is_step(row.get("step")) else None, number(row.get("integrity")), number(row.get("score")),
        *(text(row.get(name)) for name in ("key", "template", "task", "original", "response", "rewritten")),
        [(text(c.get("id")), text(c.get("text")), marks[c["satisfied"]] if isinstance(c.get("satisfied"), bool) else "?")
         for c in constraints if isinstance(c, dict)],
    )  # fmt: skip


def _metrics(row: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: number(x) for key, x in row.items() if x is None or isinstance(x, int | float)}


def _kept(given: Any) -> dict[str, tuple[int, int]]:
    """Constraint type -> (kept, asked) of a row of kept.jsonl."""

    def is_count(pair):
        return isinstance(pair, list) and len(pair) == 2 and all(map(_is_step, pair)) and pair[0] <= pair[1] > 0

    given = given if isinstance(given, dict) else {}
    return {name: (pair[0], pair[1]) for name, pair in given.items() if is_count(pair)}


def read_run(path: Path, name: str, group: int, notes: list[str]) -> Run:
    """A run directory. Raises RunError if it holds none."""
    if not path.is_dir():
        raise RunError(f"{path}: not a directory; give the --workdir of a run")
    found = [path / file for file in FILES if (path / file).exists()]
    if not found:
        raise RunError(f"{path}: holds none of {', '.join(FILES)}; give the --workdir of a run")
    config = {}
    try:
        config = read_config(path) or {}
    except RunError as error:
        notes.append(f"{error}. It is shown without a config")
    rows = _rows(path / "metrics.jsonl", notes)
    if lost := sum(not _is_step(row.get("step")) for row in rows):
        notes.append(f"{path / 'metrics.jsonl'}: {lost} rows without a step (a whole number) are left out")
    metrics = {step: _metrics(row) for step, row in _by_step(rows).items()}
    replays = [_replay(row) for row in _rows(path / "replays.jsonl", notes)]
    kept = {step: _kept(row.get("kept")) for step, row in _by_step(_rows(path / "kept.jsonl", notes)).items()}
    return Run(name, group, path, config, metrics, replays, kept, max(map(paths.modified, found)))


def _model(config: Mapping[str, Any]) -> str:
    if config.get("model.checkpoint"):
        return text(config["model.checkpoint"])
    layers, width = config.get("model.num_layers"), config.get("model.hidden_size")
    return f"random, {text(layers)} layers of width {text(width)}" if layers and width else ""


def head(run: Run) -> dict[str, Any]:
    """The facts about a run in one line of a table."""
    date = datetime.fromtimestamp(run.written, UTC).strftime("%Y-%m-%d %H:%M UTC")
    last = max(run.metrics, default=None)
    return {
        "name": run.name, "group": run.group, "dir": str(run.path), "date": date, "model": _model(run.config),
        "method": text(run.config.get("method")), "seed": text(run.config.get("seed")),
        "steps": last, "total": number(run.config.get("total_steps")), "samples": samples(run).get(last),
        "seconds": round(sum(row.get("seconds/step") or 0 for row in run.metrics.values())),
    }  # fmt: skip


def config_table(runs: Sequence[Run]) -> list[list]:
    """[key, [[value, runs that have it], ...]] for every key; None is the value of a run without the key."""
    table = []
    for key in sorted({key for run in runs for key in run.config}):
        users: dict[str | None, list[int]] = {}
        for index, run in enumerate(runs):
            users.setdefault(text(run.config[key]) if key in run.config else None, []).append(index)
        table.append([key, list(map(list, users.items()))])
    return table


def _thirds(run: Run, prefix: str) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(ILA, following) in the first and in the last third of the steps that have both, in equal numbers."""
    rows = [(row.get(f"{prefix}ila"), row.get(f"{prefix}following")) for row in run.metrics.values()]
    rows = [row for row in rows if None not in row]
    third = -(-len(rows) // 3)
    return rows[:third], rows[len(rows) - third :]


def warnings(run: Run) -> list[str]:
    """Warnings by the control, in words. Following is below half of ILA, means over the last third of the held-out evaluations
    (without any, of the steps). Or following fell while ILA rose: from the first to the last third of the steps, and the 95%
    intervals of the paired differences exclude 0 in opposite directions."""
    from hir_jax.eval.statistics import over_seeds  # not above: NumPy and SciPy are slow to import

    found, held, (before, after) = [], _thirds(run, "heldout_")[1], _thirds(run, "")
    if last := held or after:
        ila, following = map(fmean, zip(*last, strict=True))
        if ila > 0 and following < ila / 2:
            found.append(
                f"{run.name}: {'held-out ' if held else ''}following is {following:.3f}, less than half of its ILA of {ila:.3f}: "
                "most of what its responses meet they would meet under other instructions too. Its ILA does not measure "
                "instruction following."
            )
    if len(before) > 1:
        gaps = [(later[0] - ila, later[1] - following) for (ila, following), later in zip(before, after, strict=True)]
        rose, fell = map(over_seeds, zip(*gaps, strict=True))
        if rose.low > 0 and fell.high < 0:
            found.append(
                f"{run.name}: from the first third of its steps to the last ILA rose by {rose.mean:.3f} and following fell by "
                f"{-fell.mean:.3f}: it learns a kind of text that meets many instructions."
            )
    return found


# --- curves ----------------------------------------------------------------------------------------------------------


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and its standard error over seeds, sqrt(sum (x - mean)^2 / (n - 1) / n); None where it is undefined."""
    n, mean = len(values), fmean(values) if values else None
    return mean, math.sqrt(math.fsum((x - mean) * (x - mean) for x in values) / (n - 1) / n) if n > 1 else None


def short(value: float | None) -> float | None:
    """Seven significant digits."""
    return value if value is None or isinstance(value, int) else float(f"{value:.7g}")


def samples(run: Run) -> dict[int, float]:
    """Responses generated up to each step; {} for a run that generates none."""
    total, found = 0, {}
    for step, row in run.metrics.items():
        total += row.get("generated", row.get("samples")) or 0  # older runs discarded none
        found[step] = total
    return found if total else {}


def _per_step(values: Iterable[Mapping[int, float | None]], width: int) -> list[list]:
    """[steps, means, standard errors, numbers of seeds] of the seeds' values by step. Each seed's values are first averaged over
    `width` neighbouring steps, whose point is at the last of them."""
    seeds: dict[int, list[float]] = {}
    last: dict[int, int] = {}
    for by_step in values:
        bins: dict[int, list[float]] = {}
        for step, value in by_step.items():
            place = -(-step // width)
            last[place] = max(step, last.get(place, 0))
            bins.setdefault(place, []).extend(() if value is None else (value,))
        for place, within in bins.items():
            seeds.setdefault(place, []).extend((fmean(within),) if within else ())
    points = [(last[place], *map(short, mean_and_error(seeds[place])), len(seeds[place])) for place in sorted(seeds)]
    return [list(column) for column in zip(*points, strict=True)] or [[], [], [], []]


def curves(groups: Sequence[Sequence[Run]]) -> dict[str, Any]:
    """{"curves": metric -> [steps, means, standard errors, numbers of seeds] of each group, or None; "kept": the same of the
    share of each constraint type that the replays keep; "samples": [steps, samples generated up to them] of each group, or None;
    "width": how many steps a point stands for}. What is not finite is null."""
    runs = [run for group in groups for run in group]
    last = max((step for run in runs for step in run.metrics), default=0)
    width = max(1, -(-last // min(MAX_POINTS, 3 * MAX_POINTS // max(1, len(groups)))))

    def lines(rows_of, value) -> dict[str, list]:
        """By name in the rows, the curve of each group; rows_of(run): rows by step."""

        def line(name: str, group: Sequence[Run]) -> list | None:
            seeds = ({s: value(row[name]) for s, row in rows_of(run).items() if name in row} for run in group)
            return found if (found := _per_step(seeds, width))[0] else None

        names = sorted({name for run in runs for row in rows_of(run).values() for name in row})
        return {name: [line(name, group) for group in groups] for name in names}

    # the samples up to a bin's end, not their mean over it
    ends = [[{-(-s // width): (s, n) for s, n in samples(run).items()}.values() for run in group] for group in groups]
    return {
        "curves": lines(lambda run: run.metrics, lambda value: value),
        "kept": lines(lambda run: run.kept, lambda counts: counts[0] / counts[1]),
        "samples": [_per_step(map(dict, group), width)[:2] if any(group) else None for group in ends],
        "width": width,
    }
