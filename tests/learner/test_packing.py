"""Packing: first-fit against plain Python, every column in its place, and gradients against every row alone, prompts shared."""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_settings import learner_settings

from hir_jax.bench.sizes import PROMPT_LONGEST, Sizes, learner_lengths
from hir_jax.config import load_file
from hir_jax.learner import packing
from hir_jax.learner.update import gradients, response_logprobs
from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.types import TrainBatch

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig("llama", 37, 16, 32, 2, 2, 1, 8)
ROWS, P, R = 9, 5, 7
PROMPTS, RESPONSES = (1, 5), (0, 3, 7)  # three totals with a response: each is compiled for the row alone
SETTINGS = learner_settings(temperature=0.8)

row_kinds = st.tuples(
    st.sampled_from(PROMPTS), st.sampled_from(RESPONSES), st.sampled_from([0.0, 1.0, 0.5]), st.booleans()
)
row_lists = st.lists(row_kinds, min_size=ROWS, max_size=ROWS)
few = settings(max_examples=8)


@cache
def params():
    return jax.jit(decoder.init, static_argnums=0)(MODEL, jax.random.key(1))


def batch_of(kinds, seed=0) -> tuple[TrainBatch, np.ndarray]:
    """Rows of (prompt length, response length, weight, is a replay) and advantages; what is padding holds noise too. There are
    two prompts of each length."""
    rng = np.random.default_rng(seed)
    prompt, response, weight, replay = map(np.array, zip(*kinds, strict=True))
    mask = np.arange(R) < response[:, None]
    noise = partial(rng.normal, size=mask.shape)
    tokens = rng.integers(0, 37, (len(kinds), P + R)).astype(np.int32)
    prompts = rng.integers(0, 37, (2, P))[rng.integers(0, 2, len(kinds))]
    tokens[:, :P] = np.where(np.arange(P) < P - prompt[:, None], tokens[:, :P], prompts)
    batch = TrainBatch(
        tokens=tokens, prompt_length=prompt.astype(np.int32),
        response_mask=mask, behaviour_logp=(-3.5 + 0.2 * noise()).astype(np.float32),
        ref_logp=np.zeros(mask.shape, np.float32), importance=np.ones(mask.shape, np.float32),
        reward=np.ones(len(kinds), np.float32), weight=weight.astype(np.float32),
        group=np.arange(len(kinds), dtype=np.int32), is_replay=replay,
    )  # fmt: skip
    return batch, noise().astype(np.float32)


# ---- every row alone ---------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="loss")
def row_alone(p, tokens, responses, old, advantage, *, loss):
    """(sum of the loss, (log-probs, entropies, losses)) and its gradient for one row without padding, plainly written. tokens:
    i32[T]; responses: bool[T - 1], the columns that predict one; old, advantage: f32[T - 1], as all that is returned."""

    def total(p):
        at = jnp.arange(tokens.shape[0] - 1)[None]
        hidden = decoder.hidden_states(MODEL, p, tokens[None, :-1], at, jnp.ones_like(at))[0]
        logp = jax.nn.log_softmax(hidden @ p["embed"].T / 0.8)
        chosen = logp[at[0], tokens[1:]]
        entropy = -(jnp.exp(logp) * logp).sum(-1)
        if loss == "sft":
            losses = -chosen
        else:
            ratio = jnp.exp(chosen - old)
            worst = jnp.maximum(-advantage * ratio, -advantage * jnp.clip(ratio, 0.8, 1.2))
            losses = jnp.where(advantage < 0, jnp.minimum(worst, -3 * advantage), worst)
        return (losses * responses).sum(), (chosen, entropy, losses)

    return jax.value_and_grad(total, has_aux=True)(p)


def rows_alone(batch, advantage, loss):
    """From single rows: gradient and loss of the whole batch, the mean of the tokens' losses without their signs, log-probs
    [B, R] and the mean entropy."""
    grads = jax.tree.map(lambda x: np.zeros(x.shape), params())
    tokens_total = max(1.0, (batch.response_mask * batch.weight[:, None]).sum())
    value, size, entropy_mean, scores = 0.0, 0.0, 0.0, np.zeros(batch.response_mask.shape)
    for b, n in enumerate(batch.response_mask.sum(-1)):
        if n:
            tokens = batch.tokens[b, P - batch.prompt_length[b] : P + n]
            responses = np.arange(len(tokens) - 1) >= batch.prompt_length[b] - 1
            old, own = (np.pad(x[b, :n], (len(responses) - n, 0)) for x in (batch.behaviour_logp, advantage))
            (part, found), one = row_alone(params(), tokens, responses, old, own, loss=loss)
            logp, entropy, losses = (x[-n:] for x in jax.device_get(found))
            share, scores[b, :n] = float(batch.weight[b]) / float(tokens_total), logp
            grads = jax.tree.map(lambda g, x, share=share: g + share * np.asarray(x, np.float64), grads, one)
            value, size = value + share * float(part), size + share * float(abs(losses).sum())
            entropy_mean += share * float(entropy.sum())
    return grads, value, size, scores, entropy_mean


def relative_error(a, b):
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b))
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)


@cache
def compiled(loss, columns, micro, multiple):
    chosen = learner_settings(loss=loss, temperature=0.8, pack_columns=columns, micro_batch_tokens=micro)
    return jax.jit(partial(gradients, model=MODEL, settings=chosen, multiple=multiple))


@cache
def compiled_score(columns, micro, multiple):
    chosen = learner_settings(temperature=0.8, pack_columns=columns, micro_batch_tokens=micro)
    return jax.jit(partial(response_logprobs, model=MODEL, settings=chosen, multiple=multiple))


@pytest.mark.parametrize(
    ("loss", "columns", "micro", "multiple"),
    [("policy", 0, 1, 1), ("policy", 16, 80, 1), ("sft", 48, 10_000, 1), ("policy", 16, 64, 4)],
)
@few
@given(kinds=row_lists, seed=st.integers(0, 99))
def test_gradients_equal_rows_alone(loss, columns, micro, multiple, kinds, seed):
    """Over lengths (none at all, too), weights, replays, widths of bins, sizes of micro-batches, and devices."""
    batch, advantage = batch_of(kinds, seed)
    expected, value, size, _, entropy = rows_alone(batch, advantage, loss)
    found, metrics = compiled(loss, columns, micro, multiple)(params(), batch, advantage)
    assert relative_error(found, expected) < 1e-5
    # tokens' losses have both signs and may cancel: relative to their sizes, of which float32 rounds each
    assert float(metrics["loss"]) == pytest.approx(value, rel=0, abs=1e-5 * size)
    assert float(metrics["entropy"]) == pytest.approx(entropy, rel=1e-5, abs=0)


@pytest.mark.parametrize(("columns", "micro", "multiple"), [(16, 80, 1), (40, 10_000, 2)])
@few
@given(kinds=row_lists, seed=st.integers(0, 99))
def test_scores_equal_rows_alone(columns, micro, multiple, kinds, seed):
    batch, advantage = batch_of(kinds, seed)
    expected = rows_alone(batch, advantage, "policy")[3]
    rows = batch.tokens, batch.prompt_length, batch.response_mask
    np.testing.assert_allclose(compiled_score(columns, micro, multiple)(params(), *rows), expected, atol=1e-5)


# ---- places ------------------------------------------------------------------------------------------------------


def plain_first_fit(own, columns, shared=None, group=None):
    """[(bin, start, length)] of rows with columns of their own, the longest first, in plain Python; with `shared[g]` more that a
    bin holds once for the rows of group g, the group with most columns first."""
    group = group or range(len(own))
    shared = shared or [0] * len(own)
    bins, places = [(columns, set()) for _ in own], [None] * len(own)
    members = {g: sorted((b for b in range(len(own)) if group[b] == g), key=lambda b: -own[b]) for g in set(group)}
    for g in sorted(members, key=lambda g: (-shared[g] - sum(own[b] for b in members[g]), g)):
        for b in members[g]:
            joined = [i for i, (free, held) in enumerate(bins) if g in held and free >= own[b]]
            opened = [i for i, (free, held) in enumerate(bins) if free >= own[b] + shared[g] * (g not in held)]
            i = (joined + opened)[0]
            (free, held), length = bins[i], own[b] + shared[g] * (g not in bins[i][1])
            places[b], bins[i] = (i, columns - free, length), (free - length, held | {g})
    return places


def listed(places):
    return list(zip(*(x.tolist() for x in places), strict=True))


@few
@given(st.lists(st.integers(0, 20), min_size=30, max_size=30), st.sampled_from([20, 33, 64]))
def test_first_fit_equals_plain_python(lengths, columns):
    found = jax.jit(packing.first_fit, static_argnums=1)(np.array(lengths, np.int32), columns)
    assert listed(found) == plain_first_fit(lengths, columns)


@few
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=30, max_size=30),
    st.lists(st.integers(0, 11), min_size=5, max_size=5), st.sampled_from([20, 33, 64]),
)  # fmt: skip
def test_first_fit_of_groups_equals_plain_python(rows, shared, columns):
    own, group = (np.array(x, np.int32) for x in zip(*rows, strict=True))
    prompts = np.array(shared, np.int32)[group]
    found = jax.jit(packing.first_fit, static_argnums=1)(own + prompts, columns, prompts, group)
    assert listed(found) == plain_first_fit(own.tolist(), columns, shared, group.tolist())
    assert 1 + int(found.bin.max()) <= -(-len(rows) // (columns // 20))  # as many as the longest rows would need


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize(("wanted", "multiple"), [(0, 1), (16, 2), (40, 4)])
@few
@given(kinds=row_lists, seed=st.integers(0, 9))
def test_every_column_stands_once_and_in_order(wanted, multiple, shares, kinds, seed):
    """With prompts shared: those of the prompt but the last one once in a bin, ahead of its rows."""
    batch, _ = batch_of(kinds, seed)
    group = np.asarray(packing.same_prompts(batch.tokens[:, :P], batch.prompt_length)) if shares else None
    size = packing.sizes(ROWS, P + R - 1, packing.bin_columns(P + R, wanted), multiple, 64)
    keep = batch.weight > 0
    packed, places = jax.device_get(
        jax.jit(packing.pack, static_argnums=(3, 4, 5))(
            batch.prompt_length, batch.response_mask, keep, size, P + R, multiple, group
        )
    )
    prompt = None if group is None else np.where(packed.segment > 0, group[packed.row], -1)
    for b in range(ROWS):
        responses, at = int(batch.response_mask[b].sum()), np.nonzero((packed.segment > 0) & (packed.row == b))
        first, length = P - batch.prompt_length[b], batch.prompt_length[b] + responses - 1
        expected = np.arange(length) if keep[b] and responses else np.arange(0)
        if shares and len(expected):
            device, number = places.bin[b] % multiple, places.bin[b] // multiple
            ahead = (prompt[device, number] == group[b]) & ~packed.predicts[device, number]
            assert packed.position[device, number][ahead].tolist() == list(range(batch.prompt_length[b] - 1))
            assert np.nonzero(ahead)[0].max(initial=-1) < places.start[b] + places.length[b] - responses
            expected = expected[length - places.length[b] :]
            own, shared = packed.segment[at], packed.prompt[at]
            assert set(own[packed.predicts[at]]) == {b + 1} and set(own[~packed.predicts[at]]) <= set(shared)
            assert set(shared) == {ROWS + 1 + group[b]}
        assert packed.position[at].tolist() == expected.tolist()
        assert packed.column[at].tolist() == (first + expected).tolist()
        assert packed.predicts[at].tolist() == (expected >= batch.prompt_length[b] - 1).tolist()
        assert len(set(zip(*(x.tolist() for x in at[:2]), strict=True))) <= 1  # one bin
        assert places.length[b] == len(expected)
    used = (packed.segment > 0).any((0, 2))
    assert int(packed.used) == used.sum() and used[: int(packed.used)].all()
    per_device = (packed.segment > 0).any(2).sum(1)
    assert per_device.max() - per_device.min() <= 1  # spread evenly
    names = np.where(packed.predicts, 100 * packed.row + packed.column, -1)
    found = jax.jit(packing.unpack)(names, places, batch.response_mask)
    expected = 100 * np.arange(ROWS)[:, None] + P - 1 + np.arange(R)
    np.testing.assert_array_equal(found, np.where(batch.response_mask & keep[:, None], expected, 0))


def test_rows_with_the_same_prompt_are_found():
    """Whatever stands before a prompt; the same tokens at another length are another prompt."""
    tokens = np.array([[9, 1, 2], [8, 1, 2], [1, 1, 2], [1, 1, 2], [7, 1, 3], [7, 1, 3]])
    found = jax.jit(packing.same_prompts)(tokens, np.array([2, 2, 2, 3, 2, 3]))
    assert found.tolist() == [0, 0, 0, 3, 4, 5]


def test_eight_samples_of_a_prompt_take_half_the_columns():
    """24 rows of 3 prompts of 150 tokens and 96 of a response: 4 * 245 columns hold ten rows instead of four."""
    group, lengths, prompt = np.repeat([0, 8, 16], 8), np.full(24, 245, np.int32), np.full(24, 149, np.int32)
    assert int(packing.first_fit(lengths, 980).bin.max()) + 1 == 6
    found = packing.first_fit(lengths, 980, prompt, group)
    assert int(found.bin.max()) + 1 == 3 and int(found.length.sum()) == 24 * 96 + 3 * 149


@few
@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(20, 90), st.integers(1, 4))
def test_there_are_bins_enough_for_any_rows(lengths, columns, multiple):
    """First fit never needs more bins than rows of the greatest length would."""
    size = packing.sizes(len(lengths), 20, columns, multiple, 100)
    needed = 1 + max(b for b, *_ in plain_first_fit(lengths, columns))
    assert needed <= size.bins * multiple


@pytest.mark.parametrize(("rows", "multiple", "micro"), [(9, 1, 64), (13, 2, 100), (40, 4, 1), (300, 1, 11 * 16)])
def test_micro_batches_cover_what_is_used_and_little_more(rows, multiple, micro):
    size = packing.sizes(rows, 16, 16, multiple, micro)
    assert size.micro * 16 * multiple <= max(micro, 16 * multiple)

    def mark(seen, start):
        at = jnp.arange(size.bins)
        return seen + ((at >= start) & (at < start + size.micro))

    @jax.jit
    def run(used):
        return packing.over_micro_batches(used, size, mark, jnp.zeros(size.bins, jnp.int32))

    for used in range(0, -(-rows // multiple) + 1, 1 + rows // 40):
        begun, computed = jax.device_get(run(jnp.int32(used)))
        assert begun.max(initial=0) <= 1 and begun[:used].all() and int(begun.sum()) == int(computed)
        assert int(computed) - used < size.micro


def test_padding_of_the_benchs_log_normal_rows_is_under_a_tenth():
    """48 rows, as `hir_jax.bench --phase=learner` has them by default, in the bins and micro-batches of its config."""
    sizes, config = Sizes(), load_file(str(ROOT / "configs" / "smollm2_135m_hir.py"))
    prompts, responses = learner_lengths(sizes.rows, sizes.new_tokens)
    columns, learner = PROMPT_LONGEST + sizes.new_tokens, config.learner
    width = packing.bin_columns(columns, learner.pack_columns)
    size = packing.sizes(sizes.rows, columns - 1, width, 1, learner.micro_batch_tokens)
    used = int(packing.first_fit(prompts + responses - 1, width).bin.max()) + 1
    computed = -(-used // size.micro) * size.micro * width
    assert sizes.rows == 48 and 0 < 1 - (prompts + responses - 1).sum() / computed < 0.10


@pytest.mark.parametrize("longest", [None, 90])
def test_blocks_of_attention_equal_sequences_alone(longest):
    """Three sequences of 90 tokens and 50 empty columns, of which the blocks of queries see only a part."""
    rng = np.random.default_rng(0)
    tokens, at = rng.integers(0, 37, (3, 90)).astype(np.int32), np.arange(90)
    segments = np.repeat([3, 1, 2, 0], [90, 90, 90, 50])[None]
    line, positions = np.pad(tokens.reshape(1, -1), ((0, 0), (0, 50))), np.pad(np.tile(at, 3), (0, 50))[None]

    def packed(p):
        hidden = decoder.hidden_states(MODEL, p, line, positions, segments, longest=longest)[0, :270].reshape(3, 90, -1)
        return (hidden**3).sum(), hidden

    def alone(p):
        hidden = decoder.hidden_states(MODEL, p, tokens, np.tile(at, (3, 1)), np.ones((3, 90), bool))
        return (hidden**3).sum(), hidden

    (_, found), grads = jax.jit(jax.value_and_grad(packed, has_aux=True))(params())
    (_, expected), expected_grads = jax.jit(jax.value_and_grad(alone, has_aux=True))(params())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert relative_error(grads, expected_grads) < 1e-5
