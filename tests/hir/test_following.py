"""The control: its plan, that one text for all prompts follows nothing, and its figures against plain loops."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hir_jax.hir import following
from hir_jax.types import Verdicts

PROMPTS = 12
COUNTS = st.lists(st.integers(0, 3), min_size=1, max_size=PROMPTS)


def verdicts(satisfied, known, present):
    return Verdicts(np.asarray(satisfied), np.asarray(known), np.asarray(present))


@given(COUNTS, st.integers(0, 10), st.integers(1, 8))
@settings(max_examples=200)
def test_every_shift_permutes_the_prompts_of_equal_count_and_leaves_none_with_itself(counts, seed, shifts):
    counts = np.array(counts)
    other = following.shuffles(counts, (seed, 3), shifts)
    assert other.shape == (shifts, len(counts))
    np.testing.assert_array_equal(other, following.shuffles(counts, (seed, 3), shifts))
    for prompt, count in enumerate(counts):
        partners = other[:, prompt][other[:, prompt] >= 0]
        group = np.flatnonzero(counts == count) if count else []
        assert len(partners) == max(
            0, min(shifts, len(group) - 1)
        )  # groups of one, and prompts without constraints: none
        assert len(set(partners)) == len(partners) and prompt not in partners and set(partners) <= set(group)
    for shift in other:
        taken = shift >= 0
        assert sorted(shift[taken]) == np.flatnonzero(taken).tolist()


def test_the_seed_decides_the_permutation():
    counts = np.full(50, 2)
    plans = [following.shuffles(counts, seed, 1)[0].tolist() for seed in ((0, 0), (0, 1), (1, 0))]
    assert plans[0] != plans[1] != plans[2] != plans[0]


@st.composite
def batches(draw, constant=False):
    """(own, others, other, held): verdicts on N * S responses. What one response is worth under the constraints of prompt j comes
    from a table, with one entry a prompt if the response is `constant`. `held`: constraints by number, many of them repeated.
    Fewer prompts than N are followed by prompts without constraints, which have no part in anything."""
    counts = draw(COUNTS)
    counts += [0] * (PROMPTS - len(counts))
    samples, shifts = draw(st.sampled_from([(1, 8), (2, 2), (3, 1)]))  # three shapes, each compiled once
    width, rows = 3, PROMPTS * samples
    present = np.arange(width) < np.array(counts)[:, None]
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    held = np.where(present, rng.integers(0, 4, present.shape), -1)
    met = rng.random(4) < 0.6 if constant else rng.random((rows, 4)) < 0.6  # by number of the constraint
    is_known = np.ones_like(met) if constant else rng.random(met.shape) < draw(st.sampled_from([0.5, 0.9, 1.0]))

    def verdicts_under(owner):
        found = np.zeros((3, rows, width), bool)
        for b in range(rows):
            for c, code in enumerate(held[owner[b]] if owner[b] >= 0 else []):
                if code >= 0:
                    at = code if constant else (b, code)
                    found[:, b, c] = met[at] and is_known[at], is_known[at], True
        return found

    other = following.shuffles(np.array(counts), (draw(st.integers(0, 5)), 0), shifts)
    own = verdicts(*verdicts_under(np.arange(rows) // samples))
    others = verdicts(*np.stack([verdicts_under(shift) for shift in following.of_rows(other, samples)], axis=1))
    return own, others, other, held


@given(batches(constant=True))
@settings(max_examples=200)
def test_one_text_for_all_prompts_follows_exactly_nothing(batch):
    """With unequal counts and repeated constraints."""
    own, others, other, _ = batch
    assume((other >= 0).any())
    found = following.figures(own, others)
    assert found["following"] == 0.0
    met = (own.satisfied | ~own.present).all(-1)
    samples = len(met) // other.shape[1]
    pairs = [met[b] for shift in other for b in range(len(met)) if shift[b // samples] >= 0]
    assert found["ila_shuffled"] == pytest.approx(np.mean(pairs))
    of_prompts = following.per_prompt(own, others, np.arange(len(met)) // samples)
    assert abs(np.nansum(of_prompts["following"])) < 1e-12


def ila_of(satisfied, known, present):
    """1, 0, or None where it is not decided."""
    asked = [(s, k) for s, k, p in zip(satisfied, known, present, strict=True) if p]
    if any(k and not s for s, k in asked):
        return 0
    return 1 if all(k for _, k in asked) else None


@given(batches())
@settings(max_examples=200)
def test_figures_equal_a_loop(batch):
    own, others, other, held = batch
    rows, prompts = len(own.known), other.shape[1]
    samples = rows // prompts
    mine, theirs, shares, of = [], [], [], []
    for r in range(len(other)):
        for b in range(rows):
            if other[r, b // samples] < 0:
                continue
            one, two = ila_of(*(x[b] for x in own)), ila_of(*(x[r, b] for x in others))
            if one is None or two is None:
                continue
            known = others.known[r, b] & others.present[r, b]
            mine.append(one)
            theirs.append(two)
            shares.append(others.satisfied[r, b][known].mean())
            of.append(b // samples)
    found = following.figures(own, others)
    by_prompt = following.per_prompt(own, others, np.arange(rows) // samples)
    if not mine:
        assert found == {} and all(np.isnan(x).all() for x in by_prompt.values())
        return
    gaps = np.subtract(mine, theirs)
    assert found == pytest.approx(
        {"ila_shuffled": np.mean(theirs), "cla_shuffled": np.mean(shares), "following": np.mean(gaps)}
    )
    for name, values in {"ila_shuffled": theirs, "cla_shuffled": shares, "following": gaps}.items():
        for prompt in range(prompts):
            own_values = [v for v, p in zip(values, of, strict=True) if p == prompt]
            expected = np.mean(own_values) if own_values else np.nan
            assert by_prompt[name][prompt] == pytest.approx(expected, nan_ok=True)
    shared = [
        np.mean([code in held[other[r, i]] for code in held[i] if code >= 0])
        for r in range(len(other))
        for i in range(prompts)
        if other[r, i] >= 0
    ]
    assert following.overlap(held, other) == pytest.approx(np.mean(shared))


@given(batches())
@settings(max_examples=200)
def test_asked_and_not_asked_equal_a_loop(batch):
    """The number of a constraint is its type here."""
    own, others, other, held = batch
    prompts, samples = other.shape[1], len(own.known) // other.shape[1]
    asked, not_asked = {}, {}  # (prompt, place) -> verdicts
    for j in range(prompts):
        for c in np.flatnonzero(held[j] >= 0):
            for b in range(j * samples, (j + 1) * samples):
                if own.known[b, c]:
                    asked.setdefault((j, c), []).append(own.satisfied[b, c])
            for r, i in zip(*np.nonzero(other == j), strict=True):
                for b in range(i * samples, (i + 1) * samples):
                    if held[j, c] not in held[i] and others.known[r, b, c]:
                        not_asked.setdefault((j, c), []).append(others.satisfied[r, b, c])
    found = following.by_type(own, others, other, held)
    expected = {}
    for place in asked.keys() & not_asked.keys():
        kind = held[place]
        expected.setdefault((kind, place[0]), []).append((np.mean(asked[place]), np.mean(not_asked[place])))
    assert set(found) == {kind for kind, _ in expected}
    for kind, sides in found.items():
        for prompt in range(prompts):
            wanted = np.mean(expected.get((kind, prompt), [(np.nan, np.nan)]), axis=0)
            assert [side[prompt] for side in sides] == pytest.approx(wanted.tolist(), nan_ok=True)


def test_distinct_is_the_share_of_distinct_responses():
    assert following.distinct("aabc").mean() == 3 / 4
    assert following.distinct(["same"] * 5).mean() == pytest.approx(1 / 5)
