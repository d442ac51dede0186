"""Reads files of environment variables, lines NAME=VALUE. Standard library only."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

LINE = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)


class EnvError(Exception):
    """A line cannot be read; the message names the file and the line, and keeps the value to itself."""


def read(path: Path | str) -> dict[str, str]:
    """The variables of a file, as a shell would set them, but without expansions. Empty lines, lines that begin with #, and
    comments behind a value are left out; `export` may precede a name; quotes around a value are taken off. Raises EnvError and
    OSError."""
    found = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if not match:
            raise EnvError(f"{path}:{number}: not a line NAME=VALUE")
        name, value = match.groups()
        if value.startswith(("'", '"')):
            try:
                values = shlex.split(value, comments=True)
            except ValueError:
                values = []
            if len(values) != 1:
                raise EnvError(f"{path}:{number}: {name}: a quoted value ends where its quote ends, on the same line")
            found[name] = values[0]
        else:
            found[name] = re.sub(r"\s+#.*", "", value)
    return found
