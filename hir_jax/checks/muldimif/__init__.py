"""MulDimIF's 12 families, registered by `rules`."""

from hir_jax.checks.muldimif import rules as rules
