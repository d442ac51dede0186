"""FLOPs, bytes and floors against numbers worked by hand, and the made-up lengths of the bench."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hir_jax.bench import machine, sizes
from hir_jax.model import counting
from hir_jax.model.config import ModelConfig

# weights of matrices: 2 layers of 8 x 4 (q), 2 of 8 x 2 (k, v), 4 x 8 (o), 3 of 8 x 16: 2 * (32 + 32 + 32 + 384) = 960;
# output projection 8 x 10 = 80; attention 4 * (2 heads * 2) * 2 layers = 32 a pair
MODEL = ModelConfig("llama", 10, 8, 16, 2, 2, 1, 2)


def test_flops_worked_by_hand():
    layers = 2 * (8 * 4 + 2 * 8 * 2 + 4 * 8 + 3 * 8 * 16)
    assert layers == 960 == 2 * counting.layer_weights(MODEL)
    assert counting.forward_flops(MODEL, tokens=5, unembedded=3, pairs=7) == 2 * (960 * 5 + 80 * 3) + 32 * 7 == 10304
    # prompt of 3: 3 tokens, 6 pairs, 1 projection; two rows, each a 4th and a 5th token: 9 pairs, 2 projections
    prefill, decode = 2 * (960 * 3 + 80) + 32 * 6, 2 * (960 * 2 + 80 * 2) + 32 * 9
    assert counting.prefill_flops(MODEL, [3]) == prefill
    assert counting.rollout_flops(MODEL, [3], samples=2, new_tokens=3) == prefill + 2 * decode == 15008
    # prompt of 3 and response of 2: 4 tokens are read, 10 pairs, 2 projections; forward and twice as much backward
    one = 3 * (2 * (960 * 4 + 80 * 2) + 32 * 10)
    assert counting.learner_flops(MODEL, [3, 3], responses=2) == 2 * one == 49920
    # prompt of 3 and response of 1: 3 tokens, 6 pairs, 1 projection
    assert counting.learner_flops(MODEL, [3, 3], responses=[2, 1]) == one + 3 * prefill


def test_floor_of_the_rollout_worked_by_hand():
    # float32: (960 + 80) * 4 bytes of weights; a token's cache: k and v, 2 layers, 1 head of 2, 4 bytes
    assert counting.weight_bytes(MODEL) == 4160 and counting.cache_bytes(MODEL) == 2 * 2 * 2 * 4 == 32
    # the first token of three rows each of two prompts: 3 x (3 + 1) and 3 x (5 + 1) pairs; 3 + 5 + 6 cached tokens
    computing, reading = counting.decode_floor_seconds(MODEL, [3, 5], 3, 1, flops_per_s=100.0, bytes_per_s=10.0)
    assert computing == pytest.approx((2 * 1040 * 6 + 32 * 30) / 100)
    assert reading == pytest.approx((4160 + 32 * 14) / 10)
    # prompt of 3, two rows, two steps with one and two tokens of their own each: reading is what holds them up
    steps = [4160 + 32 * (3 + 2 * 1), 4160 + 32 * (3 + 2 * 2)]
    floor = counting.rollout_floor_seconds(MODEL, [3], 2, 3, flops_per_s=100.0, bytes_per_s=10.0)
    assert floor == pytest.approx(6112 / 100 + sum(steps) / 10)
    # with endless bandwidth all that is left is computing
    floor = counting.rollout_floor_seconds(MODEL, [3], 2, 3, flops_per_s=100.0, bytes_per_s=math.inf)
    assert floor == pytest.approx(15008 / 100)


def test_bytes_halve_in_bfloat16():
    half = ModelConfig("llama", 10, 8, 16, 2, 2, 1, 2, compute_dtype="bfloat16")
    assert counting.weight_bytes(half) == 2080 and counting.cache_bytes(half) == 16


@given(st.integers(1, 40), st.integers(1, 40))
def test_pairs_are_the_sum_of_the_contexts(first, more):
    assert counting.causal_pairs(first, first + more) == sum(range(first, first + more + 1))


def test_made_up_lengths():
    tail = sizes.long_tail(48, 256)
    assert tail.max() == 256 and 9 < 256 / np.median(tail) < 11 and tail.min() >= 1
    logs = np.log(np.sort(tail)[4:])  # log-normal: its logarithms are symmetrical (the smallest are rounded)
    assert np.median(logs) == pytest.approx((logs[0] + logs[-5]) / 2, abs=0.2)
    cut = sizes.log_normal_lengths(48, 50, 0.7, 128)
    assert cut.max() == 128 and 48 <= np.median(cut) <= 52
    assert sizes.prompt_lengths(6).mean() == pytest.approx(sizes.PROMPT_TOKENS)


def test_figures_of_both_sides():
    assert machine.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    found = machine.rates([2.0, 4.0], 12) | machine.against([(2.0, 4.0), (4.0, 4.0)], 12)
    assert found["tokens_per_s"] == 4.0 and found["peer_tokens_per_s"] == 3.0
    assert found["times_peer"] == {"median": 1.5, "min": 1.0, "max": 2.0}  # of each round, not of the medians
    both = machine.Ceilings.best([machine.Ceilings({"float32": 1.0}, 5.0), machine.Ceilings({"float32": 2.0}, 4.0)])
    assert both == machine.Ceilings({"float32": 2.0}, 5.0)
