"""Continuous batching against the plain loop, and its use of the slots against a simulated queue."""

import heapq
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import sharded_rollout
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from small_runs import ROOT, environment

from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.sampler.continuous import Share, decode_steps, sample_continuous, slots_within
from hir_jax.sampler.sample import Sampling, sample
from hir_jax.types import InputError, Rollout

MODEL = ModelConfig("qwen2", 61, 32, 64, 2, 4, 2, 8, attention_bias=True)
LONGEST = 9
SETTINGS = Sampling(max_response=LONGEST, stop_ids=tuple(range(9)), pad_id=0)  # so many that some rows end at once
LENGTHS = np.array([7, 3, 1, 6], np.int32)
ROWS = np.random.default_rng(1).permutation(40)[:16].reshape(4, 4).astype(np.int32)


def prompts_of(length, seed=0, columns=7):
    """Right-aligned i32[N, P] of random words."""
    tokens = np.random.default_rng(seed).integers(9, 61, (len(length), columns)).astype(np.int32)
    return np.where(np.arange(columns) >= columns - np.asarray(length)[:, None], tokens, 0).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    made = jax.jit(decoder.init, static_argnums=0)(MODEL, jax.random.key(0))
    return jax.tree.map(lambda x: x * 2 if x.ndim > 1 else x, made)  # sharper than a fresh model's even soft-max


def compiled(function, model=MODEL, **options):
    run = jax.jit(partial(function, model=model, **options))

    def call(*arguments):
        return jax.device_get(run(*arguments))

    call.compilations = run._cache_size
    return call


@pytest.fixture(scope="module")
def plain():
    return compiled(sample, settings=SETTINGS)


@pytest.fixture(scope="module")
def by_slots():
    """slots -> the sampler with limits; afterwards: none was compiled twice."""
    made = {slots: compiled(sample_continuous, settings=SETTINGS, slots=slots) for slots in (1, 5, 40)}
    yield made
    assert all(run.compilations() <= 1 for run in made.values())


def cut(rollout: Rollout, limits) -> Rollout:
    """The plain rollout as if no row had been allowed more than `limits` tokens."""
    limits = np.ravel(limits)
    mask = rollout.mask & (np.arange(rollout.mask.shape[1]) < limits[:, None])
    stop = np.isin(rollout.tokens, SETTINGS.stop_ids) & mask
    return Rollout(
        np.where(mask, rollout.tokens, SETTINGS.pad_id), mask, rollout.sampler_logp * mask, rollout.entropy * mask,
        stop.any(-1), limits > 0,
    )  # fmt: skip


def assert_same(found: Rollout, expected: Rollout):
    for name in ("tokens", "mask", "ended", "filled"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in ("sampler_logp", "entropy"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=5e-5, err_msg=name)


def simulated_steps(mask, slots: int) -> int:
    """Steps until the last row has ended, when each takes the slot that is first free; first tokens cost none."""
    free = [0] * slots
    for length in mask.sum(-1):
        if length > 1:
            heapq.heapreplace(free, free[0] + int(length) - 1)
    return max(free)


def assert_used(usage, mask, slots):
    """No slot was idle while a row waited, and nothing but rows that ran was counted."""
    held = min(slots, len(mask))
    assert usage.slots == held and usage.busy == np.maximum(mask.sum(-1) - 1, 0).sum()
    assert usage.steps == simulated_steps(mask, held) == decode_steps(mask.sum(-1)[None], held)


@pytest.mark.parametrize("slots", [1, 5, 40])
def test_equals_the_plain_loop(params, plain, by_slots, slots):
    arguments = (params, prompts_of(LENGTHS), LENGTHS, ROWS, jax.random.key(2))
    expected = plain(*arguments)
    lengths = expected.mask.sum(-1)
    assert (lengths == 1).sum() > 1 and (lengths == LONGEST).sum() > 1 and len(set(lengths)) > 4
    assert (expected.ended & (lengths == 1)).any() and not expected.ended.all()
    found, usage = by_slots[slots](*arguments, np.full((4, 4), LONGEST, np.int32))
    assert_same(found, expected)
    assert_used(usage, expected.mask, slots)


@pytest.mark.parametrize(
    "columns, length, longest",
    [
        (1, (1, 1, 1, 1), ((9, 1, 4, 9),) * 4),
        (
            12,
            (12, 12, 12, 12),
            ((9, 9, 9, 9), (1, 1, 1, 1), (2, 9, 2, 9), (1, 2, 3, 4)),
        ),  # full; whole prompts end at once
        (16, (1, 16, 2, 9), ((9, 1, 1, 1), (1, 9, 1, 1), (1, 1, 9, 1), (1, 1, 1, 9))),  # one long row a prompt
        (33, (33, 1, 17, 5), ((9, 9, 9, 9),) * 4),
    ],
)
def test_equals_the_plain_loop_at_any_width_of_the_prompts(params, columns, length, longest):
    """Prompt columns from one to more than a power of two, filled or nearly empty, and limits in several mixes."""
    length, limits = np.array(length, np.int32), np.array(longest, np.int32)
    arguments = (params, prompts_of(length, 4, columns), length, ROWS, jax.random.key(6))
    expected = cut(compiled(sample, settings=SETTINGS)(*arguments), limits)
    found, usage = compiled(sample_continuous, settings=SETTINGS, slots=3)(*arguments, limits)
    assert_same(found, expected)
    assert_used(usage, expected.mask, 3)


@pytest.mark.parametrize(
    "slots, changes",
    [
        (5, {"temperature": 0.0}),
        (1, {"temperature": 0.0}),
        (5, {"temperature": 0.7, "policy_temperature": 0.7, "top_k": 20, "top_p": 0.8}),
        (5, {"method": "inverse_cdf"}),
        (3, {"widths": (2, 5, 6)}),
    ],
    ids=["greedy", "greedy-1", "restricted", "inverse_cdf", "buckets"],
)
def test_equals_the_plain_loop_however_tokens_are_drawn(params, slots, changes):
    how = replace(SETTINGS, stop_ids=(3, 4, 5), **changes)
    arguments = (params, prompts_of(LENGTHS, 3), LENGTHS, ROWS, jax.random.key(5))
    found, _ = compiled(sample_continuous, settings=how, slots=slots)(*arguments)
    assert_same(found, compiled(sample, settings=how)(*arguments))


def test_equals_the_plain_loop_in_bfloat16(params):
    """Keys and values stand in other columns there: sums are rounded differently, by less than a bfloat16's last place."""
    model = replace(MODEL, compute_dtype="bfloat16")
    arguments = (params, prompts_of(LENGTHS, 3), LENGTHS, ROWS, jax.random.key(5))
    expected = compiled(sample, model, settings=SETTINGS)(*arguments)
    found, _ = compiled(sample_continuous, model, settings=SETTINGS, slots=5)(*arguments)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.sampler_logp, expected.sampler_logp, atol=0.05)


@examples(max_examples=40, derandomize=True)
@given(
    length=st.lists(st.integers(1, 7), min_size=4, max_size=4),
    limits=st.lists(st.integers(0, LONGEST), min_size=16, max_size=16),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_lengths_and_limits(params, plain, by_slots, length, limits, seed):
    """Prompts and limits of any length, rows of 0 and 1 among them, without another compilation."""
    length, limits = np.array(length, np.int32), np.array(limits, np.int32).reshape(4, 4)
    arguments = (params, prompts_of(length, seed), length, ROWS, jax.random.key(seed))
    expected = cut(plain(*arguments), limits)
    found, usage = by_slots[5](*arguments, limits)
    assert_same(found, expected)
    assert_used(usage, expected.mask, 5)


@pytest.mark.parametrize("limit", [0, 1])
def test_nothing_to_decode(params, plain, by_slots, limit):
    """Not a step of the loop when no row, or only first tokens, are asked for."""
    arguments = (params, prompts_of(LENGTHS), LENGTHS, ROWS, jax.random.key(2))
    found, usage = by_slots[5](*arguments, np.full((4, 4), limit, np.int32))
    assert usage.steps == 0 and usage.busy == 0
    assert_same(found, cut(plain(*arguments), np.full(16, limit)))


@examples(max_examples=3, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, LONGEST), st.integers(0, 99))
def test_any_shape(params, plain, count, samples, slots, longest, seed):
    """N prompts, S samples and slots at will, down to responses of one token: the rows are those of the larger batch."""
    prompts, key = prompts_of(LENGTHS, seed), jax.random.key(seed)
    whole = cut(plain(params, prompts, LENGTHS, ROWS, key), np.full(16, longest))
    kept = np.arange(16).reshape(4, 4)[:count, :samples].ravel()
    run = compiled(sample_continuous, settings=replace(SETTINGS, max_response=longest), slots=slots)
    found, usage = run(params, prompts[:count], LENGTHS[:count], ROWS[:count, :samples], key)
    expected = Rollout(*(x[kept, :longest] if x.ndim > 1 else x[kept] for x in whole))
    assert_same(found, expected)
    assert_used(usage, expected.mask, slots)


def test_queues_must_divide_prompts_and_slots(params):
    for slots, queues in ((6, 4), (6, 3), (0, 1)):
        with pytest.raises(ValueError, match=f"{queues} queues .* 4 prompts and {slots} slots"):
            compiled(sample_continuous, settings=SETTINGS, slots=slots, queues=queues)(
                params, prompts_of(LENGTHS), LENGTHS, ROWS, jax.random.key(0)
            )


def test_slots_that_a_memory_holds():
    """Two prompts of 10 columns, three rows each; 100 bytes a column: 20 columns of prompts, and 10 + 7 a slot."""
    share = Share(prompts=2, columns=10, samples=3, response=8, ring=7, token_bytes=100)
    assert slots_within(6800, share) == 0  # 20 + 6 * 8: all rows, without slots
    assert slots_within(6799, share) == 2  # 20 + 2 * 17 = 54, a third would make 71
    assert slots_within(3700, share) == 1
    with pytest.raises(InputError, match=r"cache_bytes = 3699: .* 2 prompts of 10 tokens and one slot take 3700 bytes"):
        slots_within(3699, share)


def test_eight_devices(tmp_path):
    """Under (2, 2, 2) each of four pairs of devices has its queue: the same rows, and no keys or values travel."""
    command = [sys.executable, sharded_rollout.__file__, str(tmp_path / "eight.npz")]
    process = subprocess.Popen(command, env=environment(8), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    one = jax.jit(partial(sample, model=sharded_rollout.MODEL, settings=sharded_rollout.SETTINGS))
    expected = jax.device_get(one(*sharded_rollout.case()))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    with np.load(tmp_path / "eight.npz") as eight:
        assert_same(Rollout(*(eight[name] for name in Rollout._fields)), expected)
        assert eight["moved"] == 0
        queues = expected.mask.reshape(4, -1, expected.mask.shape[1])
        assert eight["steps"] == max(simulated_steps(mask, sharded_rollout.SLOTS // 4) for mask in queues)
