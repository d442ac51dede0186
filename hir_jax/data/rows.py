"""Reads rows, with their "FILE:NUMBER", from JSON Lines, Parquet, directories of the `datasets` library, or the Hub.

`read_each` turns rows into instructions and names those that break their schema.

A path may be a JSON Lines file, a parquet file, a directory that the `datasets` library saved, or a directory of JSON
Lines or parquet files; or a URL of one of these (gs://, s3://, ... whatever fsspec has a package for), which is copied first. A
name OWNER/NAME that is not a path is a data set of the Hugging Face hub. No loading script is run and no pickle is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hir_jax import paths
from hir_jax.checks import registry
from hir_jax.textfiles import RowError, first_line, read_json, read_jsonl
from hir_jax.types import Constraint, Instruction

if TYPE_CHECKING:
    import pyarrow

_SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow")  # never a hub id, even where there is no such file

PlacedRow = tuple[str, dict[str, Any]]  # ("FILE:NUMBER", the row); NUMBER is the line or, in a table, the row, from 1


class BrokenRowError(RowError):
    """A row is left out. The message gives its place; `reason` is short and the same for all faults of a kind."""

    def __init__(self, place: str, reason: str, detail: str):
        super().__init__(f"{place}: {reason}: {detail}")
        self.reason = reason


class FaultError(Exception):
    """(reason, detail) of what is wrong with a row; `read_each` adds its place."""


def valid_key(key: Any, name: str) -> int | str:
    """The key of a row, in its field `name`. Raises FaultError for one that is neither an integer nor a string."""
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise FaultError("field", f"{name} must be an integer or a string, not {key!r:.80}")
    return key


def read_each(
    path: str | Path, make: Callable[[dict[str, Any], str], Instruction]
) -> tuple[list[Instruction], list[BrokenRowError]]:
    """(`make(row, "FILE:NUMBER")` of every row, one `BrokenRowError` for each row for which it raises a FaultError), both in the
    order of the rows. A key may occur once. Raises RowError if the path cannot be read at all or holds no rows."""
    instructions: list[Instruction] = []
    errors: list[BrokenRowError] = []
    seen: dict[int | str, str] = {}

    def not_a_row(error: RowError) -> None:
        place, _, detail = str(error).partition(": ")
        errors.append(BrokenRowError(place, "not a row", detail))

    for place, row in read_rows(path, not_a_row):
        try:
            instruction = make(row, place)
            if instruction.key in seen:
                raise FaultError("id used before", f"{instruction.key!r} is the id of {seen[instruction.key]} too")
        except FaultError as fault:
            errors.append(BrokenRowError(place, *fault.args))
            continue
        seen[instruction.key] = place
        instructions.append(instruction)
    if not instructions and not errors:
        raise RowError(f"{path}: holds no rows")
    return instructions, errors


def validated(constraints: Iterable[Constraint]) -> tuple[Constraint, ...]:
    """The constraints of a row. Raises FaultError for one that no check can decide."""
    found: list[Constraint] = []
    try:
        for constraint in constraints:
            registry.validate(constraint)
            found.append(constraint)
    except registry.ConstraintError as error:
        unknown = isinstance(error, registry.UnknownConstraintError)
        reason = "unknown constraint" if unknown else "unusable arguments"
        raise FaultError(reason, f"constraint {len(found)}: {error}") from error
    return tuple(found)


def read_rows(path: str | Path, on_error: Callable[[RowError], None]) -> Iterator[PlacedRow]:
    """The rows in order, a directory's files by name. A line that is not a JSON object goes to `on_error`.

    In a table every row has all columns, at all depths, with None for missing values. Raises RowError if the path cannot be
    read at all.
    """
    if not paths.is_url(path):
        yield from _read(Path(path), on_error)
        return
    copy, url = str(paths.local_copy(path)), str(path)
    try:
        for place, row in _read(Path(copy), lambda error: on_error(RowError(str(error).replace(copy, url, 1)))):
            yield place.replace(copy, url, 1), row
    except RowError as error:
        raise RowError(str(error).replace(copy, url, 1)) from error


def _read(path: Path, on_error: Callable[[RowError], None]) -> Iterator[PlacedRow]:
    for file in _files(path):
        if file.suffix == ".parquet":
            yield from _numbered(file, _parquet(file))
        elif file.suffix == ".arrow":
            yield from _numbered(file, _arrow(file))
        else:
            yield from ((f"{file}:{number}", row) for number, row in read_jsonl(file, on_error))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return _files_of(path)
    if not path.exists() and path.suffix not in _SUFFIXES and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        return _files_of(_downloaded(str(path)))
    return [path]


def _files_of(directory: Path) -> list[Path]:
    if (directory / "dataset_dict.json").is_file():
        directory = _split(directory)
    if (directory / "state.json").is_file():
        return [directory / entry["filename"] for entry in read_json(directory / "state.json")["_data_files"]]
    found = {end: sorted(directory.rglob(f"*{end}")) for end in (".jsonl", ".parquet")}
    kinds = [end for end, files in found.items() if files]
    if len(kinds) != 1:
        holds = (
            "both .jsonl and .parquet files" if kinds else "no .jsonl or .parquet file and is no `datasets` directory"
        )
        raise RowError(f"{directory}: holds {holds}; give the path of the file or directory to read")
    return found[kinds[0]]


def _split(directory: Path) -> Path:
    """The split named train, or the only split, of those that the `datasets` library saved together."""
    splits = read_json(directory / "dataset_dict.json")["splits"]
    if "train" not in splits and len(splits) != 1:
        raise RowError(f"{directory}: holds the splits {', '.join(splits)}; give the path of the one to read")
    return directory / ("train" if "train" in splits else splits[0])


def _downloaded(hub_id: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", allow_patterns=["*.jsonl", "*.parquet"]))
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise RowError(f"{hub_id}: the hub does not give this data set out ({error})") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        raise RowError(
            f"{hub_id}: there is no such file or directory, and as a data set of the hub it is not in the local cache "
            f"and the hub was not reached ({type(error).__name__}); give the path of a downloaded file"
        ) from None


def _parquet(file: Path) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow.parquet  # slow to import, and only tables need it

    with pyarrow.parquet.ParquetFile(file) as table:
        yield from table.iter_batches(batch_size=1000)


def _arrow(file: Path) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    with pyarrow.OSFile(str(file)) as source, pyarrow.ipc.open_stream(source) as batches:
        yield from batches


def _numbered(file: Path, batches: Iterator[pyarrow.RecordBatch]) -> Iterator[PlacedRow]:
    import pyarrow

    number = 0
    try:
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield f"{file}:{number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RowError(f"{file}: cannot be read: {first_line(error)}") from error
