"""Settings of all tests."""

from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes and dtypes in the signatures of array functions are checked at every call.
MODEL = ("attention", "decode_attention", "decoder", "decoding", "lora")
CHECKED = [
    "hir_jax.hir",
    "hir_jax.learner",
    "hir_jax.sampler",
    "hir_jax.step",
    *(f"hir_jax.model.{name}" for name in MODEL),
]
install_import_hook(CHECKED, "beartype.beartype")

settings.register_profile(
    "hir_jax", deadline=None
)  # speed is measured by the bench; other work on a machine is no failure
settings.load_profile("hir_jax")
