"""Estimates with their uncertainty: pass@k, bootstrap over prompts, intervals over seeds, curves; NumPy in, floats out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

DRAWS = 10_000  # of a bootstrap


class Interval(NamedTuple):
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def pass_at_k(passed: int, samples: int, k: int) -> float:
    """Unbiased estimate, from `passed` of `samples` responses, that one of k passes (Chen et al., 2021, eq. 1)."""
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean and its 95% percentile bootstrap interval over units drawn anew (Efron & Tibshirani 1993, ch. 13): one value a
    prompt. For two runs on the same prompts give the differences: the interval is then paired."""
    values = np.asarray(values, float)
    if not len(values):
        raise ValueError("there is nothing to draw from")
    rng, rows = np.random.default_rng(seed), max(1, 2_000_000 // len(values))  # bounded memory
    parts = [
        values[rng.integers(0, len(values), (min(rows, DRAWS - start), len(values)))].mean(-1)
        for start in range(0, DRAWS, rows)
    ]
    low, high = np.quantile(np.concatenate(parts), (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def paired_differences(
    first: Mapping[Hashable, Mapping[str, float]], other: Mapping[Hashable, Mapping[str, float]]
) -> dict[str, Interval]:
    """Of each figure, other - first with its 95% interval, paired over the units (prompts) that have it in both: unit -> figure
    -> value. Empty where no unit is in both."""
    gaps: dict[str, list[float]] = {}
    for unit in other:
        for figure, value in first.get(unit, {}).items():
            if figure in other[unit]:
                gaps.setdefault(figure, []).append(other[unit][figure] - value)
    return {figure: bootstrap(values) for figure, values in gaps.items()}


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values (seeds), with ddof = 1; NaN for fewer than two."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean over a few seeds and its 95% interval by Student's t; give differences of equal seeds for a paired one. A
    bootstrap of five values would be far too narrow. Both ends are NaN for fewer than two values."""
    mean, error = float(np.mean(values)), standard_error(values)
    half = error * float(stats.t.ppf(0.975, max(1, len(values) - 1)))
    return Interval(mean, mean - half, mean + half)


def area_under_curve(x: Sequence[float], y: Sequence[float]) -> float:
    """Mean height of a curve between its first and last x, by trapezoids; its only height where there is one point."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    width = x[-1] - x[0]
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / width) if width else float(y.mean())


def first_reaching(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """The x at which a curve first reaches `level`, linear between its points; infinity where it never does."""
    for i, height in enumerate(y):
        if height >= level:
            if i == 0:
                return float(x[0])
            share = (level - y[i - 1]) / (height - y[i - 1])
            return float(x[i - 1] + share * (x[i] - x[i - 1]))
    return math.inf


def repetition(words: Sequence, n: int = 4) -> float:
    """Share of the n-grams of a text that occurred in it before (seq-rep-n of Welleck et al. 2020); 0 for a shorter one."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
