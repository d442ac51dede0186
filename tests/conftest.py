"""Settings of all tests."""

from hypothesis import settings

settings.register_profile(
    "hir_jax", deadline=None
)  # speed is measured by the bench; other work on a machine is no failure
settings.load_profile("hir_jax")
