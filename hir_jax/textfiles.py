"""Reads text, JSON and JSON Lines files in UTF-8, with or without a byte order mark. All readers of such files use this module.

What cannot be read raises a `RowError` that begins with "path" or "path:line". A file in UTF-16 or UTF-32 gives one error, not
one for each line. JSON can escape halves of surrogate pairs ("\\ud83d"), which are not characters: they cannot be written to a
file and no tokenizer accepts them, so a line that holds one is an error too.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hir_jax import paths
from hir_jax.types import InputError

_HALF_NAMED = re.compile(r"\\u[dD][89a-fA-F]")  # in JSON: half of a surrogate pair, with or without the other half
_HALF = re.compile("[\ud800-\udfff]")
_WIDE = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"),
         (codecs.BOM_UTF16_BE, "UTF-16"))  # fmt: skip


class RowError(InputError):
    """A file, or one row of it, cannot be read. The message is "path: ..." or "path:line: ..."."""


def first_line(error: Exception) -> str:
    """The first line of a library's message, short enough to be quoted in ours; the error's type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _without_mark(start: bytes, path: str | Path) -> bytes:
    """The first bytes of a file without UTF-8's byte order mark. Raises RowError for UTF-16 and UTF-32; without a mark these are
    recognised by one zero byte among the first two, because such files begin with an ASCII character."""
    name = next((name for mark, name in _WIDE if start.startswith(mark)), "")
    if not name and len(start) > 1 and (start[0] == 0) != (start[1] == 0):
        name = "UTF-16"
    if name:
        raise RowError(f"{path}: is {name} text; convert it to UTF-8 (iconv -f {name} -t UTF-8)")
    return start.removeprefix(codecs.BOM_UTF8)


def read_text(path: str | Path) -> str:
    """The whole text of a file, all line ends as "\\n". Raises RowError."""
    try:
        with paths.open_bytes(path) as file:
            data = file.read()
    except (OSError, *paths.failures()) as error:
        raise RowError(f"{path}: cannot be read: {paths.reason(error)}") from error
    data = _without_mark(data, path)
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RowError(f"{path}: not UTF-8 text: {error.reason} in line {line}") from error


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its end) of each line that is not blank. Raises RowError if the file cannot be read."""
    try:
        # Bytes, because Python would split text at other separators than newlines too.
        with paths.open_bytes(path) as file:
            for number, line in enumerate(file, start=1):
                line = _without_mark(line, path) if number == 1 else line
                if line.strip():
                    yield number, line
    except (OSError, *paths.failures()) as error:
        raise RowError(f"{path}: cannot be read: {paths.reason(error)}") from error


def parse_json(text: str | bytes, place: str, *, halves: bool = False) -> Any:
    """The JSON value of a text. Raises RowError that begins with `place`. halves: accept halves of surrogate pairs."""
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(text)
        checked = not halves and _HALF_NAMED.search(text)
        half = _HALF.search(json.dumps(value, ensure_ascii=False)) if checked else None
    except (ValueError, RecursionError) as error:
        raise RowError(f"{place}: not JSON: {error}") from error
    if half:
        raise RowError(
            f"{place}: holds \\u{ord(half[0]):04x} alone, half of a surrogate pair, which is no character; remove or replace it"
        )
    return value


def read_json(path: str | Path) -> Any:
    """The JSON value in a file. Raises RowError."""
    return parse_json(read_text(path), str(path))


def read_jsonl(
    path: str | Path, on_error: Callable[[RowError], None] | None = None, *, own: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) for each line of a JSON Lines file; blank lines are skipped.

    A line that is not a JSON object goes to `on_error` as a RowError, and reading continues; without `on_error` the error is
    raised. A file that cannot be read at all always raises RowError.
    own: the file was written by a run. An unfinished last line, as a kill leaves it, is then skipped, and texts may hold
    halves of surrogate pairs.
    """
    for number, line in read_lines(path):
        place = f"{path}:{number}"
        try:
            row = parse_json(line, place, halves=own)
            if not isinstance(row, dict):
                raise RowError(f"{place}: a JSON object is wanted, not {type(row).__name__}")
        except RowError as error:
            if own and not line.endswith(b"\n"):
                return
            if on_error is None:
                raise
            on_error(error)
        else:
            yield number, row
