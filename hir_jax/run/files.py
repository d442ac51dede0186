"""Writes files atomically, and the files of a run's directory: metrics, replays, kept, starts.jsonl, TensorBoard events, W&B."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from hir_jax import bucket, paths
from hir_jax.textfiles import RowError, read_json
from hir_jax.types import InputError

LINES = ("metrics", "replays", "kept", "starts")  # JSON Lines files, each row with its step


class RunError(InputError):
    """A run directory cannot be used; the message names it and what to do."""


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def named_in_errors(path: Path | str) -> Iterator[None]:
    """An OSError raised inside names `path` as its file."""
    try:
        yield
    except OSError as error:
        if not error.errno:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _status(path: Path) -> os.stat_result | None:
    """The status of the file at the path, after following links; None if there is none."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def is_stream(path: Path | str) -> bool:
    """Whether the path is a device, a pipe or a socket, which can be written to but neither read back nor replaced."""
    found = None if paths.in_bucket(path) else _status(Path(path))
    return found is not None and not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode)


def write_atomically(path: Path | str, content: str | bytes | Iterable[str]) -> None:
    """Writes a file so that either the old one or the whole new one is there. `content`: all of it, or its parts in order.

    A symbolic link is kept and its target replaced; permissions are kept. A device or a pipe cannot be replaced and is written
    to directly; if `path` is this program's own standard output or error (/dev/stdout), the text follows what is there
    already. Missing directories are made. An object in a bucket is replaced whole. Raises OSError that names `path`.
    """
    path, texts = paths.at(path), [content] if isinstance(content, str | bytes) else content
    parts = (part if isinstance(part, bytes) else part.encode("utf-8") for part in texts)
    if paths.in_bucket(path):
        return bucket.replace(path, b"".join(parts))
    with named_in_errors(path):
        old = _status(path)
        own = next((f for f in (1, 2) if old and _is_open(f, old)), None)
        if own is None and not is_stream(path):
            _replace(Path(os.path.realpath(path)), parts, old)
            return
        if own is not None:
            sys.stdout.flush()
        with open(path if own is None else own, "wb", closefd=own is None) as file:
            file.writelines(parts)


def _is_open(descriptor: int, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), found)
    except OSError:  # closed
        return False


def _replace(target: Path, parts: Iterable[bytes], old: os.stat_result | None) -> None:
    if old and stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    target.parent.mkdir(parents=True, exist_ok=True)
    # The draft's name does not grow with the target's, which may be as long as the file system allows.
    draft = target.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(draft, "xb") as file:
            if old:
                os.chmod(draft, stat.S_IMODE(old.st_mode))
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def json_line(row: Mapping[str, Any]) -> str:
    """The line of a row in a JSON Lines file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as a JSON Lines file by `write_atomically`."""
    write_atomically(path, map(json_line, rows))


# --- the run that a directory belongs to -----------------------------------------------------------------------------


_ARCHIVED = "$Format:%h$"  # the commit in a tree that `git archive` has written (.gitattributes)


def commit() -> str:
    """The commit of this checkout, with "-dirty" if files differ from it; that of an archive; or "unknown" outside both."""
    if not _ARCHIVED.startswith("$"):
        return _ARCHIVED
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions(*names: str) -> dict[str, str]:
    """Versions of Python and of these packages, without those that are not installed."""
    found = {"python": platform.python_version()}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def refuse_file(workdir: Path) -> None:
    """Raises RunError if the path exists and is not a directory."""
    if workdir.exists() and not workdir.is_dir():
        raise RunError(f"{workdir}: not a directory; give --workdir one, or a name that is not there yet")


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The flattened config of the run in the directory, or None if there is none. Raises RunError if it cannot be read."""
    path = paths.at(workdir) / "config.json"
    refuse_file(path.parent)
    if not path.exists():
        return None
    try:
        found = read_json(path)
    except RowError as error:
        raise RunError(f"{error}; restore it or use another --workdir") from error
    if not isinstance(found, dict):
        raise RunError(f"{path}: holds no config; restore it or use another --workdir")
    return found


def refuse_other_config(workdir: Path, changed: Iterable[str]) -> None:
    """Raises RunError if any config keys differ from those of the directory's run (`changed`: these keys)."""
    changed = list(changed)
    if changed:
        raise RunError(
            f"{workdir} holds a run of another config; changed: {', '.join(changed)}. "
            "Use another --workdir, or give these keys their old values (see config.json there)"
        )


def refuse_foreign(workdir: Path) -> None:
    """Raises RunError if a directory without config.json holds files that a run would overwrite."""
    names = (*(f"{name}.jsonl" for name in LINES), "checkpoints", "model")
    found = [name for name in names if (paths.at(workdir) / name).exists()]
    if found:
        raise RunError(
            f"{workdir} holds {', '.join(found)} but no config.json: it is not known whose they are. "
            "Use another --workdir, or move them away"
        )


# --- a run's rows ----------------------------------------------------------------------------------------------------


def truncate_after(path: Path, step: int) -> None:
    """Drops the rows of a JSON Lines file after `step`, and lines that are not rows (a kill may leave half a line)."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            text = line.decode("utf-8")
            row = json.loads(text) if text.endswith("\n") else None
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int) or row["step"] > step:
            continue
        kept.append(text)
    write_atomically(path, kept)


def _start_wandb(project: str, workdir: Path, config: Mapping | None):
    """A Weights & Biases run named after the directory; an existing one is resumed. Its own files are in the directory
    or, for one in a bucket, where wandb puts them."""
    import wandb

    place = None if paths.in_bucket(workdir) else str(workdir)
    name = str(workdir.resolve() if place else workdir)
    key = hashlib.sha256(name.encode()).hexdigest()[:16]  # the same for the same directory
    return wandb.init(project=project, name=name, id=key, resume="allow", dir=place, config=dict(config or {}))


class Appender:
    """Appends rows to a JSON Lines file, a device or a pipe. Each is written when `write` returns; an OSError names the file."""

    def __init__(self, path: Path | str):
        self._path = Path(path)
        self._file = self._path.open("ab", buffering=0)  # unbuffered, so that `close` has nothing left to write

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, row: Mapping[str, Any]) -> None:
        left = json_line(row).encode("utf-8")
        with named_in_errors(self._path):
            while left:
                left = left[self._file.write(left) :]


class RunFiles:
    """Appends to the run's files, one row at a time. On resume rows after `step` are dropped; a fresh run drops all. Those of a
    run in a bucket are kept locally and put up by `bucket.Mirror`."""

    def __init__(
        self,
        workdir: Path,
        step: int,
        tensorboard: bool,
        fresh: bool = False,
        wandb: str = "",
        config: Mapping | None = None,
    ):
        self.workdir, self._mirror = paths.at(workdir), None
        if paths.in_bucket(workdir):
            self._mirror = bucket.Mirror(self.workdir, [f"{name}.jsonl" for name in LINES])
        directory = self._mirror.local if self._mirror else self.workdir
        directory.mkdir(parents=True, exist_ok=True)
        self._files = {}
        for name in LINES:
            path = directory / f"{name}.jsonl"
            truncate_after(path, -1 if fresh else step)
            self._files[name] = Appender(path)
        made = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit()}
        self._files["starts"].write({"step": step} | made | versions("hir_jax", "jax"))
        self._board = None
        if tensorboard:
            from hir_jax.run.board import Board  # slow to import

            self._board = Board(directory / "tensorboard", step + 1)
        self._wandb = _start_wandb(wandb, self.workdir, config) if wandb else None

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        for file in self._files.values():
            file.__exit__()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()
        if self._mirror:
            self._mirror.__exit__(*failure)

    def put_up(self) -> None:
        """Returns when all that was written is in the run's directory, which takes time only for one in a bucket."""
        if self._mirror:
            self._mirror.put_up()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one object for a step. Values that are not finite become null, since JSON has neither NaN nor infinity."""
        clean = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        self._files["metrics"].write({"step": step, **clean})
        if self._board:
            self._board.scalars(values, step)
            self._board.flush()
        if self._wandb:
            self._wandb.log(clean, step=step)
        if self._mirror:
            self._mirror.check()

    def distributions(self, step: int, values: Mapping[str, Any], replays: Iterable[Mapping[str, Any]]) -> None:
        """Writes histograms of arrays, and replayed pairs as texts, to TensorBoard."""
        if not self._board:
            return
        for name, array in values.items():
            if len(array):
                self._board.histogram(name, array, step)
        for i, row in enumerate(replays):
            marks = "\n".join(f"- {'met' if c['satisfied'] else 'NOT met'}: {c['text']}" for c in row["constraints"])
            parts = (row["task"], marks, "**response**", row["response"], "**rewritten**", row["rewritten"])
            text = "\n\n".join(parts)
            self._board.text(f"replay/{i}", text, step)
        self._board.flush()

    def replays(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes a sample of a step's replayed pairs."""
        for row in rows:
            self._files["replays"].write({"step": step, **row})

    def kept(self, step: int, counts: Mapping[str, tuple[int, int]]) -> None:
        """Writes counts over all replays of a step: constraint type -> (times kept, times asked for by the originals)."""
        if counts:
            self._files["kept"].write({"step": step, "kept": counts})
