"""Settings of all tests."""

import atexit
import os
import shutil
import tempfile

from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes and dtypes in the signatures of array functions are checked at every call.
_MODEL = [f"hir_jax.model.{name}" for name in ("attention", "decode_attention", "decoder", "decoding", "lora")]
install_import_hook(["hir_jax.hir", "hir_jax.learner", "hir_jax.sampler", "hir_jax.step", *_MODEL], "beartype.beartype")

# Tests and the programs that they start share a compilation cache of this session, unless a config names another.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="hir_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Compiling is most of what a test of a program does, and LLVM's optimisation over half of that; tiny models gain nothing by
# it. `XLA_FLAGS= make test` compiles as users do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("NPROC", "1")  # threads of XLA: workers share the cores

# Other work on the machine is no failure; speed is measured by the bench.
settings.register_profile("hir_jax", deadline=None)
settings.load_profile("hir_jax")
