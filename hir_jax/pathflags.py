"""Flags that name files and directories ("~" is the user's home, and a name may hold any sign), and the start of a program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags

from hir_jax.types import InputError


def expanded(name: str) -> str:
    """The name with "~" or "~user" at its start replaced, unless it exists as it is. InputError where there is no such home."""
    try:
        return str(Path(name).expanduser()) if name.startswith("~") and not Path(name).exists() else name
    except RuntimeError as error:
        raise InputError(f"{name}: {error}") from error


def split_names(text: str, exists: Callable[[str], bool]) -> list[str]:
    """Names separated by commas, of which each is the longest that `exists`, commas included; else the part up to a comma."""
    found, parts = [], text.split(",")
    while parts:
        longest = ((",".join(parts[:end]), end) for end in range(len(parts), 0, -1))
        name, taken = next((one for one in longest if exists(expanded(one[0]))), (parts[0].strip(), 1))
        found.append(expanded(name))
        parts = parts[taken:]
    return found


class _Path(flags.ArgumentParser):
    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        return expanded(argument)


class _Paths(flags.ArgumentParser):
    syntactic_help = "paths separated by commas"

    def __init__(self, exists: Callable[[str], bool]):
        self._exists = exists

    def parse(self, argument: str | Sequence[str]) -> list[str]:
        return split_names(argument, self._exists) if isinstance(argument, str) else list(argument)


def define(name: str, default: str | None, help: str, required: bool = False) -> None:
    """A flag that is one path."""
    flags.DEFINE(_Path(), name, default, help, required=required)


def define_list(
    name: str,
    default: Sequence[str] | None,
    help: str,
    exists: Callable[[str], bool] = lambda name: Path(name).exists(),
    required: bool = False,
) -> None:
    """A flag that is several, as `split_names` takes them apart."""
    flags.DEFINE(_Paths(exists), name, default, help, serializer=flags.ListSerializer(","), required=required)


def run(main: Callable[[Sequence[str]], int | None], doc: str, **how) -> None:
    """`app.run` of a program whose module's docstring is `doc`: --help shows it with the program's own flags, whether the program
    was started by `python -m` or by its command."""
    sys.modules["__main__"].__doc__ = doc
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("hir_jax."):
            for flag in found:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main, **how)


def run_reporting_errors(main: Callable[[flags.FlagValues], int], doc: str) -> None:
    """`run` of a program whose `main` takes the flags alone and returns the exit status. Errors of input (`types.InputError`, and
    the file system's) end it with their message alone and status 1."""

    def guarded(argv: Sequence[str]) -> int:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument: {argv[1]}")
        try:
            return main(flags.FLAGS)
        except (InputError, OSError) as error:
            print(error, file=sys.stderr)
            return 1

    run(guarded, doc)
