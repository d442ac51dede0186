"""IFBench's 58 types: each module registers some groups of them."""

from hir_jax.checks.ifbench import counts as counts
from hir_jax.checks.ifbench import custom as custom
from hir_jax.checks.ifbench import format as format
from hir_jax.checks.ifbench import words as words
