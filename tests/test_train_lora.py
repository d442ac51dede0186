"""The training program with LoRA: what is saved, exact resume, the reference policy, sampler against learner."""

import math
from contextlib import ExitStack

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import small_config, trajectory

from hir_jax.engine import Engine
from hir_jax.rollouts import Clock
from hir_jax.run.checkpoints import Checkpoints
from hir_jax.train import Run, policy_step, train

LORA = {
    "method": "clr", "lora__rank": 2, "lora__targets": ("q", "v", "down"), "learner__learning_rate": 0.02,
    "learner__kl": 0.05, "learner__kl_in": "loss",
}  # fmt: skip


def state(config, workdir):
    with Checkpoints(workdir / "checkpoints") as saved:
        return jax.device_get(saved.restore(saved.latest(), Engine(config).abstract_state)[0])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Four steps that nobody stopped."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    train(small_config(**LORA, total_steps=4), workdir)
    return workdir


def test_every_step_moves_away_from_the_reference(undisturbed):
    found = trajectory(undisturbed)
    assert [row["step"] for row in found] == list(range(5))
    for row in found[1:]:
        assert all(math.isfinite(value) for value in row.values()) and row["grad_norm"] > 0
        assert (
            row["gap"] < 1e-4
        )  # the learner, which applies adapters, finds the log-probs of decoding, which merges them
    assert found[1]["kl_ref"] == pytest.approx(0, abs=1e-6)  # the reference is the model without adapters
    assert found[4]["kl_ref"] > 1e-4


def test_checkpoints_hold_adapters_and_their_moments_alone(undisturbed):
    config = small_config(**LORA, total_steps=4)
    found = state(config, undisturbed)
    assert {name.split("_lora_")[0] for name in found.params["layers"]} == {"q", "v", "down"} and len(found.params) == 1
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(found.params))
    moments = sorted(leaf.shape for leaf in jax.tree.leaves(found.opt_state) if leaf.ndim)
    assert moments == sorted(2 * shapes) and all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found.params))


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(undisturbed, tmp_path):
    for steps in (2, 4):
        train(small_config(**LORA, total_steps=steps), tmp_path / "run")
    assert trajectory(tmp_path / "run") == trajectory(undisturbed)
    config = small_config(**LORA, total_steps=4)
    for one, other in zip(*(jax.tree.leaves(state(config, d)) for d in (undisturbed, tmp_path / "run")), strict=True):
        assert one.tobytes() == other.tobytes()
    name = "model/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (undisturbed / name).read_bytes()


def test_the_reference_policy_is_the_base_and_no_step_changes_it(tmp_path):
    """No second copy of it, its log-probs are those of a run without LoRA, and its bits stay what they were."""
    config = small_config(**LORA)
    with ExitStack() as stack:
        run = Run(config, tmp_path / "run", stack)
        given, reference = run.restore_or_init()
        engine = run.engine
        assert reference is None  # `learn` takes the frozen model
        before = jax.tree.map(np.array, engine.frozen)
        assert {leaf.dtype for leaf in jax.tree.leaves(before)} == {jnp.dtype(jnp.bfloat16)}
        plain = Engine(small_config(model__param_dtype="bfloat16"))
        rng = np.random.default_rng(1)
        tokens = rng.integers(5, 150, (4, 108)).astype(np.int32)
        arrays = tokens, np.full(4, 60, np.int32), np.ones((4, 12), bool)
        wanted = plain.logprobs(plain.load_params(), *arrays)
        np.testing.assert_array_equal(engine.logprobs(engine.frozen, *arrays), wanted)
        np.testing.assert_allclose(engine.logprobs(engine.policy(given.params), *arrays), wanted, atol=1e-6)
        for step in range(3):
            given = policy_step(run, given, reference, step, Clock())[0]
        jax.tree.map(np.testing.assert_array_equal, engine.frozen, before)
        assert np.abs(engine.logprobs(engine.policy(given.params), *arrays) - wanted).max() > 0.01
        run.export(given.params)
    merged = load_file(tmp_path / "run" / "model" / "model.safetensors")
    place = "model.layers.0.self_attn.{}_proj.weight"
    np.testing.assert_array_equal(merged[place.format("k")], before["layers"]["k"][0].T.astype(np.float32))
    assert not np.array_equal(merged[place.format("q")], before["layers"]["q"][0].T.astype(np.float32))


def test_hir_as_one_function_with_a_sampler_in_bfloat16(tmp_path):
    changes = {"method": "hir", "constraints__on_device": True, "replay__fill": "mask", "rollout__dtype": "bfloat16"}
    train(small_config(**LORA | {"save_model": False} | changes), tmp_path / "run")
    found = trajectory(tmp_path / "run")
    assert found[1]["replays"] > 0 and found[2]["updates_skipped"] == 0
    assert 0 < found[2]["sampler_gap"] < 0.1


def test_preferences_start_at_the_reference(tmp_path):
    changes = {"method": "dpo", "rollout__m": 3, "learner__dpo_pairs": "instruction", "learner__kl": 0.0}
    train(small_config(**LORA | {"save_model": False} | changes), tmp_path / "run")
    found = trajectory(tmp_path / "run")
    assert found[1]["pairs"] > 0 and found[1]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert found[2]["updates_skipped"] == 0 and found[2]["grad_norm"] > 0
