"""Constraint types from files of the user's own: `--checks=FILE` of train, evaluate, score and the programs that make data.

A file is a module that registers types as in docs/constraints.md. It runs in the program's own process, with all its rights, only
because it was named on the command line; its check functions run in the pool of workers as any other's do. The module's name is
the absolute path, which error messages show and which a worker imports.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from hir_jax.checks import registry
from hir_jax.types import InputError


def define_flag() -> None:
    """Defines --checks."""
    from absl import flags  # a worker, which imports this module too, has no flags

    flags.DEFINE_multi_string(
        "checks", [], "A Python file that registers constraint types; may be given several times."
    )


def load_all(names: Iterable[str]) -> None:
    """Imports the files that --checks names."""
    from hir_jax.pathflags import expanded

    for name in names:
        load(str(Path(expanded(name)).resolve()))


def load(path: str) -> None:
    """Imports the file at an absolute path, once. Raises InputError, with file and line, if it cannot be read or run, registers
    nothing, or an id that is registered already."""
    if path in sys.modules:
        return
    if not (path.endswith(".py") and Path(path).is_file()):
        raise InputError(f"--checks={path}: no such file; give a Python file (.py) that registers constraint types")
    spec = importlib.util.spec_from_file_location(path, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path] = module
    try:
        with registry.registering() as ids:
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[path]
        raise InputError(f"--checks={_place(path, error)}: {type(error).__name__}: {error}") from error
    if not ids:
        raise InputError(f"--checks={path}: registers no constraint type (docs/constraints.md shows how)")


def _place(path: str, error: BaseException) -> str:
    """FILE:LINE of the last line of the file that was running; FILE if it did not come so far."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{path}:{lines[-1]}" if lines else path
