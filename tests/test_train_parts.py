"""Sampling in parts, with prompt and response buckets: what is verified when, and what is compiled."""

import dataclasses
from itertools import pairwise

import jax
import numpy as np
from small_runs import rows, small_config, trajectory

from hir_jax import rollouts
from hir_jax.data import dataset
from hir_jax.engine import Engine
from hir_jax.train import train


def test_verifying_while_the_rest_is_decoded_changes_no_number(tmp_path, monkeypatch):
    """Bit for bit, against the same response buckets with everything verified after the last of them; and it is early: the
    first part has been verified before another is fetched."""
    in_parts, verify, seen = Engine.sample_in_parts, rollouts.verify, []
    changes = {"rollout__m": 4, "rollout__response_buckets": (6, 9), "logging__replays_per_step": 4}
    config = small_config(total_steps=4, data__batch_prompts=8, **changes)

    def watched(*given):
        for i, part in enumerate(in_parts(*given)):
            seen.append(f"part {i} fetched")
            yield part

    def at_the_end(*given):
        *_, (whole, _) = watched(*given)
        yield whole, np.ones(len(whole.filled), bool)

    def noted(*given):
        seen.append("verified")
        return verify(*given)

    monkeypatch.setattr(rollouts, "verify", noted)
    order = {}
    for name, sampled in (("early", watched), ("late", at_the_end)):
        monkeypatch.setattr(Engine, "sample_in_parts", sampled)
        train(config, tmp_path / name)
        order[name] = set(pairwise(seen))
        seen.clear()
    assert ("part 0 fetched", "verified") in order["early"] and ("verified", "part 1 fetched") in order["early"]
    assert {before for before, after in order["late"] if after == "verified"} == {"part 2 fetched"}
    early, late = tmp_path / "early", tmp_path / "late"
    assert trajectory(early) == trajectory(late) and rows(early / "replays.jsonl") == rows(late / "replays.jsonl")
    assert sum(row.get("replays", 0) for row in trajectory(early)) > 0
    name = "model/model.safetensors"
    assert (early / name).read_bytes() == (late / name).read_bytes()


def test_rows_that_end_early_are_handed_over_early():
    engine = Engine(small_config(rollout__response_buckets=(3, 8)))
    engine.settings = dataclasses.replace(engine.settings, stop_ids=tuple(range(0, len(engine.backbone.tokenizer), 4)))
    data = dataset.load(engine.config, engine.backbone.frame, engine.backbone.stop_ids[0], frozenset())
    prompts, ids = engine.prompts(data.rows[:4], data.shapes), np.arange(24).reshape(4, 6)
    how = engine.load_params(), prompts, ids, jax.random.key(0), engine.settings.sampling(1.0)
    whole, seen = engine.sample(*how), np.zeros(24, int)
    for i, (part, complete) in enumerate(engine.sample_in_parts(*how)):
        assert complete.sum() > 0 and (part.mask[complete].sum(-1) <= (3, 8, 12)[i]).all()
        seen += complete
        for a, b in zip(part, whole, strict=True):
            np.testing.assert_allclose(a[complete], b[complete], atol=1e-6)
    assert i == 2 and (seen == 1).all()


def test_nothing_is_compiled_again_for_buckets_that_were_seen(tmp_path):
    """Two prompt buckets and three parts of the responses. Exempt are the first step in a prompt bucket and the first in it that
    resamples, for one further sample a prompt is a shape of its own: these do compile."""
    buckets = {"data__prompt_buckets": (30, 40), "rollout__response_buckets": (3, 8), "replay__k": 2}
    config = small_config(total_steps=10, data__batch_prompts=2, **buckets)
    train(config, tmp_path / "run")
    engine = Engine(config)
    data = dataset.load(config, engine.backbone.frame, engine.backbone.stop_ids[0], frozenset())
    seen, again = set(), []
    for row in rows(tmp_path / "run" / "metrics.jsonl")[1:]:
        prompts = engine.prompts([data.rows[i] for i in data.indices(row["step"] - 1)], data.shapes)
        columns = prompts.tokens.shape[1]
        shapes = {(columns, "sampled"), (columns, "resampled" if row["resample_rounds"] else "sampled")}
        assert (row["seconds/compiling"] == 0.0) == (shapes <= seen), row
        again += [columns] * (shapes <= seen)
        seen |= shapes
    assert {columns for columns, _ in seen} == set(again) == {30, 40} and (40, "resampled") in seen
