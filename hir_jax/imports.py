"""Imports a package without what it would import and we do not use."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Inside, importing one of these modules raises ImportError, unless it was imported before.

    For packages that try to import a large optional module at their top and have a way round its absence. Other threads must not
    import these modules meanwhile, because they would find them missing too.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None: Python's sign for a module that is not there
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
