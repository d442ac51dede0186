"""How much is measured, and the made-up tokens that it is measured on: lengths matter, words do not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

PROMPT_SHORTEST, PROMPT_LONGEST = 64, 96  # tokens; 80 in the mean, padded on the left
PROMPT_TOKENS = 80
NO_STOP = (-1,)  # an id that no token has
_MEDIAN, _SIGMA = 0.4, 0.7  # of a learner's responses, the median as a share of new_tokens


@dataclass(frozen=True)
class Sizes:
    """prompts * samples sequences of up to new_tokens tokens each; the others say what they are in `__main__`."""

    prompts: int = 6
    samples: int = 8
    new_tokens: int = 128
    tail_tokens: int = 256
    slots: int = 16
    steps: int = 6
    grpo_prompt_tokens: int = 96
    verify_rows: int = 512
    rounds: int = 5

    @property
    def rows(self) -> int:
        return self.prompts * self.samples


def random_prompts(vocab: int, lengths: np.ndarray, columns: int) -> np.ndarray:
    """Random tokens, right-aligned in i32[N, columns]."""
    tokens = np.random.default_rng(0).integers(0, vocab, (len(lengths), columns)).astype(np.int32)
    return np.where(np.arange(columns) >= columns - lengths[:, None], tokens, 0)


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
    drawn = log_normal_lengths(rows, max(1, _MEDIAN * new_tokens), _SIGMA, new_tokens)
    return prompt_lengths(rows), drawn


def long_tail(rows: int, longest: int, ratio: float = 10.0) -> np.ndarray:
    """Log-normal lengths of which the longest is `longest` and `ratio` times the median."""
    sigma = math.log(ratio) / NormalDist().inv_cdf((rows - 0.5) / rows)
    return log_normal_lengths(rows, longest / ratio, sigma, longest)
