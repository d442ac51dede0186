"""Preference pairs against plain loops over samples, and a batch worked by hand."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hir_jax.data.batches import PartShapes, prompt_batch
from hir_jax.data.chat_frame import chat_frame
from hir_jax.data.generate.tiny import lexicon, witness
from hir_jax.data.segments import encode, tokenise_rendering
from hir_jax.hir.pairs import PAIRS, choose_pairs, pair_batch
from hir_jax.types import Replays, Rollout, Verdicts


def rollout_of(rows, columns=3, filled=None, ended=None):
    rng = np.random.default_rng(rows)
    mask = np.arange(columns) < rng.integers(1, columns + 1, rows)[:, None]
    logp = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
    ones = np.ones(rows, bool)
    return Rollout(
        rng.integers(1, 9, mask.shape).astype(np.int32) * mask, mask, logp, -logp,
        ended=ones if ended is None else ended, filled=ones if filled is None else filled,
    )  # fmt: skip


# (prompts, samples, replays), each compiled once: more replays than pairs, none, and one beside single samples
SHAPES = [(3, 5, 15), (2, 4, 0), (5, 1, 1)]


@st.composite
def situations(draw):
    prompts, samples, replays = draw(st.sampled_from(SHAPES))
    rows = prompts * samples

    def bits(count=rows):
        return np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))

    satisfied, known = bits(2 * rows).reshape(rows, 2), bits(2 * rows).reshape(rows, 2) | bits(1)
    valid = np.arange(replays) < draw(st.integers(0, replays))
    row = np.array(draw(st.permutations(range(rows)))[:replays], np.int32)
    verdicts = Verdicts(satisfied & known, known, np.ones_like(known))
    return samples, rollout_of(rows, filled=bits(), ended=bits()), verdicts, Replays(row, row * 1.0, valid)


@given(situations(), st.sampled_from(PAIRS), st.booleans())
@settings(max_examples=150)
def test_pairs_equal_plain_loops(situation, level, mask_truncated):
    samples, rollout, verdicts, replays = situation
    rows = len(rollout.filled)
    expected = []
    if level != "response":
        expected += [(r, r, True) for r, ok in zip(replays.row, replays.valid, strict=True) if ok]
    if level != "instruction":
        for first in range(0, rows, samples):
            better, worse = [], []
            for b in range(first, first + samples):
                if not rollout.filled[b] or (mask_truncated and not rollout.ended[b]):
                    continue
                if (verdicts.satisfied[b] & verdicts.known[b]).all():
                    better.append(b)
                elif (~verdicts.satisfied[b] & verdicts.known[b]).any():
                    worse.append(b)
            expected += [(a, b, False) for a, b in zip(better, worse, strict=False)]
    found = choose_pairs(rollout, verdicts, replays, level, samples=samples, mask_truncated=mask_truncated)
    assert len(found.valid) == rows // 2
    triples = zip(*(np.asarray(x)[np.asarray(found.valid)] for x in found[:3]), strict=True)
    assert [(int(a), int(b), bool(c)) for a, b, c in triples] == expected[: rows // 2]
    assert np.asarray(found.valid).tolist() == [i < len(expected) for i in range(rows // 2)]


@given(situations(), st.sampled_from(PAIRS), st.sampled_from([2, 3]))
@settings(max_examples=60)
def test_mini_batches_share_the_pairs_evenly(situation, level, parts):
    samples, rollout, verdicts, replays = situation
    rollout, verdicts = jax.tree.map(lambda x: np.concatenate([x] * 12), (rollout, verdicts))  # both parts divide it
    how = {"samples": samples, "mask_truncated": False}
    alone = choose_pairs(rollout, verdicts, replays, level, **how)
    found = choose_pairs(rollout, verdicts, replays, level, mini_batches=parts, **how)
    for name, x in found._asdict().items():  # dealt out in turns
        for part, dealt in enumerate(np.asarray(x).reshape(parts, -1)):
            np.testing.assert_array_equal(dealt, np.asarray(getattr(alone, name))[part::parts])


@pytest.mark.parametrize("level", PAIRS)
def test_a_batch_of_pairs_worked_by_hand(level):
    """One prompt of three constraints with four samples: the second meets all, the others one or two. Replayed: row 3."""
    frame = chat_frame(lexicon.build_tokenizer())
    instruction, _ = next(iter(witness.generate(1, 1, min_constraints=3, max_constraints=3)))
    row = encode(frame, instruction)
    prompts = prompt_batch([row], PartShapes.of([row], 3), row.longest + 2, 0)
    kept = np.array([True, False, True])
    satisfied = np.array([[True, False, False], [True] * 3, [False, True, False], kept])
    verdicts = Verdicts(satisfied, np.ones_like(satisfied), np.ones_like(satisfied))
    rollout = rollout_of(4)
    replays = Replays(np.array([3], np.int32), np.ones(1, np.float32), np.array([True]))
    found = choose_pairs(rollout, verdicts, replays, level, samples=4, mask_truncated=False)
    batch = jax.device_get(pair_batch(prompts, rollout, verdicts, found, samples=4, pad_id=0))
    responses = {"response": [1, 0], "instruction": [3, 3], "both": [3, 3, 1, 0]}[level]
    original = list(row.tokens)
    rewritten = list(tokenise_rendering(frame, instruction, kept))
    assert batch.weight.tolist() == [1.0] * len(responses) + [0.0] * (4 - len(responses))
    columns = prompts.tokens.shape[1]
    for b, source in enumerate(responses):
        prompt = rewritten if b == 0 and level != "response" else original
        assert batch.is_replay[b] == (prompt is rewritten)
        assert batch.tokens[b, columns - batch.prompt_length[b] : columns].tolist() == prompt
        np.testing.assert_array_equal(batch.tokens[b, columns:], rollout.tokens[source])
        np.testing.assert_array_equal(batch.response_mask[b], rollout.mask[source])
        assert batch.reward[b] == 1 - b % 2
