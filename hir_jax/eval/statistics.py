"""Means and shares; estimates with their uncertainty: pass@k, bootstrap over prompts, intervals over seeds; curves."""

from __future__ import annotations

import collections
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes a second to import

DRAWS = 10_000  # resamples of a bootstrap


class Interval(NamedTuple):
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def mean(values: Iterable[float]) -> float | None:
    """The mean; None of no values."""
    values = list(values)
    return sum(values) / len(values) if values else None


def share(verdicts: Iterable[bool | int | None]) -> float | None:
    """The share of verdicts that are true; None of no verdicts. An unknown verdict, None, counts as false."""
    return mean(map(bool, verdicts))


def shares(labelled: Iterable[tuple[str, bool | int | None]]) -> dict[str, float]:
    """Label -> the share of its verdicts that are true, in the order in which the labels first come."""
    groups = collections.defaultdict(list)
    for label, verdict in labelled:
        groups[label].append(verdict)
    return {label: share(verdicts) for label, verdicts in groups.items()}


def pass_at_k(passed: int, samples: int, k: int) -> float:
    """The probability that one of k responses passes, estimated without bias from `passed` of `samples` responses (Chen et al.
    2021, eq. 1)."""
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean of one value per prompt, and its 95% percentile bootstrap interval over prompts (Efron & Tibshirani 1993, ch. 13).
    For a paired interval of two runs on the same prompts, give the differences. ValueError if there are no values."""
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
    """Figure -> the mean of other - first and its 95% interval, paired over the units (prompts) that have the figure in both.

    first, other: unit -> figure -> value. The result is empty if they share no unit.
    """
    gaps: dict[str, list[float]] = {}
    for unit in other:
        for figure, value in first.get(unit, {}).items():
            if figure in other[unit]:
                gaps.setdefault(figure, []).append(other[unit][figure] - value)
    return {figure: bootstrap(values) for figure, values in gaps.items()}


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean of independent values (seeds), with ddof = 1; NaN for fewer than two."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean over a few seeds and its 95% interval by Student's t. For a paired interval, give differences of equal seeds.

    A bootstrap of five values would be far too narrow. Both ends are NaN for fewer than two values.
    """
    centre, error = float(np.mean(values)), standard_error(values)
    half = error * float(stdtrit(max(1, len(values) - 1), 0.975))
    return Interval(centre, centre - half, centre + half)


def area_under_curve(x: Sequence[float], y: Sequence[float]) -> float:
    """The mean height of a curve between its first and last x, by trapezoids. A single point gives its own height."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    width = x[-1] - x[0]
    return float(np.trapezoid(y, x) / width) if width else float(y.mean())


def first_reaching(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """The x at which a curve, linear between its points, first reaches `level`; infinity if it never does."""
    for i, height in enumerate(y):
        if height >= level:
            if i == 0:
                return float(x[0])
            part = (level - y[i - 1]) / (height - y[i - 1])
            return float(x[i - 1] + part * (x[i] - x[i - 1]))
    return math.inf


def repetition(words: Sequence, n: int = 4) -> float:
    """The share of a text's n-grams that repeat an earlier one (seq-rep-n, Welleck et al. 2020); 0 for fewer than n words."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
