"""Constraints that carry their checker as Python source, declared by `code` and run in a cage."""

from hir_jax.checks.sandbox import code as code
