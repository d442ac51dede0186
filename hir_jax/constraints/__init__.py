"""Is it met? One registry, one module per family of constraints, and the pool that checks them on the host.

Importing this package registers the families, so that whoever reaches the registry finds it filled.
"""

from hir_jax.constraints import ifeval as ifeval  # registers the 25 IFEval types
