"""The methods that `config.method` names, by what a training step does differently for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """`loss`: of a token, see `learner.update`. The rest concerns the policy gradient and rejection sampling."""

    loss: str = "policy"  # policy | sft | dpo
    replays: bool = False  # failures are replayed as successes of a rewritten instruction
    fractional: bool = False  # the reward is CLA, else ILA
    successes_only: bool = False  # only samples that meet all constraints are trained on
    samples: bool = True  # responses are sampled, else given with the data


METHODS = {
    "hir": Method(replays=True),
    "ilr": Method(),
    "clr": Method(fractional=True),
    "hir_clr": Method(replays=True, fractional=True),
    "sft": Method("sft", samples=False),
    "rft": Method("sft", successes_only=True),
    "dpo": Method("dpo"),
}
