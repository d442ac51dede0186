"""Estimates against brute force, simulation and worked numbers."""

import itertools
import math

import numpy as np
import pytest

from hir_jax.eval import statistics


@pytest.mark.parametrize("samples", [1, 4, 6])
def test_pass_at_k_equals_all_subsets(samples):
    for passed, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        met = [i < passed for i in range(samples)]
        subsets = [any(chosen) for chosen in itertools.combinations(met, k)]
        assert statistics.pass_at_k(passed, samples, k) == pytest.approx(np.mean(subsets))


def test_bootstrap_covers_the_truth():
    """Of 300 simulated experiments with 80 prompts, about 95% of the intervals hold the true share; and the same for paired
    differences of two runs that agree on many prompts."""
    rng, inside, paired = np.random.default_rng(0), 0, 0
    statistics_draws, statistics.DRAWS = statistics.DRAWS, 1000
    try:
        for trial in range(300):
            found = statistics.bootstrap(rng.random(80) < 0.3, seed=trial)
            inside += found.low <= 0.3 <= found.high
            hard = rng.random(80)
            found = statistics.bootstrap((hard < 0.5).astype(float) - (hard < rng.choice([0.3, 0.6], 80)), seed=trial)
            paired += found.low <= 0.05 <= found.high
    finally:
        statistics.DRAWS = statistics_draws
    assert 0.91 <= inside / 300 <= 0.98 and 0.91 <= paired / 300 <= 0.98


def test_differences_are_paired_over_units_in_both():
    first = {"a": {"x": 0.0, "y": 1.0}, "b": {"x": 1.0, "y": 1.0}, "c": {"x": 9.0, "y": 9.0}}
    other = {"b": {"x": 3.0}, "a": {"x": 1.0}, "d": {"x": -9.0}}
    found = statistics.paired_differences(first, other)
    assert set(found) == {"x"} and found["x"].mean == 1.5 and (found["x"].low, found["x"].high) == (1, 2)
    assert statistics.paired_differences(first, {"d": {"x": 1.0}}) == {}


def test_intervals_over_seeds_cover_the_truth():
    rng = np.random.default_rng(1)
    found = [statistics.over_seeds(rng.normal(2.0, 3.0, 5)) for _ in range(2000)]
    assert 0.935 <= np.mean([f.low <= 2.0 <= f.high for f in found]) <= 0.965


def test_over_seeds_worked_by_hand():
    """1, 2, 3: mean 2, standard error 1 / sqrt(3), t of 2 degrees of freedom 4.3027."""
    found = statistics.over_seeds([1, 2, 3])
    assert found.mean == 2 and found.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert math.isnan(statistics.over_seeds([1]).low) and math.isnan(statistics.standard_error([1]))


def test_curves_worked_by_hand():
    x, y = [0, 10, 30], [0.0, 0.2, 0.4]
    assert statistics.area_under_curve(x, y) == pytest.approx((10 * 0.1 + 20 * 0.3) / 30)
    assert statistics.area_under_curve([5], [0.3]) == 0.3
    assert statistics.first_reaching(x, y, 0.1) == pytest.approx(5)
    assert statistics.first_reaching(x, y, 0.3) == pytest.approx(20)
    assert statistics.first_reaching(x, y, 0.5) == math.inf and statistics.first_reaching(x, [1, 1, 1], 0.5) == 0


def test_repetition_worked_by_hand():
    assert statistics.repetition(["a", "b", "c", "d"]) == 0
    assert statistics.repetition(["a", "a", "a", "a", "a", "a"]) == pytest.approx(2 / 3)  # three 4-grams, all alike
    assert statistics.repetition(["a", "b", "a", "b", "a", "b"], 2) == pytest.approx(3 / 5)
    assert statistics.repetition([]) == 0
