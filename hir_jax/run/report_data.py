"""What the report page shows, out of run directories: curves with their spread over seeds, and configs.

Nothing here raises for what stands in a run's files: a line that is no row is left out and named in `notes`, a value that is no
number is null. Only a file or directory that cannot be read is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from hir_jax.run.files import RunError, read_config
from hir_jax.textfiles import RowError, read_jsonl

FILES = ("config.json", "metrics.jsonl", "replays.jsonl")
MAX_POINTS = 1_000  # of a curve; of more steps, means of neighbours
NAMED_LINES = 5  # broken lines of a file that are named one by one


class Run(NamedTuple):
    """One run directory. `metrics` and `kept` by step, ascending; `group` is the index of the group that it is a seed of;
    `constraints` of a replay are as `_constraints` gives them. `kept`: constraint type -> (kept, asked) over all replays of a
    step; {} where the run is older than kept.jsonl."""

    name: str
    group: int
    path: Path
    config: dict[str, Any]
    metrics: dict[int, dict[str, Any]]
    replays: list[dict[str, Any]]
    kept: dict[int, dict[str, tuple[int, int]]]
    written: float  # when it last wrote, seconds since 1970


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
    try:
        plain.encode()
    except UnicodeEncodeError:  # halves of surrogate pairs, which JSON can name but UTF-8 cannot write
        plain = re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", plain)
    return plain


def size(value: Any) -> int:
    """Bytes of `embedded(value)`."""
    return len(embedded(value).encode())


# --- reading ---------------------------------------------------------------------------------------------------------


def read_rows(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, [] if there is none; broken lines are added to `notes`, but for the unfinished last
    one that a kill leaves. Raises RowError for a file that cannot be read at all."""
    broken: list[RowError] = []
    rows = [row for _, row in read_jsonl(path, broken.append, own=True)] if path.exists() else []
    notes += [f"{error}; it is left out here. Mend or remove that line" for error in broken[:NAMED_LINES]]
    if len(broken) > NAMED_LINES:
        notes.append(f"{path}: {len(broken) - NAMED_LINES} more lines are no JSON objects")
    return rows


def _constraints(given: Any) -> list[tuple[str, str, str]]:
    """(type, text, "1" met, "0" not met or "?" unknown) of each constraint of a row of replays.jsonl."""
    if not isinstance(given, list):
        return []
    found = []
    for constraint in given:
        if isinstance(constraint, dict):
            met = constraint.get("satisfied")
            mark = "1" if met is True else "0" if met is False else "?"
            found.append((text(constraint.get("id")), text(constraint.get("text")), mark))
    return found


def _kept(given: Any) -> dict[str, tuple[int, int]]:
    """Constraint type -> (kept, asked) of a row of kept.jsonl, without what are no counts."""

    def counts(pair):
        return isinstance(pair, list) and len(pair) == 2 and all(map(is_step, pair)) and pair[0] <= pair[1] > 0

    given = given if isinstance(given, dict) else {}
    return {name: (pair[0], pair[1]) for name, pair in given.items() if counts(pair)}


def is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def read_run(path: Path, name: str, group: int, notes: list[str]) -> Run:
    """A run directory. Raises RunError if it holds none."""
    if not path.is_dir():
        raise RunError(f"{path}: not a directory; give the --workdir of a run")
    found = [path / file for file in FILES if (path / file).exists()]
    if not found:
        raise RunError(f"{path}: holds none of {', '.join(FILES)}; give the --workdir of a run")
    config, metrics = {}, {}
    if path / "config.json" in found:
        try:
            config = read_config(path) or {}
        except RunError as error:
            notes.append(f"{error}. It is shown without a config")
    rows = read_rows(path / "metrics.jsonl", notes)
    for row in rows:
        if is_step(row.get("step")):
            metrics[row["step"]] = row
    if lost := sum(not is_step(row.get("step")) for row in rows):
        notes.append(f"{path / 'metrics.jsonl'}: {lost} rows without a step (a whole number) are left out")
    replays = read_rows(path / "replays.jsonl", notes)
    for row in replays:
        row["constraints"] = _constraints(row.get("constraints"))
    kept = {
        row["step"]: _kept(row.get("kept")) for row in read_rows(path / "kept.jsonl", notes) if is_step(row.get("step"))
    }
    written = max(file.stat().st_mtime for file in found)
    return Run(name, group, path, config, dict(sorted(metrics.items())), replays, dict(sorted(kept.items())), written)


# --- the head of the page --------------------------------------------------------------------------------------------


def _model(config: Mapping[str, Any]) -> str:
    if config.get("model.checkpoint"):
        return text(config["model.checkpoint"])
    layers, width = config.get("model.num_layers"), config.get("model.hidden_size")
    return f"random, {text(layers)} layers of width {text(width)}" if layers and width else ""


def head(run: Run) -> dict[str, Any]:
    """What is said of a run in one line of a table."""
    date = datetime.fromtimestamp(run.written, UTC).strftime("%Y-%m-%d %H:%M UTC")
    seconds = [number(row.get("seconds/step")) or 0 for row in run.metrics.values()]
    return {
        "name": run.name, "group": run.group, "dir": str(run.path), "date": date, "model": _model(run.config),
        "method": text(run.config.get("method")), "seed": text(run.config.get("seed")),
        "steps": max(run.metrics, default=None), "total": number(run.config.get("total_steps")),
        "samples": samples(run).get(max(run.metrics, default=0)), "seconds": round(sum(seconds)),
    }  # fmt: skip


def config_table(runs: Sequence[Run]) -> list[list]:
    """[key, [[value, runs that have it], ...]] for every key; None is the value of a run without the key."""
    table = []
    for key in sorted({key for run in runs for key in run.config}):
        users: dict[str | None, list[int]] = {}
        for index, run in enumerate(runs):
            users.setdefault(text(run.config[key]) if key in run.config else None, []).append(index)
        table.append([key, [[value, who] for value, who in users.items()]])
    return table


# --- what the control says -------------------------------------------------------------------------------------------


def _thirds(run: Run, prefix: str) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """ILA and following of the first and of the last third of the steps that have both, in equal numbers."""
    names = (f"{prefix}ila", f"{prefix}following")
    rows = [[number(row.get(name)) for name in names] for row in run.metrics.values()]
    rows = [row for row in rows if None not in row]
    third = -(-len(rows) // 3)
    parts = rows[:third], rows[len(rows) - third :]
    first, last = ({"ila": [a for a, _ in part], "following": [b for _, b in part]} for part in parts)
    return first, last


def warnings(run: Run) -> list[str]:
    """What the control says against a run, in words. Its following is below half of its ILA, means over the last third of the
    held-out evaluations (without any, of the steps). Or following fell while ILA rose: from the first to the last third of the
    steps, and the 95% intervals of the paired differences exclude 0 in opposite directions."""
    from hir_jax.eval.statistics import over_seeds  # not above: NumPy and SciPy are slow to import

    found = []
    held = _thirds(run, "heldout_")[1]
    last, what = (held, "held-out ") if held["ila"] else (_thirds(run, "")[1], "")
    if last["ila"]:
        ila, following = (math.fsum(last[name]) / len(last[name]) for name in ("ila", "following"))
        if ila > 0 and following < ila / 2:
            found.append(
                f"{run.name}: {what}following is {following:.3f}, less than half of its ILA of {ila:.3f}: most of what its "
                "responses meet they would meet under other instructions too. Its ILA does not measure instruction following."
            )
    before, after = _thirds(run, "")
    if len(before["ila"]) > 1:
        gaps = {
            name: over_seeds([b - a for a, b in zip(before[name], after[name], strict=True)])
            for name in ("ila", "following")
        }
        if gaps["ila"].low > 0 and gaps["following"].high < 0:
            rose, fell = gaps["ila"].mean, -gaps["following"].mean
            found.append(
                f"{run.name}: from the first third of its steps to the last ILA rose by {rose:.3f} and following fell by "
                f"{fell:.3f}: it learns a kind of text that meets many instructions."
            )
    return found


# --- curves ----------------------------------------------------------------------------------------------------------


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and its standard error over seeds, sqrt(sum (x - mean)^2 / (n - 1) / n); None where it is undefined."""
    if not values:
        return None, None
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((x - mean) * (x - mean) for x in values) / (n - 1) / n)


def short(value: float | None) -> float | None:
    """Seven significant digits."""
    return value if value is None or isinstance(value, int) else float(f"{value:.7g}")


def samples(run: Run) -> dict[int, float]:
    """Responses generated up to each step; {} for a run that generates none."""
    total, found = 0, {}
    for step, row in run.metrics.items():
        total += number(row.get("samples")) or 0
        found[step] = total
    return found if total else {}


def _per_step(values: Iterable[Mapping[int, float | None]], width: int) -> list[list]:
    """[steps, means, standard errors, numbers of seeds] of the seeds' values by step. Of `width` neighbouring steps a seed's
    mean is taken first; they stand at the last of them."""
    seeds: dict[int, list[float]] = {}
    last: dict[int, int] = {}
    for by_step in values:
        bins: dict[int, list[float]] = {}
        for step, value in by_step.items():
            place = -(-step // width)
            last[place] = max(step, last.get(place, 0))
            bins.setdefault(place, []).extend(() if value is None else (value,))
        for place, within in bins.items():
            seeds.setdefault(place, []).extend(() if not within else (math.fsum(within) / len(within),))
    found = [[], [], [], []]
    for place in sorted(seeds):
        point = (last[place], *map(short, mean_and_error(seeds[place])), len(seeds[place]))
        for column, value in zip(found, point, strict=True):
            column.append(value)
    return found


def curves(groups: Sequence[Sequence[Run]]) -> dict[str, Any]:
    """{"curves": metric -> [steps, means, standard errors, numbers of seeds] of each group, or None; "kept": the same of the
    share of each constraint type that the replays keep; "samples": [steps, samples generated up to them] of each group, or None;
    "width": how many steps a point stands for}. What is not finite is null."""
    runs = [run for group in groups for run in group]
    last = max((step for run in runs for step in run.metrics), default=0)
    width = max(1, -(-last // min(MAX_POINTS, 3 * MAX_POINTS // max(1, len(groups)))))
    keys = sorted({key for run in runs for row in run.metrics.values() for key in row} - {"step"})

    def column(run: Run, key: str) -> dict[int, float | None]:
        rows = ((step, row[key]) for step, row in run.metrics.items() if key in row)
        return {step: number(x) for step, x in rows if x is None or isinstance(x, int | float)}

    def share(run: Run, name: str) -> dict[int, float]:
        return {step: counts[name][0] / counts[name][1] for step, counts in run.kept.items() if name in counts}

    def lines(names: Iterable[str], of) -> dict[str, list]:
        found = {}
        for name in names:
            of_groups = [_per_step([of(run, name) for run in group], width) for group in groups]
            if any(line[0] for line in of_groups):
                found[name] = [line if line[0] else None for line in of_groups]
        return found

    types = sorted({name for run in runs for counts in run.kept.values() for name in counts})
    # the samples up to a bin's end, not their mean over it
    ends = [[dict(_ends(samples(run), width)) for run in group] for group in groups]
    generated = [_per_step(group, width)[:2] if any(group) else None for group in ends]
    return {"curves": lines(keys, column), "kept": lines(types, share), "samples": generated, "width": width}


def _ends(values: Mapping[int, float], width: int) -> Iterable[tuple[int, float]]:
    """The last (step, value) of each bin."""
    return {-(-step // width): (step, value) for step, value in values.items()}.values()
