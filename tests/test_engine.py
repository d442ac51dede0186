"""How many rows are decoded at a time, and that training does not depend on it."""

import numpy as np
import pytest
from small_runs import rows, small_config

from hir_jax.engine import Engine
from hir_jax.train import train

# 4 prompts of 96 columns and 2 slots of 96 + 11, where 24 rows are sampled; a column takes 2 x 2 heads of 16 float32 numbers
SOME = (4 * 96 + 2 * (96 + 11)) * 256


def recorded(monkeypatch, workdir, **changes):
    """(rollouts of a short training run, its metrics)."""
    rollouts, plain = [], Engine.sample_in_parts

    def sample(*given):
        for part, complete in plain(*given):
            yield part, complete
        rollouts.append(part)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "sample_in_parts", sample)
        train(small_config(rollout__m=6, logging__tensorboard=False, **changes), workdir)
    return rollouts, rows(workdir / "metrics.jsonl")


def test_a_small_cache_changes_nothing_but_how_many_rows_are_decoded_at_a_time(monkeypatch, tmp_path):
    sizes = 4, 96, 6, 12  # prompts, their columns, samples, tokens
    assert Engine(small_config()).settings.slots(*sizes) == 0
    assert Engine(small_config(rollout__cache_bytes=SOME)).settings.slots(*sizes) == 2
    found, metrics = recorded(monkeypatch, tmp_path / "some", rollout__cache_bytes=SOME, save_model=False)
    wanted, expected = recorded(monkeypatch, tmp_path / "all", save_model=False)
    assert len(found) == len(wanted) >= 2 and len({int(n) for r in wanted for n in r.mask.sum(-1)}) > 1
    for a, b in zip(found, wanted, strict=True):
        for name in ("tokens", "mask", "ended"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        np.testing.assert_allclose(a.sampler_logp, b.sampler_logp, atol=5e-5)
    assert len(metrics) == len(expected) == 3
    for row, other in zip(metrics, expected, strict=True):
        for name in ("ila", "reward", "loss", "grad_norm"):
            if name in other:
                assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
