"""A run's directory: config.json, metrics, replays and kept.jsonl, TensorBoard; claiming it, and truncating it on resume."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hir_jax.types import InputError

LINES = ("metrics", "replays", "kept")  # JSON Lines files, each row with its step


class RunError(InputError):
    """A run directory that cannot be used; the message names it and what to do."""


def write_atomically(path: Path, text: str) -> None:
    """Either the old file or the whole new one is there, whatever happens."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def commit() -> str:
    """The commit of this checkout ("-dirty" where files differ from it), or "unknown" where there is none."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The flattened config that the directory was started with, or None. Raises RunError if it cannot be read."""
    path = Path(workdir) / "config.json"
    if path.parent.exists() and not path.parent.is_dir():
        raise RunError(f"{workdir}: not a directory; give --workdir one, or a name that is not there yet")
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: not valid JSON ({error}); restore it or use another --workdir") from error
    if not isinstance(found, dict):
        raise RunError(f"{path}: holds no config; restore it or use another --workdir")
    return found


def refuse_other_config(workdir: Path, changed: Iterable[str]) -> None:
    """Raises RunError if the directory belongs to a run of another config (`changed`: the keys that differ)."""
    changed = list(changed)
    if changed:
        raise RunError(
            f"{workdir} holds a run of another config; changed: {', '.join(changed)}. "
            "Use another --workdir, or give these keys their old values (see config.json there)"
        )


def refuse_foreign(workdir: Path) -> None:
    """Raises RunError if a directory without config.json holds what a run would write over."""
    names = (*(f"{name}.jsonl" for name in LINES), "checkpoints", "model")
    found = [name for name in names if (Path(workdir) / name).exists()]
    if found:
        raise RunError(
            f"{workdir} holds {', '.join(found)} but no config.json: it is not known whose they are. "
            "Use another --workdir, or move them away"
        )


def truncate_after(path: Path, step: int) -> None:
    """Drops the rows of a JSON Lines file that are later than `step`, and lines that are no rows (a kill may cut one off)."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int) or row["step"] > step:
            continue
        kept.append(line)
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_bytes(b"".join(kept))
    os.replace(draft, path)


def _start_wandb(project: str, workdir: Path, config: Mapping | None):
    """A Weights & Biases run of the directory's name, resumed where there is one."""
    import wandb

    name = str(workdir.resolve())
    key = hashlib.sha256(name.encode()).hexdigest()[:16]  # the same directory is the same run
    return wandb.init(project=project, name=name, id=key, resume="allow", dir=str(workdir), config=dict(config or {}))


class RunFiles:
    """Appends to the run's files, one flushed line at a time. `step` is the last one that is kept (resume);
    a fresh run keeps none."""

    def __init__(
        self,
        workdir: Path,
        step: int,
        tensorboard: bool,
        fresh: bool = False,
        wandb: str = "",
        config: Mapping | None = None,
    ):
        self.workdir = Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._files = {}
        for name in LINES:
            path = self.workdir / f"{name}.jsonl"
            truncate_after(path, -1 if fresh else step)
            self._files[name] = path.open("a", encoding="utf-8")
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter  # slow to import
            from tensorboardX.proto.summary_pb2 import Summary

            self._summary = lambda values: Summary(value=[{"tag": k, "simple_value": v} for k, v in values.items()])
            self._board = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=step + 1, write_to_disk=True)
        self._wandb = _start_wandb(wandb, self.workdir, config) if wandb else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in self._files.values():
            file.close()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        self._files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
        self._files[name].flush()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One object a step; what is not finite becomes null (JSON has neither NaN nor infinity)."""
        clean = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        self._append("metrics", {"step": step, **clean})
        if self._board:
            # one event for all: an add_scalar for each took 4.4 ms a step, a tenth of one of the tiny environment
            self._board.file_writer.add_summary(self._summary(values), step)
            self._board.flush()
        if self._wandb:
            self._wandb.log(clean, step=step)

    def distributions(self, step: int, values: Mapping[str, Any], replays: Iterable[Mapping[str, Any]]) -> None:
        """Histograms of arrays, and replayed pairs as texts, in TensorBoard."""
        if not self._board:
            return
        for name, array in values.items():
            if len(array):
                self._board.add_histogram(name, array, step)
        for i, row in enumerate(replays):
            marks = "\n".join(f"- {'met' if c['satisfied'] else 'NOT met'}: {c['text']}" for c in row["constraints"])
            parts = (row["task"], marks, "**response**", row["response"], "**rewritten**", row["rewritten"])
            text = "\n\n".join(parts)
            self._board.add_text(f"replay/{i}", text, step)
        self._board.flush()

    def replays(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """A sample of the replayed pairs of a step."""
        for row in rows:
            self._append("replays", {"step": step, **row})

    def kept(self, step: int, counts: Mapping[str, tuple[int, int]]) -> None:
        """Of all replays of a step: constraint type -> (how often it was kept, how often the originals asked for it)."""
        if counts:
            self._append("kept", {"step": step, "kept": counts})
