"""Is it met? One registry, one module per family of constraints, and the pool that checks them on the host.

Importing this package registers the families, so that whoever reaches the registry finds it filled.
"""

from hir_jax.constraints import code as code  # declares constraints that carry their checker
from hir_jax.constraints import ifbench as ifbench  # registers IFBench's 58 types, with the three modules below
from hir_jax.constraints import ifbench_custom as ifbench_custom
from hir_jax.constraints import ifbench_format as ifbench_format
from hir_jax.constraints import ifbench_words as ifbench_words
from hir_jax.constraints import ifeval as ifeval  # registers the 25 IFEval types
from hir_jax.constraints import judge as judge  # declares soft constraints
from hir_jax.constraints import muldimif as muldimif  # registers the 12 families of MulDimIF
from hir_jax.constraints import tiny as tiny  # registers types of the tiny environment
from hir_jax.constraints import training as training  # registers types of our own, for training
