"""What the learner takes from the config, and the optimiser that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import optax

from hir_jax.hir.methods import METHODS


@dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """A hashable static argument: the `learner` group of the config (see config.py), and what the step adds to it."""

    loss: str  # policy | sft | dpo
    old_logp: str  # whose log-prob pi_old is: sampler | trainer
    temperature: float
    decay_steps: int  # optimiser updates after which a linear or cosine schedule has reached 0
    estimator: str
    baseline: str
    std_floor: float
    average: str
    kl: float
    kl_in: str
    kl_estimator: str
    dpo_beta: float
    clip_low: float
    clip_high: float
    dual_clip: float
    importance_cap: float
    mini_batches: int
    micro_batch_tokens: int
    pack_columns: int
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    beta1: float
    beta2: float
    max_grad_norm: float

    @classmethod
    def of(cls, config) -> LearnerSettings:
        """The settings of a whole config. Where `rollout.old_logp` is empty, pi_old is the trainer's if the sampler's weights
        have another dtype."""
        rollout, learner = config.rollout, config.learner
        same_dtype = rollout.dtype in ("", config.model.compute_dtype)
        loss = METHODS[config.method].loss
        return cls(
            loss=loss,
            old_logp=rollout.old_logp or ("sampler" if same_dtype else "trainer"),
            temperature=1.0 if loss == "sft" else rollout.temperature,
            decay_steps=0 if learner.schedule == "constant" else config.total_steps * learner.mini_batches,
            **{
                name: value
                for name, value in learner.items()
                if name not in ("mask_truncated", "overlong_tokens", "dpo_pairs")
            },
        )

    @property
    def recomputes_old(self) -> bool:
        """Whether the trainer computes the samples' log-probs before the update, as pi_old."""
        return self.loss == "policy" and self.old_logp == "trainer"


# By the peak and the updates after the warm-up.
SCHEDULES = {
    "constant": lambda peak, rest: optax.constant_schedule(peak),
    "linear": lambda peak, rest: optax.linear_schedule(peak, 0.0, rest),
    "cosine": optax.cosine_decay_schedule,
}


def learning_rate(settings: LearnerSettings) -> optax.Schedule:
    """Learning rate by optimiser update: linear warm-up, then constant, or linear or cosine decay to 0."""
    peak, rest = settings.learning_rate, max(1, settings.decay_steps - settings.warmup_steps)
    warmup = optax.linear_schedule(0.0, peak, max(1, settings.warmup_steps))
    return optax.join_schedules([warmup, SCHEDULES[settings.schedule](peak, rest)], [settings.warmup_steps])


def optimizer(settings: LearnerSettings) -> optax.GradientTransformation:
    """AdamW behind clipping by global norm; weight decay on every parameter (as the released run)."""
    clip = optax.clip_by_global_norm(settings.max_grad_norm) if settings.max_grad_norm else optax.identity()
    return optax.chain(
        clip,
        optax.adamw(
            learning_rate(settings), settings.beta1, settings.beta2, eps=1e-8, weight_decay=settings.weight_decay
        ),
    )
