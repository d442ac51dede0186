"""Loads the language data when imported, by the fork server of the verifier's pool: workers then start with them in memory."""

import contextlib

from hir_jax.checks import registry
from hir_jax.types import InputError

with contextlib.suppress(
    InputError
):  # data are missing that no constraint of this run may need: `Verifier` says so if one does
    registry.load()
