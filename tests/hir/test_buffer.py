"""The buffer of successes against a simulation of it with lists, over several steps; places in the batch worked by hand."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hir_jax.hir import buffer as buffers
from hir_jax.types import TrainBatch

PROMPT, RESPONSE = 5, 3  # P and R of the buffer
ADD = jax.jit(buffers.add)
YOUNGEST = jax.jit(buffers.youngest, static_argnums=(1, 2))
JOIN = jax.jit(buffers.join, static_argnames="mini_batches")


def batch_of(rng, columns, rows, mini_batches, empty):
    """A batch of a step with `columns` prompt columns, few words, and `empty` vacant places at the ends of its parts."""
    length, count = rng.integers(1, columns + 1, rows), rng.integers(1, RESPONSE + 1, rows)
    vacant = np.zeros((mini_batches, rows // mini_batches), bool)
    for e in range(empty):
        vacant[e % mini_batches, -1 - e // mini_batches] = True
    mask = (np.arange(RESPONSE) < count[:, None]) & ~vacant.reshape(-1, 1)
    noise = rng.normal(size=(3, rows, RESPONSE)).astype(np.float32) * mask
    return TrainBatch(
        tokens=rng.integers(0, 2, (rows, columns + RESPONSE)).astype(np.int32),  # what is padding differs too
        prompt_length=length.astype(np.int32),
        response_mask=mask,
        behaviour_logp=noise[0],
        ref_logp=noise[1],
        importance=np.exp(noise[2]),
        reward=rng.choice([0, 0.5, 1], rows, p=[0.2, 0.1, 0.7]).astype(np.float32),
        weight=np.where(mask.any(-1), rng.random(rows) < 0.8, False).astype(np.float32),
        group=(np.arange(rows) // 2).astype(np.int32),
        is_replay=np.zeros(rows, bool),
    )


class Simulated:
    """The buffer as a list of rows or None."""

    def __init__(self, rows, max_age):
        self.rows, self.max_age = [None] * rows, max_age

    def step(self, step, batch, columns, most):
        """The rows trained on in this step, before its successes are added."""
        self.rows = [row if row and step - row["born"] <= self.max_age else None for row in self.rows]
        fitting = [row for row in self.rows if row and len(row["prompt"]) <= columns]
        taken = sorted(fitting, key=lambda row: -row["born"])[:most]  # stable
        known = [(row["prompt"], row["response"]) for row in self.rows if row]
        new = []
        for b in range(len(batch.weight)):
            prompt = tuple(batch.tokens[b, columns - batch.prompt_length[b] : columns])
            count = batch.response_mask[b].sum()
            response = tuple(batch.tokens[b, columns : columns + count])
            if batch.weight[b] == 0 or batch.reward[b] != 1 or (prompt, response) in known:
                continue
            known.append((prompt, response))
            logp = (batch.behaviour_logp - np.log(batch.importance))[b, :count]
            new.append(
                {"prompt": prompt, "response": response, "born": step, "logp": logp, "ref": batch.ref_logp[b, :count]}
            )
        oldest = sorted(range(len(self.rows)), key=lambda i: self.rows[i]["born"] if self.rows[i] else -1)
        for i, row in zip(oldest, new, strict=False):
            self.rows[i] = row
        return taken


def same_row(buffer, i, row, columns):
    """Row i of a buffer with `columns` prompt columns is the simulated one."""
    count, length = len(row["response"]), len(row["prompt"])
    assert (
        buffer.prompt_length[i] == length and buffer.response_mask[i].sum() == count and buffer.born[i] == row["born"]
    )
    assert tuple(buffer.tokens[i, columns - length : columns]) == row["prompt"]
    assert tuple(buffer.tokens[i, columns : columns + count]) == row["response"]
    np.testing.assert_allclose(buffer.behaviour_logp[i, :count], row["logp"], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(buffer.ref_logp[i, :count], row["ref"])
    assert not buffer.behaviour_logp[i, count:].any() and not buffer.response_mask[i, count:].any()


@given(st.integers(0, 10_000), st.sampled_from([1, 3, 40]), st.integers(1, 4), st.integers(1, 6))
@settings(max_examples=15)
def test_buffer_over_several_steps(seed, rows, max_age, places):
    """Capacities below and above the successes, duplicates (two words), ages, prompt buckets, fewer vacant places than rows."""
    rng = np.random.default_rng(seed)
    buffer, simulated = buffers.empty(rows, PROMPT, RESPONSE), Simulated(rows, max_age)
    for step in range(6):
        columns, empty = int(rng.choice([3, PROMPT])), int(rng.integers(0, 8))
        batch = batch_of(rng, columns, 12, 2, empty)
        kept = buffers.without_old(buffer, step, max_age)
        vacant = int(buffers.vacant(batch).sum())
        assert vacant == empty
        taken = jax.device_get(YOUNGEST(kept, columns, places, vacant))
        expected = simulated.step(step, batch, columns, min(places, empty))
        assert (taken.born >= 0).tolist() == [i < len(expected) for i in range(min(rows, places))]
        assert not taken.response_mask[len(expected) :].any() and (taken.prompt_length > 0).all()
        for i, row in enumerate(expected):
            same_row(taken, i, row, columns)
        buffer = jax.device_get(ADD(kept, batch, step))
        for i, row in enumerate(simulated.rows):
            if row is None:
                assert buffer.born[i] == -1
            else:
                same_row(buffer, i, row, PROMPT)
        now, weight = (rng.normal(size=taken.ref_logp.shape).astype(np.float32) for _ in range(2))
        joined = jax.device_get(JOIN(batch, taken, now, weight, mini_batches=2))
        check_joined(batch, joined, taken, len(expected), now, weight)


def check_joined(batch, joined, rows, count, now, weight):
    """Samples stay where they are; each buffered row is there once; the halves differ by one buffered row at most."""
    places = np.flatnonzero(joined.is_replay)
    assert len(places) == count and not batch.response_mask[places].any()
    others = np.setdiff1d(np.arange(12), places)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[others], y[others]), joined, batch)
    order = places[np.argsort(joined.group[places])]
    for name in ("tokens", "prompt_length", "response_mask", "ref_logp"):
        np.testing.assert_array_equal(getattr(joined, name)[order], getattr(rows, name)[:count])
    np.testing.assert_array_equal(joined.behaviour_logp[order], now[:count])
    np.testing.assert_array_equal(joined.importance[order], weight[:count])
    assert (joined.reward[order] == 1).all() and (joined.weight[order] == 1).all()
    assert joined.group[order].tolist() == [6 + j for j in range(count)] and (joined.group < 12).all()
    filled = joined.response_mask.any(-1).reshape(2, -1).sum(-1)
    assert np.ptp(filled) <= 1


def test_places_worked_by_hand():
    """Two halves of three places, with samples in 0, 3 and 4. The first buffered row makes the halves equal; then the lower one
    is next."""
    batch = batch_of(np.random.default_rng(0), 2, 6, 2, 3)
    assert np.flatnonzero(~batch.response_mask.any(-1)).tolist() == [1, 2, 5]
    rows = buffers.rows_of(batch_of(np.random.default_rng(1), PROMPT, 2, 1, 0), PROMPT, 7)
    rows = rows._replace(tokens=rows.tokens[:, PROMPT - 2 :])
    joined = buffers.join(batch, rows, rows.ref_logp, rows.ref_logp, mini_batches=2)
    assert joined.group.tolist() == [0, 3, 4, 1, 2, 2] and joined.weight[1:3].tolist() == [1, 1]
    assert joined.is_replay.tolist() == [False, True, True, False, False, False]


@pytest.mark.parametrize("change", ["response", "prompt", "end", "none"])
def test_what_a_duplicate_is(change):
    """Of two rows of two prompt and two response tokens; one whose last token is no part of it is another response."""
    one = batch_of(np.random.default_rng(3), PROMPT, 1, 1, 0)._replace(
        tokens=np.array([[9, 9, 9, 1, 2, 3, 4, 9]], np.int32), prompt_length=np.array([2], np.int32),
        response_mask=np.array([[True, True, False]]), reward=np.ones(1, np.float32), weight=np.ones(1, np.float32),
    )  # fmt: skip
    other = one._replace(tokens=np.array([[8, 8, 8, 1, 2, 3, 4, 8]], np.int32))  # padding does not count
    if change == "response":
        other.tokens[0, 6] = 5
    elif change == "prompt":
        other.tokens[0, 3] = 5
    elif change == "end":
        other = other._replace(response_mask=np.array([[True, False, False]]))
    buffer = buffers.add(buffers.empty(4, PROMPT, RESPONSE), one, 0)
    buffer = buffers.add(buffer, other, 1)
    assert buffer.born.tolist() == ([0, -1, -1, -1] if change == "none" else [0, 1, -1, -1])
