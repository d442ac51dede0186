"""Soft constraints (`soft`), and the judges that decide them."""

from hir_jax.checks.judge import soft as soft
