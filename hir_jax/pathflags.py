"""Defines flags that are paths ("~" is the user's home, names may contain any character, gs://... is in a bucket), and starts a
program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags

from hir_jax import paths
from hir_jax.types import InputError


def expanded(name: str) -> str:
    """The name with a leading "~" or "~user" replaced, unless it exists as it is. Raises InputError if there is no such home."""
    try:
        return str(Path(name).expanduser()) if name.startswith("~") and not Path(name).exists() else name
    except RuntimeError as error:
        raise InputError(f"{name}: {error}") from error


def split_names(text: str, exists: Callable[[str], bool]) -> list[str]:
    """Splits names at commas. A name that contains commas is kept whole if it `exists`; the longest such name wins."""
    found, parts = [], text.split(",")
    while parts:
        longest = ((",".join(parts[:end]), end) for end in range(len(parts), 0, -1))
        name, taken = next((one for one in longest if exists(expanded(one[0]))), (parts[0].strip(), 1))
        found.append(expanded(name))
        parts = parts[taken:]
    return found


class _Path(flags.ArgumentParser):
    syntactic_help = "a path"

    def __init__(self, local: bool = False):
        self._local = local

    def parse(self, argument: str) -> str:
        return str(paths.local(expanded(argument))) if self._local and argument else expanded(argument)


class _Paths(flags.ArgumentParser):
    syntactic_help = "paths separated by commas"

    def __init__(self, exists: Callable[[str], bool]):
        self._exists = exists

    def parse(self, argument: str | Sequence[str]) -> list[str]:
        return split_names(argument, self._exists) if isinstance(argument, str) else list(argument)


def define(name: str, default: str | None, help: str, required: bool = False, local: bool = False) -> None:
    """Defines a flag that is one path; local: not in a bucket."""
    flags.DEFINE(_Path(local), name, default, help, required=required)


def define_list(
    name: str,
    default: Sequence[str] | None,
    help: str,
    exists: Callable[[str], bool] = lambda name: paths.at(name).exists(),
    required: bool = False,
) -> None:
    """Defines a flag that is several paths, split by `split_names`."""
    flags.DEFINE(_Paths(exists), name, default, help, serializer=flags.ListSerializer(","), required=required)


def run(
    main: Callable[[Sequence[str]], int | None], doc: str, *, positional: bool = False, prefix: str = "error: ", **how
) -> None:
    """`app.run` of the program `main`. --help shows `doc` and the program's own flags, whether it was started by `python -m` or
    by its command. Bad input (InputError) and the file system's errors end it with `prefix` and their message alone and status 1,
    as do arguments that are no flags, unless it takes `positional` ones."""

    def guarded(argv: Sequence[str]) -> int | None:
        try:
            if argv[1:] and not positional:
                raise InputError(f"unexpected argument {argv[1]!r}: flags are given as --name=value")
            return main(argv)
        except (InputError, OSError, *paths.failures()) as error:
            sys.exit(f"{prefix}{error}")

    sys.modules["__main__"].__doc__ = doc
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("hir_jax."):
            for flag in found:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(guarded, **how)
