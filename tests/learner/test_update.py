"""Losses by hand, chunks that change nothing, updates that are skipped, AdamW against torch."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learner_settings import learner_settings

from hir_jax.learner import logprobs, losses
from hir_jax.learner.advantages import advantages
from hir_jax.learner.settings import learning_rate, optimizer
from hir_jax.learner.update import (
    gradients,
    init_state,
    response_logprobs,
    update,
)  # fmt: skip
from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.types import TrainBatch

MODEL = ModelConfig("llama", 37, 16, 32, 2, 2, 1, 8)
SETTINGS = learner_settings(learning_rate=1e-2, kl=0.05)


@pytest.fixture(scope="module")
def params():
    return jax.jit(decoder.init, static_argnums=0)(MODEL, jax.random.key(1))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(3)
    rows, prompt, response = 6, 5, 7
    mask = np.arange(response) < rng.integers(1, response + 1, rows)[:, None]
    return TrainBatch(
        tokens=rng.integers(0, 37, (rows, prompt + response)).astype(np.int32),
        prompt_length=rng.integers(1, prompt + 1, rows).astype(np.int32),
        response_mask=mask,
        behaviour_logp=(-3.5 + 0.2 * rng.normal(size=mask.shape) * mask).astype(np.float32) * mask,
        importance=np.ones(mask.shape, np.float32),
        ref_logp=np.full(mask.shape, -3.6, np.float32) * mask,
        reward=np.array([1, 0, 0, 1, 1, 0], np.float32),
        weight=np.array([1, 1, 1, 1, 0, 1], np.float32),
        group=np.array([0, 0, 0, 1, 1, 1], np.int32),
        is_replay=np.array([0, 0, 0, 1, 0, 0], bool),
    )


def relative_error(a, b):
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_surrogate_worked_by_hand():
    """rho = 1.5 and 0.5 with A = +1 and -1, clip 0.2, dual clip 3."""
    logp, old = jnp.log(jnp.array([[1.5, 1.5, 0.5, 0.5, 5.0]])), jnp.zeros((1, 5))
    advantage = jnp.array([[1.0, -1.0, 1.0, -1.0, -1.0]])
    expected = [-1.2, 1.5, -0.5, 0.8, 3.0]
    loss, seen = losses.policy_loss(logp, old, advantage, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    np.testing.assert_allclose(loss, [expected], atol=1e-6)
    assert np.asarray(seen["clipped"]).tolist() == [[True, False, False, True, False]]
    higher, _ = losses.policy_loss(logp, old, advantage, clip_low=0.2, clip_high=0.28, dual_clip=3.0)  # DAPO
    np.testing.assert_allclose(higher, [[-1.28, *expected[1:]]], atol=1e-6)


def test_kl_estimators_worked_by_hand():
    """pi = 0.5, ref = 0.25: d = ln 2; and at d = 0 all are 0."""
    logp, ref = jnp.log(jnp.array([0.5, 0.3])), jnp.log(jnp.array([0.25, 0.3]))
    ln2 = np.log(2)
    for estimator, expected in {"k1": ln2, "k2": ln2**2 / 2, "k3": 0.5 - 1 + ln2}.items():
        np.testing.assert_allclose(losses.kl_loss(logp, ref, estimator), [expected, 0], atol=1e-6)


def test_kl_estimators_are_unbiased_for_small_distances():
    """k1 and k3 have the mean of KL(pi || ref) over all words exactly; k2 to third order; the gradient of k2's mean, words
    drawn by pi, is that of the KL."""
    rng = np.random.default_rng(0)
    logits, ref = rng.normal(size=50), rng.normal(size=50) * 0.1
    ref = jax.nn.log_softmax(logits + ref)
    truth = lambda z: (jax.nn.softmax(z) * (jax.nn.log_softmax(z) - ref)).sum()  # noqa: E731
    pi = jax.nn.softmax(logits)

    def mean(estimator, z):
        return (pi * losses.kl_loss(jax.nn.log_softmax(z), ref, estimator)).sum()

    for estimator, tolerance in {"k1": 1e-4, "k3": 1e-4, "k2": 0.05}.items():
        assert float(mean(estimator, logits)) == pytest.approx(float(truth(logits)), rel=tolerance)
    np.testing.assert_allclose(jax.grad(partial(mean, "k2"))(logits), jax.grad(truth)(logits), atol=1e-6)
    np.testing.assert_allclose(jax.grad(partial(mean, "k1"))(logits), 0, atol=1e-6)


# Of torch 2.13.0: -logsigmoid(0.1 * (chosen - rejected)), and the gradient of its sum by `rejected` (by `chosen`: its negative).
TORCH_DPO = {
    "chosen": [0.0, 3.0, -12.5, 40.0, 1.25],
    "rejected": [0.0, -1.5, 8.0, -260.0, 2.0],
    "loss": [0.693147182, 0.49324894, 2.17109752, 9.35762291e-14, 0.731350124],
    "gradient": [0.0500000007, 0.0389360785, 0.088594757, 9.35762274e-15, 0.0518741198],
}


def test_preference_coefficients_equal_recorded_values_of_torch():
    chosen, rejected = (np.array(TORCH_DPO[name], np.float32) for name in ("chosen", "rejected"))
    loss, coefficient = losses.preference_coefficients(chosen, rejected, 0.1)
    np.testing.assert_allclose(loss, TORCH_DPO["loss"], rtol=1e-5)
    np.testing.assert_allclose(coefficient, TORCH_DPO["gradient"], rtol=1e-5)


def test_preference_coefficients_equal_torch():
    torch = pytest.importorskip("torch", reason="torch is optional: make test TORCH=1")
    chosen, rejected = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32) * 20
    a, b = (torch.tensor(x, requires_grad=True) for x in (chosen, rejected))
    theirs = -torch.nn.functional.logsigmoid(0.1 * (a - b))
    theirs.sum().backward()
    loss, coefficient = losses.preference_coefficients(chosen, rejected, 0.1)
    np.testing.assert_allclose(loss, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(-coefficient, a.grad.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(coefficient, b.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_truncated_importance_worked_by_hand():
    trainer, sampler = jnp.log(jnp.array([[0.5, 0.2, 0.9, 0.1]])), jnp.log(jnp.array([[0.25, 0.4, 0.1, 0.2]]))
    mask = jnp.array([[True, True, True, False]])
    weight, metrics = losses.truncated_importance(trainer, sampler, mask, 3.0)
    np.testing.assert_allclose(weight, [[2.0, 0.5, 3.0, 1.0]], rtol=1e-6)
    assert float(metrics["sampler_gap"]) == pytest.approx((2 * np.log(2) + np.log(9)) / 3, rel=1e-6)
    assert float(metrics["importance_cut"]) == pytest.approx(1 / 3)


def test_no_cap_is_no_correction():
    trainer, sampler = jnp.log(jnp.array([[0.5, 0.2]])), jnp.log(jnp.array([[0.25, 0.4]]))
    weight, metrics = losses.truncated_importance(trainer, sampler, jnp.array([[True, True]]), 0.0)
    assert weight.tolist() == [[1.0, 1.0]] and metrics.keys() == {"sampler_gap"}
    assert float(metrics["sampler_gap"]) == pytest.approx(np.log(2), rel=1e-6)


def test_the_gap_to_the_sampler_is_that_of_the_first_mini_batch(params, batch):
    """Originals of weight above 0 among rows 0 to 2, before any update; not said where the update is not given the sampler's."""
    settings = dataclasses.replace(SETTINGS, mini_batches=2)
    batch = batch._replace(is_replay=np.array([0, 1, 0, 0, 0, 0], bool))
    _, metrics = jax.jit(partial(update, model=MODEL, settings=settings))(init_state(params, settings), batch)
    gap = np.abs(np.asarray(plain_logp(params, batch)) - batch.behaviour_logp)[[0, 2]]
    assert float(metrics["sampler_gap"]) == pytest.approx(gap[batch.response_mask[[0, 2]]].mean(), rel=1e-4)
    for changes in ({"old_logp": "trainer"}, {"loss": "sft"}):
        settings = dataclasses.replace(SETTINGS, **changes)
        _, metrics = jax.jit(partial(update, model=MODEL, settings=settings))(init_state(params, settings), batch)
        assert "sampler_gap" not in metrics


def test_importance_weighs_each_token_of_the_loss(params, batch):
    """Twice the weight on every token is twice the gradient; weight 0 on a row is a row without gradient."""
    run = jax.jit(partial(gradients, model=MODEL, settings=SETTINGS))
    advantage = np.random.default_rng(0).normal(size=batch.response_mask.shape).astype(np.float32)
    once, _ = run(params, batch, advantage)
    twice, _ = run(params, batch._replace(importance=2 * batch.importance), advantage)
    assert relative_error(twice, jax.tree.map(lambda g: 2 * g, once)) < 1e-6
    none, _ = run(params, batch._replace(importance=batch.importance * (np.arange(6) != 1)[:, None]), advantage)
    silent, _ = run(params, batch, advantage * (np.arange(6) != 1)[:, None])
    assert relative_error(none, silent) < 1e-6


def scores(params, batch, **changes):
    rows = batch.tokens, batch.prompt_length, batch.response_mask
    run = jax.jit(partial(response_logprobs, model=MODEL, settings=dataclasses.replace(SETTINGS, **changes)))
    return run(params, *rows)


def test_chunks_change_nothing(params, batch, monkeypatch):
    run = jax.jit(partial(gradients, model=MODEL, settings=SETTINGS))
    advantage = np.random.default_rng(0).normal(size=batch.behaviour_logp.shape).astype(np.float32)
    whole, (whole_grads, whole_metrics) = scores(params, batch), run(params, batch, advantage)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 37 * 3)  # three tokens at a time
    run = jax.jit(partial(gradients, model=MODEL, settings=SETTINGS))
    parts, (grads, metrics) = scores(params, batch), run(params, batch, advantage)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert relative_error(grads, whole_grads) < 1e-5
    assert relative_error(metrics, whole_metrics) < 1e-5


def test_log_probs_equal_a_plain_softmax(params, batch):
    """Against NumPy on the model's own logits, one row at a time, left-aligned."""
    logp = scores(params, batch, temperature=0.8)

    @jax.jit
    def logits(row, length):  # of a left-aligned row
        at = jnp.arange(row.shape[0])[None]
        return decoder.logits(MODEL, params, decoder.hidden_states(MODEL, params, row[None], at, at < length)[0])

    for b in range(6):
        start, end = 5 - batch.prompt_length[b], 5 + batch.response_mask[b].sum()
        row = batch.tokens[b : b + 1, start:end]
        z = np.asarray(logits(np.pad(row[0], (0, 12 - row.shape[1])), row.shape[1]), np.float64) / 0.8
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        for t in range(batch.response_mask[b].sum()):
            at_prompt_end = batch.prompt_length[b] - 1 + t
            assert float(logp[b, t]) == pytest.approx(np.log(p[at_prompt_end, row[0, at_prompt_end + 1]]), abs=1e-4)


def test_entropy_equals_a_plain_softmax():
    rng = np.random.default_rng(0)
    hidden, matrix = rng.normal(size=(2, 3, 8)).astype(np.float32), rng.normal(size=(8, 11)).astype(np.float32)
    _, found = logprobs.token_logprobs(hidden, np.zeros((2, 3), np.int32), matrix, 0.8)
    z = (hidden @ matrix).astype(np.float64) / 0.8
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, -(p * np.log(p)).sum(-1), rtol=1e-4)


def plain_logp(params, batch, temperature=1.0):
    """f32[B, R] of one plain pass over the batch as it stands, without packing or chunks."""
    columns = np.arange(batch.tokens.shape[1])
    start = 5 - batch.prompt_length[:, None]
    hidden = decoder.hidden_states(MODEL, params, batch.tokens, np.maximum(columns - start, 0), columns >= start)
    logp = jax.nn.log_softmax(decoder.logits(MODEL, params, hidden[:, 4:-1]) / temperature)
    return jnp.take_along_axis(logp, batch.tokens[:, 5:, None], axis=-1)[..., 0]


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_kl_enters_once(params, batch, kl_in):
    """In the reward it moves advantages and not the loss of a token, in the loss the other way round."""
    settings = dataclasses.replace(SETTINGS, kl=0.5, kl_in=kl_in)
    _, metrics = jax.jit(partial(update, model=MODEL, settings=settings))(init_state(params, settings), batch)
    norms = {}
    for in_reward, in_loss in ((True, False), (False, True), (True, True), (False, False)):
        values = advantages(batch, settings.estimator, 0.5 if in_reward else 0.0)
        one = dataclasses.replace(settings, kl=0.5 if in_loss else 0.0, kl_in="loss")
        grads, _ = jax.jit(partial(gradients, model=MODEL, settings=one))(params, batch, values)
        norms[in_reward, in_loss] = float(optax.tree.norm(grads))
    expected = norms.pop((kl_in == "reward", kl_in == "loss"))
    assert float(metrics["grad_norm"]) == pytest.approx(expected, rel=1e-5)
    assert all(abs(norm - expected) > 1e-3 * expected for norm in norms.values())
    assert ("kl_ref" in metrics) == (kl_in == "loss")


@pytest.mark.parametrize("average", ["token", "sequence", "constant"])
@pytest.mark.parametrize("kl_estimator", ["", "k1", "k2", "k3"])
def test_averages_and_kl_as_loss_equal_a_plain_gradient(params, batch, average, kl_estimator):
    """Against jax.grad of the loss as it is written down, summed in plain loops over rows."""
    changes = {"average": average, "clip_high": 0.28, "kl": 0.0}
    if kl_estimator:
        changes |= {"kl": 0.3, "kl_in": "loss", "kl_estimator": kl_estimator}
    settings = dataclasses.replace(SETTINGS, **changes)
    advantage = np.random.default_rng(0).normal(size=batch.response_mask.shape).astype(np.float32)

    def loss(params):
        logp, total = plain_logp(params, batch), 0.0
        tokens = sum(batch.response_mask[b].sum() for b in range(6) if batch.weight[b])
        for b in np.flatnonzero(batch.weight):
            length = batch.response_mask[b].sum()
            ratio = jnp.exp(logp[b] - batch.behaviour_logp[b])
            kept = jnp.minimum(ratio * advantage[b], jnp.clip(ratio, 0.8, 1.28) * advantage[b])
            kept = jnp.where(advantage[b] < 0, jnp.maximum(kept, 3.0 * advantage[b]), kept)
            each = -kept
            if kl_estimator:
                d = logp[b] - batch.ref_logp[b]
                each += 0.3 * {"k1": d, "k2": d * d / 2, "k3": jnp.exp(-d) + d - 1}[kl_estimator]
            row = each[:length].sum()
            total += row / {"token": tokens, "sequence": 5 * length, "constant": 5 * 7}[average]
        return total

    value, expected = jax.jit(jax.value_and_grad(loss))(params)
    grads, metrics = jax.jit(partial(gradients, model=MODEL, settings=settings))(params, batch, advantage)
    assert relative_error(grads, expected) < 1e-5
    assert float(metrics["loss"]) == pytest.approx(float(value), abs=1e-5)
    assert ("kl_ref" in metrics) == bool(kl_estimator)


def test_replayed_tokens_outside_the_clip_are_counted(params, batch):
    """Of a clip from 0.8 to 1.28, whose ends lie at different distances from 1."""
    settings = dataclasses.replace(SETTINGS, clip_high=0.28)
    ratio = np.random.default_rng(0).choice([0.7, 0.79, 0.81, 1.0, 1.27, 1.29], batch.response_mask.shape)
    behaviour = np.asarray(plain_logp(params, batch)) - np.log(ratio)
    behaviour = np.where(batch.response_mask, behaviour, 0).astype(np.float32)
    batch = batch._replace(behaviour_logp=behaviour, is_replay=np.arange(6) > 1)
    _, metrics = jax.jit(partial(gradients, model=MODEL, settings=settings))(params, batch, np.zeros_like(behaviour))
    ratio = ratio[batch.response_mask & (batch.is_replay & (batch.weight > 0))[:, None]]
    outside = (ratio < 0.8) | (ratio > 1.28)
    assert 0 < outside.mean() < 1
    assert float(metrics["replay_outside_clip"]) == pytest.approx(outside.mean(), rel=1e-5)


def test_dpo_equals_a_plain_gradient(params, batch):
    """Rows 0 and 1, 2 and 3, 4 and 5 are pairs; row 4 has weight 0, and so has its pair."""
    settings = dataclasses.replace(SETTINGS, loss="dpo", dpo_beta=0.5)
    weight = np.array([1, 1, 1, 1, 0, 0], np.float32)
    batch = batch._replace(weight=weight)

    def loss(params):
        row = jnp.where(batch.response_mask, plain_logp(params, batch) - batch.ref_logp, 0.0).sum(-1)
        return -jax.nn.log_sigmoid(0.5 * (row[0::2] - row[1::2]))[:2].mean()

    value, expected = jax.jit(jax.value_and_grad(loss))(params)
    state, metrics = jax.jit(partial(update, model=MODEL, settings=settings))(init_state(params, settings), batch)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5) and float(metrics["pairs"]) == 2
    transform = optimizer(settings)
    changes, _ = transform.update(expected, transform.init(params), params)
    assert relative_error(state.params, jax.tree.map(jnp.add, params, changes)) < 1e-5


def test_rows_of_weight_zero_change_nothing(params, batch):
    """Row 4 has weight 0: other tokens, rewards and log-probs there leave the update as it was."""
    other = batch._replace(
        tokens=batch.tokens.copy(), reward=batch.reward.copy(), behaviour_logp=batch.behaviour_logp.copy()
    )
    other.tokens[4], other.reward[4], other.behaviour_logp[4] = 1, 9.0, -1.0
    run = jax.jit(partial(update, model=MODEL, settings=SETTINGS))
    one, _ = run(init_state(params, SETTINGS), batch)
    two, _ = run(init_state(params, SETTINGS), other)
    assert relative_error(two.params, one.params) < 1e-6


def test_non_finite_gradients_are_skipped_and_counted(params, batch):
    bad = batch._replace(behaviour_logp=np.where(batch.response_mask, np.nan, 0).astype(np.float32))
    run = jax.jit(partial(update, model=MODEL, settings=SETTINGS))
    state = init_state(params, SETTINGS)
    after, metrics = run(state, bad)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
    assert int(after.step) == 1 and int(after.skipped) == 1 == int(metrics["updates_skipped"])
    after, metrics = run(after, batch)
    assert int(after.skipped) == 1 and relative_error(after.params, params) > 0


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_and_moments_in_bfloat16(batch, tied):
    """They keep their dtype, and move as float32 ones do, within bfloat16's rounding."""
    model = dataclasses.replace(MODEL, tie_embeddings=tied)
    start = jax.jit(decoder.init, static_argnums=(0, 2))(model, jax.random.key(1), jnp.bfloat16)
    step = jax.jit(partial(update, model=model, settings=SETTINGS))
    found, _ = step(init_state(start, SETTINGS), batch)
    wanted, _ = step(init_state(jax.tree.map(lambda x: x.astype(jnp.float32), start), SETTINGS), batch)
    assert {x.dtype for x in jax.tree.leaves((found.params, found.opt_state)) if x.ndim} == {jnp.dtype(jnp.bfloat16)}
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted.params), strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=2**-7, atol=2e-3)


@pytest.mark.parametrize("clip", [0.0, 1e-2])
def test_no_limit_to_the_norm_is_no_clipping(params, batch, clip):
    """The moments are those of plain AdamW on the gradients as they are, or scaled by hand to the limit."""
    settings = dataclasses.replace(SETTINGS, max_grad_norm=clip)
    values = advantages(batch, settings.estimator, settings.kl)
    grads, _ = jax.jit(partial(gradients, model=MODEL, settings=settings))(params, batch, values)
    norm = float(optax.tree.norm(grads))
    assert norm > 1e-2
    scaled = jax.tree.map(lambda g: g * (clip / norm if clip else 1.0), grads)
    plain = optax.adamw(learning_rate(settings), settings.beta1, settings.beta2, eps=1e-8, weight_decay=0.01)
    _, moments = plain.update(scaled, plain.init(params), params)
    state, metrics = jax.jit(partial(update, model=MODEL, settings=settings))(init_state(params, settings), batch)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    found = [moment for moment in jax.tree.leaves(state.opt_state) if moment.ndim]
    wanted = [moment for moment in jax.tree.leaves(moments) if moment.ndim]
    assert relative_error(found, wanted) < 1e-5 and relative_error(state.params, params) > 0


def test_mini_batches_are_updates_in_row_order(params, batch):
    """Two mini-batches equal two updates of half the rows each, with the advantages of the whole batch."""
    settings = dataclasses.replace(SETTINGS, mini_batches=2)
    two, _ = jax.jit(partial(update, model=MODEL, settings=settings))(init_state(params, settings), batch)
    values, transform = advantages(batch, settings.estimator, settings.kl), optimizer(settings)
    p, moments = params, transform.init(params)
    run = jax.jit(partial(gradients, model=MODEL, settings=settings))
    for part in (slice(0, 3), slice(3, 6)):
        grads, _ = run(p, jax.tree.map(lambda x, s=part: x[s], batch), values[part])
        changes, moments = transform.update(grads, moments, p)
        p = jax.tree.map(jnp.add, p, changes)
    assert relative_error(two.params, p) < 1e-6


@pytest.mark.parametrize(
    ("schedule", "points"),
    [("constant", {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}), ("linear", {10: 1.0, 60: 0.5, 110: 0.0}),
     ("cosine", {10: 1.0, 60: 0.5, 110: 0.0, 200: 0.0})],
)  # fmt: skip
def test_schedules(schedule, points):
    rate = learning_rate(learner_settings(learning_rate=1.0, schedule=schedule, warmup_steps=10, decay_steps=110))
    for step, expected in points.items():
        assert float(rate(step)) == pytest.approx(expected, abs=1e-6)


def test_adamw_equals_torch(params, batch):
    torch = pytest.importorskip("torch", reason="torch is optional: make test TORCH=1")
    settings = dataclasses.replace(SETTINGS, max_grad_norm=0.1)
    transform = optimizer(settings)
    ours, moments = params, transform.init(params)
    theirs = [torch.nn.Parameter(torch.tensor(np.array(x))) for x in jax.tree.leaves(params)]
    peer = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.999), weight_decay=0.01)
    rng = np.random.default_rng(0)
    for _ in range(3):
        grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
        changes, moments = transform.update(grads, moments, ours)
        ours = jax.tree.map(jnp.add, ours, changes)
        for p, g in zip(theirs, jax.tree.leaves(grads), strict=True):
            p.grad = torch.tensor(g)
        torch.nn.utils.clip_grad_norm_(theirs, 0.1)
        peer.step()
    assert relative_error(ours, [p.detach().numpy() for p in theirs]) < 1e-5
