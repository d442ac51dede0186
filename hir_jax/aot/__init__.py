"""Compiling a config's functions for chips that are not there: `python -m hir_jax.aot`."""
