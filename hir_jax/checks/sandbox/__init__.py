"""Constraints that come with their checker as Python source (`code`), which runs in a sandbox."""

from hir_jax.checks.sandbox import code as code
