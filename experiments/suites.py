"""The questions of the paper, each as a list of config overrides: suite -> variant -> overrides.

A suite's other variants are compared with its first, unless `Suite.against` says otherwise. With one seed, all of them start from
the same base model. A key `base.KEY` is KEY of the base model's own fit. Every variant names its method, since the config's
default may change.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Overrides = dict[str, Any]


class Suite(NamedTuple):
    """`variants`: label -> overrides of config keys; `base`: overrides of the base models' own fit, if the runner fits them;
    `against`: label -> the label that it is compared with, if that is not the first variant."""

    question: str
    variants: dict[str, Overrides]
    base: Overrides | None = None
    against: dict[str, str] | None = None


def _of(key: str, values: dict[str, Any] | list) -> dict[str, Overrides]:
    """One variant for each value of a single key."""
    named = values if isinstance(values, dict) else {str(value): value for value in values}
    return {label: {key: value} for label, value in named.items()}


def _hir(variants: dict[str, Overrides]) -> dict[str, Overrides]:
    """Adds the method hir to the variants that name none."""
    return {label: {"method": "hir"} | overrides for label, overrides in variants.items()}


def _with_and_without_replay(question: str, settings: dict[str, Overrides]) -> Suite:
    """Variants hir-NAME and ilr-NAME for each setting; the first is compared with the second."""
    variants = {
        f"{method}-{name}": {"method": method} | overrides
        for name, overrides in settings.items()
        for method in ("hir", "ilr")
    }
    return Suite(question, variants, against={f"hir-{name}": f"ilr-{name}" for name in settings})


# Up to four times the samples a step, so fewer steps, which are measured twice as often.
DYNAMIC = {"rollout.dynamic_rounds": 3, "total_steps": 60, "eval_every": 10}
ESTIMATORS = {  # each with its own average over tokens; DAPO without further samples and without a penalty of length
    "reinforce_plus_plus": {},
    "grpo": {"learner.estimator": "grpo", "learner.average": "sequence"},
    "dapo": {"learner.estimator": "grpo", "learner.clip_high": 0.28},
    "rloo": {"learner.estimator": "rloo"},
    "dr_grpo": {"learner.estimator": "dr_grpo", "learner.average": "constant"},
}
TEMPLATES = tuple(f"type{i}" for i in range(1, 7))
ORIGINALS = {"learner.baseline": "originals", "learner.std_floor": 0.3}
REWRITTEN = {"replay.behaviour": "rewritten"}
ENDED = {"replay.truncated": False}
STRONG_KL = {"learner.kl": 0.03}

SUITES = {
    "reward_signal": Suite(
        "Does replaying failures beat the rewards alone, supervised fitting and preferences?",
        _of("method", ["ilr", "clr", "hir", "hir_clr", "rft", "dpo"]),
        against={"clr": "ilr", "hir": "ilr", "hir_clr": "clr", "rft": "ilr", "dpo": "ilr"},  # with replay: its reward without
    ),
    "rivals": Suite(
        "Do further samples, or earlier successes, do as much as replaying failures?",
        {
            "hir": {"method": "hir"},
            "ilr": {"method": "ilr"},
            "clr": {"method": "clr"},
            "dynamic": {"method": "ilr"} | DYNAMIC,
            "dapo": {"method": "ilr", "learner.overlong_tokens": 10} | ESTIMATORS["dapo"] | DYNAMIC,
            "buffer": {"method": "ilr", "buffer.rows": 512},
        },
    ),
    "selection": Suite(
        "Which failures are worth replaying?",
        _hir(
            _of("replay.strategy", ["curriculum", "integrity", "entropy", "random"])
            | {"none": {"method": "ilr"}, "summed_entropy": {"replay.entropy": "sum"}}
        ),
    ),
    "schedule": Suite(
        "How should the weight of integrity grow?",
        _hir(_of("replay.schedule", ["exponential", "constant", "linear", "cosine"])),
    ),
    "replays_at_equal_trained": Suite(
        "How many of a prompt's eight trained sequences should be replays?",
        _hir({f"{m}+{8 - m}": {"rollout.m": m, "replay.k": 8 - m} for m in (6, 7, 5, 4)})
        | {"8+0": {"method": "ilr"}},  # without replay all m + k are sampled
    ),
    "replays_at_equal_generated": Suite(
        "How many replays should follow from six generated sequences a prompt?",
        _hir({f"6+{k}": {"rollout.m": 6, "replay.k": k} for k in (2, 1, 3, 4)})
        | {"6+0": {"method": "ilr", "rollout.m": 6, "replay.k": 0}},
    ),
    "scope": Suite("From where are replays taken?", _hir(_of("replay.scope", ["batch", "group", "even"]))),
    "estimator": _with_and_without_replay("Does the order of the methods depend on the estimator?", ESTIMATORS),
    "behaviour": Suite(
        "Which prompt gives the log-probs in the ratio's denominator?", _hir(_of("replay.behaviour", ["original", "rewritten"]))
    ),
    "baseline": Suite(
        "What are returns compared with?",
        _hir({"all": {}, "originals": ORIGINALS, "all, floor": {"learner.std_floor": 0.3}}),
    ),
    "recipe": Suite(
        "Which deviations from the paper's recipe help replay?",
        _hir({
            "paper": {"learner.kl": 0.001},
            "kl": STRONG_KL,
            "kl, ended": STRONG_KL | ENDED,
            "kl, originals": STRONG_KL | ORIGINALS,
            "kl, rewritten": STRONG_KL | REWRITTEN,
            "kl, ended, originals": STRONG_KL | ENDED | ORIGINALS,
            "kl, integrity": STRONG_KL | {"replay.strategy": "integrity"},
            "kl, half": STRONG_KL | {"replay.min_integrity": 0.5},
            "kl, 7+1": STRONG_KL | {"rollout.m": 7, "replay.k": 1},
            "kl, fractional": STRONG_KL | {"method": "hir_clr"},
        }),
    ),
    "template": Suite(
        "Does the wording of a rewriting matter?",
        _hir(_of("data.templates", {name: (name,) for name in TEMPLATES})),
        base={"data.templates": TEMPLATES},
    ),
    "constraints": _with_and_without_replay(
        "With how many constraints does replay help?",
        {str(n): {"data.min_constraints": n, "data.max_constraints": n} for n in (2, 4, 6, 8, 10)},
    ),
    "difficulty": _with_and_without_replay(
        "How weak may the base policy be? (share of its training constraints drawn anew)",
        _of("base.data.label_noise", [0.5, 0.9, 0.97]),
    ),
    "base_constraints": _with_and_without_replay(
        "Must the base policy have seen as many constraints as it is trained on? (largest number in its own fit)",
        _of("base.data.max_constraints", [6, 2]),
    ),
    "model_size": _with_and_without_replay(
        "How small may the model be? (hidden size)",
        {
            str(width): {"base.model.hidden_size": width, "base.model.intermediate_size": 2 * width}
            for width in (32, 64, 128)
        },
    ),
}  # fmt: skip
