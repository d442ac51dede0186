"""Sizes of the measured work, and its made-up tokens: only their lengths matter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from hir_jax.types import TrainBatch

PROMPT_SHORTEST, PROMPT_LONGEST = 64, 96  # tokens; 80 in the mean, padded on the left
PROMPT_TOKENS = 80
NO_STOP = (-1,)  # an id that no token has
_MEDIAN, _SIGMA = 0.4, 0.7  # of the log-normal lengths of a learner's responses; the median is a share of new_tokens


def _size(default: int, least: int, help: str) -> int:
    return field(default=default, metadata={"lower_bound": least, "help": help})


@dataclass(frozen=True)
class Sizes:
    """prompts * samples sequences of up to new_tokens tokens each. The fields are flags of the bench."""

    prompts: int = _size(6, 1, "Prompts of a batch.")
    samples: int = _size(8, 2, "Sequences of each prompt, in all phases.")
    new_tokens: int = _size(128, 2, "Most tokens of each response.")
    tail_tokens: int = _size(256, 16, "The same in the phase long_tail.")
    slots: int = _size(16, 1, "Slots of continuous batching in the phase long_tail.")
    steps: int = _size(6, 2, "Steps of the phase step; those that compile are not reported.")
    grpo_prompt_tokens: int = _size(96, 16, "Longest prompt of the phase grpo.")
    verify_rows: int = _size(512, 1, "Responses to verify.")
    rounds: int = _size(5, 1, "Measurements of each; the median is reported.")

    @property
    def rows(self) -> int:
        return self.prompts * self.samples


def random_prompts(vocab: int, lengths: np.ndarray, columns: int) -> np.ndarray:
    """Random tokens, right-aligned in i32[N, columns]."""
    tokens = np.random.default_rng(0).integers(0, vocab, (len(lengths), columns)).astype(np.int32)
    return np.where(np.arange(columns) >= columns - lengths[:, None], tokens, 0)


def train_batch(tokens: np.ndarray, prompts: np.ndarray, mask: np.ndarray, vocab: int) -> TrainBatch:
    """Rows of rewards 0 and 1 in turn whose tokens were all equally likely. tokens: i32[B, P + R]; prompts: lengths i32[B];
    mask: bool[B, R] of the responses."""
    rows, logp = len(tokens), np.where(mask, -np.log(vocab), 0.0).astype(np.float32)
    return TrainBatch(
        tokens, prompts, mask, behaviour_logp=logp, ref_logp=logp, importance=np.ones_like(logp),
        reward=(np.arange(rows) % 2).astype(np.float32), weight=np.ones(rows, np.float32),
        group=np.arange(rows, dtype=np.int32), is_replay=np.zeros(rows, bool),
    )  # fmt: skip


def prompt_lengths(rows: int) -> np.ndarray:
    """i32[rows], evenly from PROMPT_SHORTEST to PROMPT_LONGEST."""
    return np.round(np.linspace(PROMPT_SHORTEST, PROMPT_LONGEST, rows)).astype(np.int32)


def log_normal_lengths(rows: int, median: float, sigma: float, longest: int) -> np.ndarray:
    """i32[rows]: the quantiles of a log-normal distribution at (i + 1/2) / rows, 1 to `longest`, in random order."""
    normal = NormalDist()
    found = [median * math.exp(sigma * normal.inv_cdf((i + 0.5) / rows)) for i in range(rows)]
    lengths = np.clip(np.round(found), 1, longest).astype(np.int32)
    return np.random.default_rng(2).permutation(lengths)


def learner_lengths(rows: int, new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts and log-normal responses of a learner's batch, i32[rows] each."""
    return prompt_lengths(rows), log_normal_lengths(rows, max(1, _MEDIAN * new_tokens), _SIGMA, new_tokens)


def long_tail(rows: int, longest: int, ratio: float = 10.0) -> np.ndarray:
    """Log-normal lengths whose longest is `longest`, `ratio` times the median."""
    sigma = math.log(ratio) / NormalDist().inv_cdf((rows - 0.5) / rows)
    return log_normal_lengths(rows, longest / ratio, sigma, longest)
