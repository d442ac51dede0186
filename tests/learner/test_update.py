"""Losses by hand, chunking and micro-batches that change nothing, updates that are skipped, AdamW against torch."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hir_jax.learner import logprobs, losses
from hir_jax.learner.update import (
    LearnerSettings,
    gradients,
    init_state,
    learning_rate,
    micro_batches,
    score_responses,
    update,
)  # fmt: skip
from hir_jax.models import decoder
from hir_jax.models.config import ModelConfig
from hir_jax.types import TrainBatch

MODEL = ModelConfig("llama", 37, 16, 32, 2, 2, 1, 8)
SETTINGS = LearnerSettings(learning_rate=1e-2, kl=0.05)


@pytest.fixture(scope="module")
def params():
    return decoder.init(MODEL, jax.random.key(1))


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
    for i, value in enumerate(expected):
        mask = jnp.zeros((1, 5)).at[0, i].set(1.0)
        loss, sums = losses.policy_loss(logp, old, advantage, mask, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
        assert float(loss) == pytest.approx(value, abs=1e-6)
        assert float(sums["clipped"]) == (1.0 if i in (0, 3) else 0.0)


def test_chunks_change_nothing(params, batch, monkeypatch):
    def loss(p):
        logp, entropy = logprobs.response_logprobs(
            p, batch.tokens, batch.prompt_length, batch.response_mask, model=MODEL, temperature=0.8
        )
        return (logp * np.arange(7)).sum(), (logp, entropy)

    (_, whole), whole_grad = jax.value_and_grad(loss, has_aux=True)(params)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 6 * 37 * 2)  # two columns at a time, seven to do
    (_, parts), parts_grad = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(parts[0], whole[0], atol=1e-5)
    np.testing.assert_allclose(parts[1], whole[1], atol=1e-5)
    assert relative_error(parts_grad, whole_grad) < 1e-5


def test_log_probs_equal_a_plain_softmax(params, batch):
    """Against NumPy on the model's own logits, one row at a time and without padding."""
    logp, entropy = logprobs.response_logprobs(
        params, batch.tokens, batch.prompt_length, batch.response_mask, model=MODEL, temperature=0.8
    )
    for b in range(6):
        start, end = 5 - batch.prompt_length[b], 5 + batch.response_mask[b].sum()
        row = batch.tokens[b : b + 1, start:end]
        at = np.arange(row.shape[1])[None]
        hidden = decoder.hidden_states(MODEL, params, row, at, np.ones_like(at, bool))
        z = np.asarray(decoder.logits(MODEL, params, hidden)[0], np.float64) / 0.8
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        for t in range(batch.response_mask[b].sum()):
            at_prompt_end = batch.prompt_length[b] - 1 + t
            assert float(logp[b, t]) == pytest.approx(np.log(p[at_prompt_end, row[0, at_prompt_end + 1]]), abs=1e-4)
            assert float(entropy[b, t]) == pytest.approx(-(p * np.log(p)).sum(-1)[at_prompt_end], abs=1e-4)


@pytest.mark.parametrize("tokens", [12, 24, 36, 10_000])
@pytest.mark.parametrize("loss", ["policy", "sft"])
def test_micro_batches_change_nothing(params, batch, tokens, loss):
    settings = dataclasses.replace(SETTINGS, loss=loss)
    advantage = np.random.default_rng(0).normal(size=batch.behaviour_logp.shape).astype(np.float32)
    run = partial(gradients, model=MODEL)
    expected, metrics = run(params, batch, advantage, settings=dataclasses.replace(settings, micro_batch_tokens=99_999))
    found, found_metrics = run(
        params, batch, advantage, settings=dataclasses.replace(settings, micro_batch_tokens=tokens)
    )
    assert relative_error(found, expected) < 1e-5
    for name, value in metrics.items():
        assert float(found_metrics[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("rows", "multiple", "size"), [(6, 1, 4), (7, 2, 3), (16, 4, 4), (5, 1, 100), (12, 4, 1)])
def test_micro_batches_hold_every_row_once(rows, multiple, size):
    parts = micro_batches(np.arange(1, rows + 1), rows, multiple, size)
    assert parts.shape[1] % multiple == 0
    assert sorted(np.ravel(parts)[np.ravel(parts) > 0].tolist()) == list(range(1, rows + 1))


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


def test_mini_batches_are_updates_in_row_order(params, batch):
    """Two mini-batches equal two updates of half the rows each, with the advantages of the whole batch."""
    settings = dataclasses.replace(SETTINGS, mini_batches=2)
    two, _ = jax.jit(partial(update, model=MODEL, settings=settings))(init_state(params, settings), batch)
    from hir_jax.learner.advantages import advantages
    from hir_jax.learner.update import optimizer

    values, transform = advantages(batch, settings.estimator, settings.kl), optimizer(settings)
    p, moments = params, transform.init(params)
    for part in (slice(0, 3), slice(3, 6)):
        grads, _ = gradients(
            p, jax.tree.map(lambda x, s=part: x[s], batch), values[part], model=MODEL, settings=settings
        )
        changes, moments = transform.update(grads, moments, p)
        p = jax.tree.map(jnp.add, p, changes)
    assert relative_error(two.params, p) < 1e-6


def test_reference_scores_equal_single_rows(params, batch):
    small = dataclasses.replace(SETTINGS, micro_batch_tokens=24)
    logp = score_responses(params, batch.tokens, batch.prompt_length, batch.response_mask, model=MODEL, settings=small)
    for b in range(6):
        one, _ = logprobs.response_logprobs(
            params, *(x[b : b + 1] for x in (batch.tokens, batch.prompt_length, batch.response_mask)),
            model=MODEL, temperature=1.0,
        )  # fmt: skip
        np.testing.assert_allclose(logp[b], one[0], atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "points"),
    [("constant", {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}), ("linear", {10: 1.0, 60: 0.5, 110: 0.0}),
     ("cosine", {10: 1.0, 60: 0.5, 110: 0.0, 200: 0.0})],
)  # fmt: skip
def test_schedules(schedule, points):
    rate = learning_rate(LearnerSettings(learning_rate=1.0, schedule=schedule, warmup_steps=10, decay_steps=110))
    for step, expected in points.items():
        assert float(rate(step)) == pytest.approx(expected, abs=1e-6)


def test_adamw_equals_torch(params, batch):
    torch = pytest.importorskip("torch", reason="torch is optional: make test TORCH=1")
    from hir_jax.learner.update import optimizer

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
