"""Settings of the learner for tests: the config's defaults with one mini-batch."""

from dataclasses import replace

from hir_jax.config import defaults
from hir_jax.learner.settings import LearnerSettings


def learner_settings(**changes) -> LearnerSettings:
    return replace(LearnerSettings.of(defaults()), **{"mini_batches": 1} | changes)
