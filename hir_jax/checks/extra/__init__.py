"""Constraint types of our own: for training, and for the tiny environment."""

from hir_jax.checks.extra import tiny as tiny
from hir_jax.checks.extra import training as training
