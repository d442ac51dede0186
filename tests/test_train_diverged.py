"""A policy whose log-probs are no longer finite: the run ends with a message, and what is saved is good."""

import jax
import numpy as np
import pytest
from small_runs import rows, small_config, start

from hir_jax import config as configs
from hir_jax.engine import Engine
from hir_jax.train import train
from hir_jax.types import InputError


@pytest.mark.parametrize(
    "changes",
    [{}, {"constraints__on_device": True, "replay__fill": "mask"}, {"method": "sft", "rollout__max_response": 48},
     {"checkpoint_every": 1}, {"total_steps": 1}],
    ids=["host", "one function", "sft", "before a checkpoint", "at the end"],
)  # fmt: skip
def test_a_policy_that_is_no_longer_finite_ends_the_run(tmp_path, changes):
    """The message names the step; what came before it is kept, and nothing that is broken is saved or exported."""
    run = tmp_path / "run"
    config = small_config(**{"total_steps": 4, "learner__learning_rate": 1e9, "learner__warmup_steps": 0} | changes)
    configs.check(config)
    with pytest.raises(
        InputError, match=r"^step [12]: the policy's log-probs are not finite.*checkpoint: none\. "
    ) as caught:
        train(config, run)
    last = rows(run / "metrics.jsonl")[-1]["step"]
    assert f"step {last}:" in str(caught.value) and last <= 2
    assert [p.name for p in (run / "checkpoints").iterdir() if p.name.isdigit()] == [] and not (run / "model").exists()


def test_updates_that_are_skipped_now_and_then_are_no_reason_to_stop(tmp_path, monkeypatch):
    """Three steps in a row without an update are; the steps before them, of which two in a row had none, are not."""
    whole, skips, seen = Engine.update, iter([1, 0, 1, 1, 0, 1, 1, 1, 1]), [0]

    def skipping(engine, state, batch):
        state, metrics = whole(engine, state, batch)
        seen[0] += next(skips)
        return state, metrics | {"updates_skipped": float(seen[0])}

    monkeypatch.setattr(Engine, "update", skipping)
    with pytest.raises(
        InputError, match=r"^step 8: the gradients of 3 steps in a row are not finite.*checkpoint: none\. "
    ):
        train(small_config(total_steps=12, method="sft", rollout__max_response=48), tmp_path / "run")


def test_the_last_good_checkpoint_is_named_and_kept(tmp_path, monkeypatch):
    """A run that goes wrong in its third step has a good checkpoint of the second."""
    run = tmp_path / "run"
    how = {"learner__learning_rate": 1e-3, "checkpoint_every": 1, "checkpoint_keep": 1}
    train(small_config(total_steps=2, save_model=False, **how), run)
    whole = Engine.learn

    def breaking(*given):
        state, *rest = whole(*given)
        return state._replace(params=jax.tree.map(lambda x: x * np.nan, state.params)), *rest

    monkeypatch.setattr(Engine, "learn", breaking)
    with pytest.raises(InputError, match=rf"^step 3: .*Last good checkpoint: {run}/checkpoints/2\. "):
        train(small_config(total_steps=5, **how), run)
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == [0, 1, 2, 3]
    monkeypatch.undo()
    train(small_config(total_steps=3, save_model=False, **how), run)  # the checkpoint can be gone on with
    assert rows(run / "metrics.jsonl")[-1]["nll"] > 0


def test_the_program_ends_with_that_message_and_status_1(tmp_path):
    """Where the update overshoots, as with a learning rate of 1e9."""
    how = {"learner__learning_rate": 1e9, "learner__warmup_steps": 0, "total_steps": 12, "logging__tensorboard": False}
    process = start(tmp_path / "run", **how)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 1 and "Traceback" not in output + errors
    message = [line for line in errors.splitlines() if line][-1]
    assert message.startswith("error: step ") and "Last good checkpoint: none." in message
    assert not (tmp_path / "run" / "model").exists()
