"""Imported by the fork server of the verifier's pool: workers start, and start again, with language data in memory."""

from hir_jax.checks import registry

registry.load()
