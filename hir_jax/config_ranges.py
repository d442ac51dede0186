"""The allowed range of every numeric config key, the allowed words of the others, and values that cannot work together.
`config.check` refuses other values before anything is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hir_jax.data.mixture import FILES, GENERATED, parts_of
from hir_jax.data.templates import REWRITABLE
from hir_jax.hir.methods import METHODS
from hir_jax.model.config import COMPUTE_DTYPES, REMAT_POLICIES
from hir_jax.types import InputError

# A tuple, or "module:NAME" of the table that the words are the keys of: many of these modules import jax, which reading a
# config must not.
CHOICES: Mapping[str, Sequence[str] | str] = {
    "method": "hir.methods:METHODS",
    "data.source": (*GENERATED, *FILES, "tfds", "mixture"),
    "data.template": ("", *REWRITABLE),
    "model.remat": REMAT_POLICIES,
    "rollout.method": "sampler.sample:DRAWS",
    "rollout.dtype": ("", *COMPUTE_DTYPES),
    "rollout.old_logp": ("", "sampler", "trainer"),
    "model.compute_dtype": COMPUTE_DTYPES,
    "model.param_dtype": COMPUTE_DTYPES,
    "lora.base_dtype": COMPUTE_DTYPES,
    "replay.strategy": "hir.select:STRATEGIES",
    "replay.scope": "hir.select:SCOPES",
    "replay.entropy": "hir.select:ENTROPIES",
    "replay.fill": ("resample", "mask"),
    "replay.behaviour": ("original", "rewritten"),
    "replay.schedule": "hir.select:SCHEDULES",
    "learner.estimator": "learner.advantages:ESTIMATORS",
    "learner.baseline": "learner.advantages:BASELINES",
    "learner.average": "learner.update:AVERAGES",
    "learner.kl_in": ("reward", "loss"),
    "learner.kl_estimator": "learner.losses:KL_ESTIMATORS",
    "learner.dpo_pairs": "hir.pairs:PAIRS",
    "learner.schedule": "learner.settings:SCHEDULES",
}


def choices(key: str) -> tuple[str, ...]:
    """The words that a key may be."""
    words = CHOICES[key]
    if isinstance(words, str):
        module, _, name = words.partition(":")
        words = getattr(importlib.import_module(f"hir_jax.{module}"), name)
    return tuple(words)


_FLOAT32_MAX = float(np.finfo(np.float32).max)

# Interval -> keys. The range of a tuple applies to each of its elements.
_JUDGE = "constraints.judge"
RANGES: Mapping[str, Sequence[str]] = {
    "[0, 4294967295]": ("seed",),  # jax takes a seed modulo 2^32
    "[1, 2147483647]": ("total_steps", "buffer.max_age"),  # the step is an int32
    "[1, inf)": (
        "checkpoint_every", "checkpoint_keep", "model.hidden_size", "model.intermediate_size", "model.num_layers",
        "model.num_heads", "data.size", "data.eval_batch", "data.min_constraints", "data.max_constraints",
        "data.batch_prompts", "data.max_prompt", "data.prompt_buckets", "rollout.m", "rollout.max_response",
        "rollout.response_buckets", "learner.mini_batches", "learner.micro_batch_tokens", f"{_JUDGE}.concurrency",
        f"{_JUDGE}.batch_tokens", f"{_JUDGE}.max_length",
    ),
    "[0, inf)": (
        "eval_every", "eval_temperature", "lora.rank", "data.seed", "data.hold_out", "data.eval_size", "rollout.top_k",
        "rollout.slots", "rollout.dynamic_rounds", "rollout.cache_bytes", "rollout.tensor", "buffer.rows", "buffer.cap",
        "learner.overlong_tokens", "constraints.workers", "replay.k", "replay.lambda_0", "replay.eta",
        "replay.min_kept", "learner.std_floor", "learner.learning_rate", "learner.warmup_steps",
        "learner.weight_decay", "learner.max_grad_norm", "learner.clip_high", "learner.importance_cap", "learner.kl",
        "learner.pack_columns", "logging.distributions_every", "logging.replays_per_step", f"{_JUDGE}.retries",
        f"{_JUDGE}.backoff_seconds", f"{_JUDGE}.backoff_max_seconds", f"{_JUDGE}.max_tokens", f"{_JUDGE}.price_in",
        f"{_JUDGE}.price_out",
    ),
    "(0, inf)": (
        "lora.alpha", "rollout.temperature", "constraints.timeout_seconds", "learner.dpo_beta",
        f"{_JUDGE}.deadline_seconds", f"{_JUDGE}.timeout_seconds",
    ),
    "(0, 1]": ("rollout.top_p",),
    "[0, 1]": ("data.label_noise", "replay.min_integrity", "learner.clip_low"),
    "[0, 1)": ("learner.beta1", "learner.beta2", f"{_JUDGE}.threshold"),
    "(1, inf)": ("learner.dual_clip",),  # as verl; at 1 and below it would bound the loss of unclipped tokens too
    "-1 or [1, inf)": ("mesh.data", "mesh.fsdp", "mesh.tensor"),
    "(-inf, inf)": (f"{_JUDGE}.temperature",),
}  # fmt: skip
_WORDS = {
    "[1, 2147483647]": "be positive and at most 2147483647",
    "[1, inf)": "be positive",
    "(0, inf)": "be positive",
    "[0, inf)": "not be negative",
    "-1 or [1, inf)": "be -1 or positive",
}


def _within(interval: str, value: float) -> bool:
    """Whether a number is in an interval such as "[0, 1)", or in one part of a union such as "-1 or [1, inf)"."""
    for part in interval.split(" or "):
        if part[0] not in "[(":
            inside = value == float(part)
        else:
            low, high = map(float, part[1:-1].split(","))
            inside = (value >= low if part[0] == "[" else value > low) and (
                value <= high if part[-1] == "]" else value < high
            )
        if inside:
            return True
    return False


def _fault(interval: str, value: float) -> str:
    """The end of the error message for a number outside its interval, or "". A float must also be inside after rounding to
    float32, because that is its type on the device."""
    wanted = "it must " + _WORDS.get(interval, f"be in {interval}")
    if not -_FLOAT32_MAX <= value <= _FLOAT32_MAX:  # NaN is not either
        return f"; {wanted}, and be finite in float32"
    if not _within(interval, value):
        return f"; {wanted}"
    rounded = float(np.float32(value)) if isinstance(value, float) else value
    return "" if _within(interval, rounded) else f", which is {rounded} in float32; {wanted}"


def faults(flat: Mapping[str, object]) -> Iterator[str]:
    """One error message for each word in a flattened config that its key does not allow and each number outside its range."""
    for key in CHOICES:
        if flat[key] not in (allowed := choices(key)):
            yield f"config.{key} is {flat[key]!r}; it must be one of {', '.join(allowed)}"
    for interval, keys in RANGES.items():
        for key in keys:
            given = flat[key]
            for value in given if isinstance(given, list) else [given]:
                if fault := _fault(interval, value):
                    shown = tuple(given) if isinstance(given, list) else given
                    yield f"config.{key} is {shown}{fault}"


def _data_conflicts(data) -> Iterator[str]:
    if data.source in (*FILES, "tfds") and not data.path:
        yield f"config.data.source is {data.source!r}: set config.data.path"
    if data.source == "tfds" and not data.name:
        yield "config.data.source is 'tfds': set config.data.name"
    if data.mixture or data.source == "mixture":
        try:
            parts_of(data.mixture)
        except InputError as error:
            yield str(error)
        if data.source != "mixture":
            yield f"config.data.mixture is set, but config.data.source is {data.source!r}: make it 'mixture', or the mixture ()"
        elif data.path or data.eval_path:
            yield "config.data.path and eval_path do not go with config.data.source 'mixture': its entries name their files"
    if data.hold_out and (data.source not in (*FILES, "mixture") or data.eval_path):
        yield (
            f"config.data.hold_out = {data.hold_out} takes rows out of the file of source {', '.join(FILES)}, for want of an "
            f"eval_path; with source {data.source!r} and eval_path {data.eval_path!r} set it to 0"
        )


def conflicts(config) -> Iterator[str]:
    """One error message for each set of keys whose values, all within their ranges, cannot work together."""
    rollout, learner, method, rows = config.rollout, config.learner, config.method, config.buffer.rows
    yield from _data_conflicts(config.data)
    if learner.baseline == "originals" and not learner.std_floor and learner.estimator not in ("rloo", "dr_grpo"):
        yield (
            "config.learner.baseline = 'originals' needs config.learner.std_floor above 0 (0.3, say): where no original "
            "succeeds their deviation is 0, and replays would be divided by it"
        )
    steps = tuple(config.logging.profile_steps)
    if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
        yield f"config.logging.profile_steps = {steps}: give the first and the last step, (10, 12), say, or () for no trace"
    limit = config.data.max_prompt
    if any(bucket > limit for bucket in config.data.prompt_buckets):
        yield f"config.data.prompt_buckets = {config.data.prompt_buckets}: each must be at most config.data.max_prompt = {limit}"
    policy = [name for name, each in METHODS.items() if each.loss == "policy"]
    without_replay = [name for name in policy if not METHODS[name].replays]
    for key, value, fitting in (
        ("rollout.dynamic_rounds", rollout.dynamic_rounds, without_replay),
        ("buffer.rows", rows, without_replay),
        ("learner.overlong_tokens", learner.overlong_tokens, policy),
    ):
        if value and method not in fitting:
            yield (
                f"config.{key} = {value} does not go with config.method = {method!r}: set it to 0, or the method to "
                f"{' or '.join(fitting)}"
            )
    if learner.overlong_tokens > rollout.max_response:
        yield (
            f"config.learner.overlong_tokens = {learner.overlong_tokens} must not be above config.rollout.max_response = "
            f"{rollout.max_response}: it is how many tokens before it the punishment begins"
        )
    if rollout.dynamic_rounds and config.data.source == "mixture":
        yield (
            f"config.rollout.dynamic_rounds = {rollout.dynamic_rounds} draws further rows without regard to the weights of "
            "config.data.mixture: set it to 0"
        )
    if rows and rollout.dynamic_rounds:
        yield f"config.buffer.rows = {rows} and config.rollout.dynamic_rounds = {rollout.dynamic_rounds}: set one of them to 0"
    if rows and learner.estimator != "reinforce_plus_plus":
        yield (
            f"config.buffer.rows = {rows} needs config.learner.estimator = 'reinforce_plus_plus', whose baseline is of the whole "
            f"batch; {learner.estimator!r} compares with rows of the same prompt, which a buffered row does not have in its batch"
        )
    if rows and not config.replay.k:
        yield (
            f"config.buffer.rows = {rows}: buffered rows take N * config.replay.k places of a batch, so set config.replay.k to 1 "
            "or more"
        )
