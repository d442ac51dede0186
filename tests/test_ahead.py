"""What is compiled in the background is what the first step calls: nothing is compiled twice."""

import threading
from collections import Counter

import jax
import pytest
from small_runs import small_config

from hir_jax.run.progress import Compilations
from hir_jax.train import train

OF_A_STEP = ("begin", "advance", "sample", "learn", "whole_step")


@pytest.fixture
def compiled():
    """Counter of (function, whether in the background) of the compilations of a step's functions."""
    found = Counter()

    def heard(event, duration, fun_name="", **details):
        name = fun_name.removeprefix("jit(").removesuffix(")")
        if event == Compilations.EVENT and name in OF_A_STEP:
            found[name, threading.current_thread().name.startswith("compile-ahead")] += 1

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield found
    jax.monitoring.unregister_event_duration_listener(heard)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"replay__fill": "mask"}, {"begin": 1, "advance": 1, "learn": 1}),
        ({"replay__fill": "mask", "rollout__response_buckets": (4, 8)}, {"begin": 1, "advance": 3, "learn": 1}),
        ({"replay__fill": "mask", "rollout__slots": 4}, {"sample": 1, "learn": 1}),
        ({"method": "ilr", "lora__rank": 2, "learner__kl": 0.0}, {"begin": 1, "advance": 1, "learn": 1}),
        ({"replay__fill": "mask", "constraints__on_device": True}, {"whole_step": 1}),
    ],
    ids=["parts", "buckets", "slots", "lora", "whole"],
)
def test_a_step_is_compiled_once_and_ahead(tmp_path, compiled, changes, expected):
    train(small_config(save_model=False, **changes), tmp_path / "run")
    assert compiled == {(name, True): count for name, count in expected.items()}


def test_a_function_that_cannot_be_compiled_ahead_fails_where_it_is_called(tmp_path, monkeypatch):
    from hir_jax import step

    def learn(*given, **options):
        raise ValueError("learn cannot be traced")

    monkeypatch.setattr(step, "learn", learn)
    with pytest.raises(ValueError, match="learn cannot be traced"):
        train(small_config(replay__fill="mask"), tmp_path / "run")
