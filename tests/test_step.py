"""The stages of a step by hand: rewards of each method, the instruction that a replay's log-probs are given, what is counted."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_runs import small_config

from hir_jax.checks.verifier import Verifier
from hir_jax.data import dataset
from hir_jax.data.segments import tokenise_rendering
from hir_jax.engine import SELECT, Engine
from hir_jax.rollouts import Clock, roll_out
from hir_jax.run.samples import kept_by_type
from hir_jax.step import policy_batch, select_replays
from hir_jax.types import Constraint, Instruction, Replays, Rollout, Verdicts

REWARDS = {  # one prompt, three constraints; samples that meet all, the outer two, none and, without replay, the middle one
    "ilr": [1, 0, 0, 0],
    "clr": [1, 2 / 3, 0, 1 / 3],
    "hir": [1, 0, 1, 0],  # the third row is the second's replay
    "hir_clr": [1, 2 / 3, 1, 0],
}


def training_rows(engine, count):
    data = dataset.load(engine.config, engine.backbone.frame, engine.backbone.stop_ids[0], frozenset())
    rows = data.rows[:count]
    return rows, engine.prompts(rows, data.shapes)


@pytest.mark.parametrize("method", REWARDS)
def test_rewards_of_each_method_worked_by_hand(method):
    engine = Engine(small_config(method=method, rollout__m=3, data__min_constraints=3, data__max_constraints=3))
    _, prompts = training_rows(engine, 1)
    replaying = method in ("hir", "hir_clr")
    satisfied = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0]], bool)
    verdicts = Verdicts(satisfied, np.ones_like(satisfied), np.ones_like(satisfied))
    tokens, zeros = np.arange(8, dtype=np.int32).reshape(4, 2), np.zeros((4, 2), np.float32)
    filled = np.array([True, True, True, not replaying])
    rollout = Rollout(tokens, np.ones((4, 2), bool), zeros, zeros, ended=np.ones(4, bool), filled=filled)
    replays = Replays(*(np.array(x)[:replaying] for x in ([1], [0.5], [True])))
    batch, _ = policy_batch(None, None, prompts, rollout, verdicts, replays, settings=engine.settings)
    np.testing.assert_allclose(batch.reward, REWARDS[method], rtol=1e-6)
    assert engine.settings.replays == replaying and batch.weight.tolist() == [1, 1, 1, 1]
    assert batch.is_replay.tolist() == [False, False, replaying, False]
    assert batch.tokens[:, -2].tolist() == ([0, 2, 2, 4] if replaying else [0, 2, 4, 6])


def test_kept_types_are_counted_over_all_replays():
    """Two prompts of two samples; the second prompt asks for commas twice."""
    asked = (("a:comma", "b:title"), ("a:comma", "a:comma", "c:words"))
    rows = [SimpleNamespace(instruction=Instruction("x", tuple(map(Constraint, ids)))) for ids in asked]
    satisfied = np.array([[1, 0, 0], [1, 1, 1], [1, 0, 1], [0, 1, 0]], bool)
    verdicts = Verdicts(satisfied, np.ones_like(satisfied), np.ones_like(satisfied))
    replays = Replays(np.array([2, 0, 3, 1]), np.zeros(4), np.array([True, True, True, False]))
    two = SimpleNamespace(settings=SimpleNamespace(samples=2))
    found = kept_by_type(two, rows, verdicts, replays)
    assert found == {"a:comma": (3, 5), "b:title": (0, 1), "c:words": (1, 2)}
    assert kept_by_type(two, rows, verdicts, Replays(*(x[:0] for x in replays))) == {}


def on_the_host(engine, row, keep, response):
    """Tokens [1, P + R] and length [1] of the rewritten instruction, rendered and tokenised, with the response behind it."""
    prompt, columns = tokenise_rendering(engine.backbone.frame, row.instruction, keep), engine.config.data.max_prompt
    padded = [engine.backbone.pad_id] * (columns - len(prompt)) + prompt
    return np.concatenate([padded, response]).astype(np.int32)[None], np.array([len(prompt)], np.int32)


def sampled_batch(engine, reference, params, rows, prompts):
    """Of the first step: rollout, verdicts, replays, the batch of `learn`, and its metrics."""
    with Verifier(0, 5.0) as verifier:
        rollout, verdicts, rounds = roll_out(engine, verifier, params, rows, prompts, 0, Clock())
    replays = select_replays(rollout, verdicts, 0, rounds, engine.key(SELECT, 0), settings=engine.settings)
    make = jax.jit(partial(policy_batch, settings=engine.settings))
    found = make(params, reference, prompts, rollout, verdicts, replays)
    return rollout, verdicts, *jax.device_get((replays, *found))


@pytest.mark.parametrize("behaviour", ["original", "rewritten"])
def test_log_probs_of_replays_are_given_q_or_its_rewriting(behaviour):
    """Against those of the instruction rewritten as text; originals keep what the sampler and the reference gave them."""
    engine = Engine(small_config(replay__behaviour=behaviour))
    rows, prompts = training_rows(engine, 4)
    params = engine.load_params()
    reference = jax.tree.map(lambda x: 0.9 * x, params)
    rollout, verdicts, replays, batch, _ = sampled_batch(engine, reference, params, rows, prompts)
    sources = iter(sorted(replays.row[replays.valid]))
    now = engine.logprobs(params, batch.tokens, batch.prompt_length, batch.response_mask)  # before the first update
    ratio = np.exp(now - batch.behaviour_logp)
    original = -1  # slot of the row's source: a replay stands right behind it
    for i in np.flatnonzero(batch.weight > 0):
        mask, row = batch.response_mask[i], rows[batch.group[i]]
        if batch.is_replay[i]:
            assert original == next(sources)
        else:
            original = next(b for b in range(original + 1, len(rollout.filled)) if rollout.filled[b])
        keep = np.ones(len(row.instruction.constraints), bool)
        if batch.is_replay[i] and behaviour == "rewritten":
            keep = verdicts.satisfied[original][: len(keep)]
        tokens, length = on_the_host(engine, row, keep, rollout.tokens[original])
        for weights, found in ((params, batch.behaviour_logp), (reference, batch.ref_logp)):
            expected = engine.logprobs(weights, tokens, length, mask[None])[0]
            np.testing.assert_allclose(found[i], expected, atol=2e-5)
        if not batch.is_replay[i]:
            np.testing.assert_array_equal(batch.behaviour_logp[i], rollout.sampler_logp[original])
    assert next(sources, None) is None and batch.is_replay.any()
    ratios = ratio[batch.is_replay[:, None] & batch.response_mask]
    assert (np.abs(ratios - 1) < 1e-4).all() == (behaviour == "rewritten")
    assert (np.abs(ratio - 1) < 1e-4)[~batch.is_replay].all()


@pytest.mark.parametrize(
    ("changes", "whose", "corrected"),
    [
        ({}, "sampler", False),
        ({"rollout__old_logp": "trainer"}, "trainer", True),
        ({"rollout__old_logp": "trainer", "learner__importance_cap": 0.0}, "trainer", False),
        ({"rollout__dtype": "bfloat16"}, "trainer", True),  # as ever
        ({"rollout__dtype": "bfloat16", "rollout__old_logp": "sampler"}, "sampler", False),
    ],
    ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else str(x),
)
def test_whose_log_prob_pi_old_is(changes, whose, corrected):
    """Without replay, row b of the batch is sample b; the correction is that of the cap, worked in NumPy."""
    engine = Engine(small_config(method="ilr", **changes))
    rows, prompts = training_rows(engine, 4)
    params = engine.load_params()
    rollout, _, _, found, metrics = sampled_batch(engine, params, params, rows, prompts)
    trainer = engine.logprobs(params, found.tokens, found.prompt_length, found.response_mask)
    old = {"sampler": rollout.sampler_logp, "trainer": trainer}[whose]
    np.testing.assert_allclose(found.behaviour_logp, old, atol=1e-6)
    weight = np.minimum(np.exp(trainer - rollout.sampler_logp), 2.0) if corrected else np.ones_like(old)
    np.testing.assert_allclose(found.importance, weight, rtol=1e-5)
    assert ("importance_cut" in metrics) == corrected and ("sampler_gap" in metrics) == (whose == "trainer")
    _, learned = engine.update(engine.init_state(params), found)
    gap = np.abs(trainer - rollout.sampler_logp)[rollout.mask].mean()
    assert (metrics | learned)["sampler_gap"] == pytest.approx(gap, rel=1e-3, abs=1e-6)
    assert (gap > 1e-4) == ("rollout__dtype" in changes)


@pytest.mark.parametrize("method", ["sft", "rft", "dpo"])
def test_methods_without_pi_old_never_ask_for_it(method):
    assert not Engine(
        small_config(method=method, rollout__old_logp="trainer", rollout__m=3)
    ).settings.learner.recomputes_old


def test_learn_is_its_parts_one_after_the_other():
    """The state after `learn` is the one of the batch's update, and its metrics are those."""
    engine = Engine(small_config())
    rows, prompts = training_rows(engine, 4)
    params = engine.load_params()
    reference = jax.tree.map(lambda x: 0.9 * x, params)
    rollout, verdicts, replays, batch, _ = sampled_batch(engine, reference, params, rows, prompts)
    rounds = (len(replays.row) - replays.valid.sum()) // 4
    wanted, expected = engine.update(engine.init_state(params), batch)
    state, metrics, found = engine.learn(engine.init_state(params), reference, prompts, rollout, verdicts, rounds, 0)
    jax.tree.map(np.testing.assert_array_equal, found, replays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, wanted)
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_broken_policy_is_told_from_a_whole_one():
    engine = Engine(small_config())
    _, prompts = training_rows(engine, 4)
    params = engine.load_params()
    assert engine.is_finite(params, prompts)
    for size in (1e9, 1e18):  # finite, but their products are not
        assert not engine.is_finite(jax.tree.map(lambda x, size=size: size * x, params), prompts)
    assert not engine.is_finite(jax.tree.map(lambda x: x * np.nan, params), prompts)
