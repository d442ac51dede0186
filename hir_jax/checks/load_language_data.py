"""Loads the language data when imported, by the fork server of the verifier's pool: workers then start with them in memory."""

from hir_jax.checks import registry

registry.load()
