"""How fast a config's model samples and learns on this machine: `python -m hir_jax.bench` (see `__main__`)."""
