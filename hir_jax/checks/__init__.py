"""Is it met? One registry, one folder a family of constraints, and the pool that checks them on the host.

Importing this package registers the families, so that whoever reaches the registry finds it filled.
"""

from hir_jax.checks import extra as extra
from hir_jax.checks import ifbench as ifbench
from hir_jax.checks import ifeval as ifeval
from hir_jax.checks import judge as judge
from hir_jax.checks import muldimif as muldimif
from hir_jax.checks import sandbox as sandbox
