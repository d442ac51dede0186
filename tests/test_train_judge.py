"""Training on rows with hard and soft constraints, the judge a server on loopback that dies in the middle of a run."""

import json
import threading

import pytest
from judge_server import KEY, KEY_NAME, JudgeServer, completion, set_environment
from small_runs import small_config

from hir_jax.checks.judge.soft import SOFT
from hir_jax.data import native
from hir_jax.train import train
from hir_jax.types import Constraint, Instruction

TEXTS = ("Sound calm.", "Be kind to the reader.")


@pytest.fixture
def config(tmp_path, monkeypatch):
    set_environment(monkeypatch)
    instructions = [
        Instruction(
            f"Write a note about day {n}.",
            (Constraint("punctuation:no_comma", text="Use no comma."), Constraint(SOFT, text=TEXTS[n % 2])),
            "type1",
            n,
        )
        for n in range(12)
    ]
    native.write(tmp_path / "rows.jsonl", instructions)
    judge = {
        "kind": "endpoint", "model": "grader", "cache": str(tmp_path / "verdicts"), "retries": 0, "api_key_env": KEY_NAME,
        "backoff_seconds": 0.0,
    }  # fmt: skip

    def make(server):
        changes = {"data__source": "jsonl", "data__path": str(tmp_path / "rows.jsonl"), "save_model": False}
        changes |= {"replay__fill": "mask", "learner__kl": 0.0}  # less to compile
        changes |= {f"constraints__judge__{name}": value for name, value in (judge | {"base_url": server.url}).items()}
        return small_config(**changes)

    return make


def script(alive, answered):
    """Answers `alive` questions by the first letter of the response, and cuts the connection from then on."""
    lock = threading.Lock()

    def say(ask):
        with lock:
            if len(answered) == alive:
                return None
            answered.add((ask.prompt, ask.response, ask.constraint))
            return completion("YES" if ask.response.strip()[0] < "m" else "NO")

    return say


def run(config, workdir):
    train(config, workdir)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][1:]


def test_steps_complete_while_the_judge_dies_and_a_restart_asks_nothing_twice(config, tmp_path, caplog):
    answered = set()
    with JudgeServer(script(11, answered)) as server:
        steps = run(config(server), tmp_path / "first")
    assert [step["step"] for step in steps] == [1, 2]
    assert len(answered) == 11 < len(server.asked) and "judge_unanswered" in caplog.text
    caplog.clear()
    # another run with the same seed: its first step samples the same responses
    with JudgeServer(script(10**9, set())) as again:
        steps = run(config(again), tmp_path / "second")
    assert [step["step"] for step in steps] == [1, 2] and "judge_unanswered" not in caplog.text
    assert not answered & set(again.asked) and max(again.asked.values()) == 1
    assert set(server.asked) & set(again.asked)  # what was not answered then is asked now
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "first/config.json" in files and again.keys == {f"Bearer {KEY}"}
    assert not any(KEY.encode() in path.read_bytes() for path in files) and KEY not in caplog.text
