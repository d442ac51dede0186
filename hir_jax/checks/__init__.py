"""Checks of constraints: one registry, one folder a family, and the pool that runs them on the host.

Importing this package registers the families, so the registry is complete for whoever imports it.
"""

# Constraints are drawn in the order of registration, so another order of these imports would generate other rows.
# isort: off
from hir_jax.checks import ifeval as ifeval
from hir_jax.checks import muldimif as muldimif
from hir_jax.checks import extra as extra
from hir_jax.checks import judge as judge
from hir_jax.checks import ifbench as ifbench
from hir_jax.checks import iftrain as iftrain
from hir_jax.checks import sandbox as sandbox
# isort: on
