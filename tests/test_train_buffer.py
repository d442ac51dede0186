"""The training program with a buffer of successes: the weight of its rows, exact resume, one function on the device, LoRA."""

import math
from functools import partial

import jax
import numpy as np
import pytest
from small_runs import small_config, trajectory

from hir_jax import config as configs
from hir_jax.aot.programs import programs
from hir_jax.engine import Engine
from hir_jax.rollouts import no_verdicts
from hir_jax.run.checkpoints import Checkpoints
from hir_jax.step import policy_batch, select_replays, train_again
from hir_jax.train import train
from hir_jax.types import Buffer, PromptBatch, PromptParts, Rollout

# One constraint that nearly any text meets, so that there are successes
EASY = {
    "method": "ilr", "buffer__rows": 6, "data__min_constraints": 1, "data__max_constraints": 1,
    "data__constraint_ids": ("tiny:no_postscript", "keywords:forbidden_words"), "learner__learning_rate": 0.02,
}  # fmt: skip


def state(config, workdir):
    with Checkpoints(workdir / "checkpoints") as saved:
        return jax.device_get(saved.restore(saved.latest(), Engine(config).abstract_state)[0])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Four steps that nobody stopped."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    train(small_config(**EASY, total_steps=4), workdir)
    return workdir


def test_a_run_with_a_buffer(undisturbed):
    """Two responses to each of four prompts and up to four buffered rows, none in the first step; all successes are kept."""
    found = trajectory(undisturbed)[1:]
    assert [row["buffered"] for row in found] == [0, 4, 4, 4] and found[-1]["buffer_rows"] == 6
    for row in found:
        assert row["samples"] == 8 and row["replays"] == 0 and all(map(math.isfinite, row.values()))
        assert row["sampler_gap"] < 1e-4 and row["gap"] < 1e-4  # pi_old of a buffered row is pi_now
    assert [row["buffer_age"] >= 1 for row in found] == [False, True, True, True]
    assert all(0 < row["buffer_ratio"] <= 2 for row in found[1:])
    buffer = state(small_config(**EASY, total_steps=4), undisturbed).buffer
    assert buffer.tokens.shape == (6, 96 + 12) and buffer.born.max() == 3 and (buffer.behaviour_logp < 0).any()


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(undisturbed, tmp_path):
    for steps in (2, 4):
        train(small_config(**EASY, total_steps=steps), tmp_path / "run")
    assert trajectory(tmp_path / "run") == trajectory(undisturbed)
    config = small_config(**EASY, total_steps=4)
    one, other = (state(config, directory) for directory in (undisturbed, tmp_path / "run"))
    assert jax.tree.structure(one) == jax.tree.structure(other) and isinstance(other.buffer, Buffer)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.tobytes() == y.tobytes()


def test_one_function_on_the_device_does_the_same(undisturbed, tmp_path):
    config = small_config(**EASY, total_steps=4, constraints__on_device=True)
    train(config, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "seconds/step_on_device" in lines
    for row, other in zip(trajectory(tmp_path / "run"), trajectory(undisturbed), strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5)
    one, other = (state(config, directory).buffer for directory in (undisturbed, tmp_path / "run"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), one, other)


@pytest.mark.parametrize("how", [{"rollout__old_logp": "trainer", "rollout__dtype": "bfloat16"}, {"lora__rank": 2}])
def test_pi_old_of_the_trainer_and_lora(tmp_path, how):
    train(
        small_config(**EASY | {"method": "clr"} | how, learner__baseline="originals", learner__std_floor=0.3), tmp_path
    )
    found = trajectory(tmp_path)
    assert found[2]["buffered"] == 4 and found[2]["updates_skipped"] == 0 and found[2]["grad_norm"] > 0
    assert all(math.isfinite(value) for row in found for value in row.values())


# ---- a step by hand --------------------------------------------------------------------------------------------------


def given_step(engine, seed, columns):
    """Random prompts, responses, log-probs and verdicts of four prompts of two samples and an empty slot each."""
    rng, config = np.random.default_rng(seed), engine.config
    slots, responses = 12, config.rollout.max_response
    vocabulary = engine.model.vocab_size
    part = np.zeros((4, 1), np.int32)
    parts = PromptParts(
        part, part[:, 0], np.zeros((4, 1, 4, 1), np.int32), np.zeros((4, 1, 4), np.int32), part, part[:, 0], part[:, 0] + 2,
        np.ones((4, 1), bool),
    )  # fmt: skip
    tokens = rng.integers(5, vocabulary, (4, columns)).astype(np.int32)
    prompts = PromptBatch(tokens, rng.integers(3, columns + 1, 4).astype(np.int32), parts)
    filled = np.arange(slots) % 3 < 2
    mask = (np.arange(responses) < rng.integers(1, responses + 1, slots)[:, None]) & filled[:, None]
    logp = ((-5.5 + 0.8 * rng.normal(size=mask.shape)) * mask).astype(np.float32)
    words = rng.integers(5, vocabulary, mask.shape).astype(np.int32)
    rollout = Rollout(words, mask, logp, np.zeros_like(logp), ended=rng.random(slots) < 0.8, filled=filled)
    verdicts = no_verdicts(slots, 1)
    verdicts.present[:], verdicts.known[:] = True, rng.random((slots, 1)) < 0.9
    verdicts.satisfied[:] = (rng.random((slots, 1)) < 0.6) & verdicts.known
    return prompts, rollout, verdicts


@pytest.mark.parametrize("mask_truncated", [False, True])
def test_weights_and_places_of_buffered_rows_in_numpy(mask_truncated):
    """Two steps: what the first buffers, and what the second makes of it, in a smaller prompt bucket."""
    engine = Engine(small_config(method="ilr", buffer__rows=6, buffer__cap=1.5, learner__mask_truncated=mask_truncated))
    params = engine.load_params()
    reference = jax.tree.map(lambda x: 0.9 * x, params)

    def again(params, prompts, rollout, verdicts, buffer, step):
        replays = select_replays(rollout, verdicts, step, 0, engine.key(0), settings=engine.settings)
        batch, _ = policy_batch(params, reference, prompts, rollout, verdicts, replays, settings=engine.settings)
        return batch, *train_again(params, batch, buffer, step, settings=engine.settings)

    first, second = given_step(engine, 0, 96), given_step(engine, 1, 60)
    buffer = engine.init_state(params).buffer
    assert (buffer.born == -1).all()
    run = jax.jit(again)
    plain, joined, buffer, metrics = jax.device_get(run(params, *first, buffer, 3))
    jax.tree.map(np.testing.assert_array_equal, plain, joined)
    assert metrics["buffered"] == 0 and metrics["buffer_age"] == 0 and metrics["buffer_ratio"] == 0
    prompts, rollout, verdicts = first
    usable = rollout.filled & (verdicts.satisfied & verdicts.known)[:, 0] & (rollout.ended | (not mask_truncated))
    rows = np.flatnonzero(usable)[:6]
    assert metrics["buffer_rows"] == len(rows) >= 2 and (buffer.born == 3).sum() == len(rows)
    np.testing.assert_array_equal(buffer.behaviour_logp[: len(rows)], rollout.sampler_logp[rows])

    later = jax.tree.map(lambda x: 1.3 * x, params)
    _, joined, _, metrics = jax.device_get(run(later, *second, buffer, 5))
    short = [b for b in rows if prompts.length[b // 3] <= 60]
    assert 0 < len(short) < len(rows) and metrics["buffered"] == min(4, len(short)) == joined.is_replay.sum()
    assert metrics["buffer_age"] == 2
    places, ratios = np.flatnonzero(joined.is_replay), []
    for place, b in zip(places[np.argsort(joined.group[places])], short, strict=False):
        tokens = np.concatenate([prompts.tokens[b // 3], rollout.tokens[b]])[None]
        given = tokens, prompts.length[b // 3 : b // 3 + 1], rollout.mask[b : b + 1]
        now, ref = (engine.logprobs(p, *given)[0] for p in (later, reference))
        ratio = np.minimum(np.exp(now - rollout.sampler_logp[b]), 1.5)
        mask = rollout.mask[b]
        np.testing.assert_array_equal(joined.response_mask[place], mask)
        np.testing.assert_allclose(joined.behaviour_logp[place][mask], now[mask], atol=2e-5)
        np.testing.assert_allclose(joined.ref_logp[place][mask], ref[mask], atol=2e-5)
        np.testing.assert_allclose(joined.importance[place][mask], ratio[mask], rtol=1e-4)
        length = prompts.length[b // 3]
        np.testing.assert_array_equal(joined.tokens[place, 60 - length : 60], tokens[0, 96 - length : 96])
        np.testing.assert_array_equal(joined.tokens[place, 60:][mask], rollout.tokens[b][mask])
        ratios.extend(ratio[mask])
    assert (
        metrics["buffer_ratio"] == pytest.approx(np.mean(ratios), rel=1e-4) and 0.1 < np.mean(np.equal(ratios, 1.5)) < 1
    )


def test_the_weight_goes_on_from_the_one_in_a_rows_own_step():
    """With pi_old the trainer's and its correction, the weight of an unchanged policy is that of the sample."""
    engine = Engine(small_config(method="ilr", buffer__rows=8, rollout__old_logp="trainer"))
    params = engine.load_params()
    step = given_step(engine, 2, 96)

    def again(params, buffer, step):
        replays = select_replays(*step[1:], 0, 0, engine.key(0), settings=engine.settings)
        batch, _ = policy_batch(params, params, *step, replays, settings=engine.settings)
        return train_again(params, batch, buffer, 0, settings=engine.settings)[1:]

    buffer, _ = jax.device_get(jax.jit(again)(params, engine.init_state(params).buffer, step))
    weights = partial(np.testing.assert_allclose, rtol=1e-3)
    for i in np.flatnonzero(buffer.born >= 0):
        given = buffer.tokens[i : i + 1], buffer.prompt_length[i : i + 1], buffer.response_mask[i : i + 1]
        same = (step[1].tokens == buffer.tokens[i, 96:])[:, :1].any(-1) & (step[1].mask.sum(-1) == given[2].sum())
        b = next(b for b in np.flatnonzero(same) if (step[1].tokens[b] == buffer.tokens[i, 96:])[given[2][0]].all())
        now, mask = engine.logprobs(params, *given)[0], given[2][0]
        sample = np.minimum(np.exp(now - step[1].sampler_logp[b]), 2.0)
        weights(np.minimum(np.exp(now - buffer.behaviour_logp[i]), 2.0)[mask], sample[mask])


def test_the_step_can_be_compiled_for_devices_elsewhere():
    """`hir_jax.aot` passes abstract arguments."""
    engine = Engine(small_config(method="ilr", buffer__rows=3))
    learn = next(program for program in programs(engine) if program.name == "learn")
    state, metrics, _ = learn.function.lower(*learn.arguments).out_info
    shapes = partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert shapes(state) == shapes(engine.abstract_state) and {"buffered", "buffer_rows"} <= metrics.keys()


# ---- without a buffer ------------------------------------------------------------------------------------------------


def test_without_rows_the_state_is_what_it_was():
    plain, buffered = (Engine(small_config(method="ilr", **how)) for how in ({}, {"buffer__rows": 3}))
    assert plain.abstract_state.buffer is None and plain.settings.first_samples == 3
    assert buffered.settings.first_samples == 2
    more = len(jax.tree.leaves(buffered.abstract_state)) - len(jax.tree.leaves(plain.abstract_state))
    assert more == len(Buffer._fields) and buffered.abstract_state.buffer.tokens.sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"method": "hir"},
            "config.buffer.rows = 4 does not go with config.method = 'hir': set it to 0, or the method to ilr or clr",
        ),
        ({"method": "hir_clr"}, "buffer.rows = 4 .*'hir_clr'"),
        ({"method": "sft"}, "buffer.rows = 4 .*'sft'"),
        ({"method": "rft"}, "buffer.rows = 4 .*'rft'"),
        ({"method": "dpo", "rollout__m": 3}, "buffer.rows = 4 .*'dpo'"),
        ({"learner__estimator": "grpo"}, "needs config.learner.estimator = 'reinforce_plus_plus'.*'grpo' compares"),
        ({"learner__estimator": "rloo"}, "'rloo' compares"),
        ({"learner__estimator": "dr_grpo"}, "'dr_grpo' compares"),
        ({"rollout__dynamic_rounds": 1}, "dynamic_rounds = 1: set one of them to 0"),
        ({"replay__k": 0}, "set config.replay.k to 1 or more"),
        ({"buffer__max_age": 0}, "config.buffer.max_age is 0"),
        ({"buffer__cap": -1.0}, "config.buffer.cap is -1.0"),
    ],
    ids=str,
)
def test_buffers_that_cannot_be_are_refused(changes, words):
    with pytest.raises(configs.ConfigError, match=words):
        configs.check(small_config(**{"method": "ilr", "buffer__rows": 4} | changes))


@pytest.mark.parametrize("method", ["ilr", "clr"])
def test_buffers_that_can_be(method):
    configs.check(small_config(method=method, buffer__rows=4, buffer__cap=0.0))
