"""Data that users bring, through the programs: IF-RLVR's rows are trained on and scored, mixtures resume exactly."""

import json
import math
import signal
import time

import chat_cases
import pytest
from if_rlvr_rows import BULLETS, COMMA, ONCE, TASK, row, write
from small_runs import rows, small_config, start, trajectory
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hir_jax import config as configs
from hir_jax.checks.verifier import Verifier
from hir_jax.data import native
from hir_jax.data.generate.tiny import witness
from hir_jax.eval.scoring import score_files
from hir_jax.train import train


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The directory of a byte-level tokenizer that is trained on the rows' texts."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    how = {"special_tokens": ["<|im_start|>", "<|im_end|>"], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, **how)
    core.train_from_iterator([TASK, *(text for _, _, text in (COMMA, ONCE, BULLETS))] * 9, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = chat_cases.QWEN3
    made.save_pretrained(directory := tmp_path_factory.mktemp("tokenizer"))
    return str(directory)


def test_if_rlvr_rows_are_trained_on(tmp_path, tokenizer, caplog):
    """Takes long because no other test compiles a step of these shapes; it protects the way from a published row to a replay."""
    good = [row(COMMA, ONCE, BULLETS, task=f"{TASK} {number}", key=f"row {number}") for number in range(9)]
    path = write(tmp_path / "rows.jsonl", row(COMMA, task="", key="broken"), *good)
    how = {"data__source": "if_rlvr", "data__path": str(path), "data__hold_out": 2, "data__max_prompt": 160}
    how |= {
        "model__tokenizer": tokenizer,
        "learner__micro_batch_tokens": 400,
        "eval_every": 2,
        "logging__replays_per_step": 4,
    }
    config = small_config(replay__fill="mask", logging__profile_steps=(2, 9), **how)  # the run ends within the trace
    configs.check(config)
    train(config, tmp_path / "run")
    found = rows(tmp_path / "run" / "metrics.jsonl")
    assert [one["step"] for one in found] == [0, 1, 2] and "heldout_ila" in found[2]
    assert all(math.isfinite(one[name]) for one in found[1:] for name in ("loss", "grad_norm", "cla", "following"))
    assert "broken row, no task before the constraints" in caplog.text
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1
    shown = rows(tmp_path / "run" / "replays.jsonl")
    assert shown and all(one["original"].startswith(TASK) and one["rewritten"].startswith(TASK) for one in shown)
    texts = [text for _, _, text in (COMMA, ONCE, BULLETS)]
    for one in shown:
        kept = [verdict["satisfied"] for verdict in one["constraints"]]
        assert [text in one["rewritten"] for text in texts] == kept and any(kept) and not all(kept)


def test_if_rlvr_rows_are_scored(tmp_path, capsys):
    prompts = write(tmp_path / "prompts", row(COMMA, ONCE, key="a"), row(ONCE, BULLETS, key="b"), row(COMMA, key="a"))
    answers = [
        ("a", "The tide"),
        ("a", "Tide, tide"),
        ("b", "* tide\n* ebb"),
        ("b", "* tide\n- ebb\n* tide"),
        ("b", " "),
    ]
    responses = tmp_path / "responses"
    responses.write_text("".join(json.dumps({"key": key, "response": text}) + "\n" for key, text in answers))
    with Verifier(workers=0, timeout_seconds=10) as verifier:
        summary, errors = score_files("if_rlvr", str(prompts), str(responses), str(tmp_path / "out"), verifier)
    assert rows(tmp_path / "out") == [
        {"key": key, "satisfied": verdicts}
        for (key, _), verdicts in zip(
            answers, ([True, True], [False, False], [True, True], [False, False], [False, False])
        )
    ]
    assert summary["rows"] == 5 and summary["overall"] == 2 / 5 and summary["constraints"] == 4 / 10
    assert len(errors) == 1 and "id used before" in str(errors[0])


def test_a_mixture_that_was_killed_ends_with_the_same_bytes(tmp_path):
    """Takes long because the program starts three times; it protects that steps of a mixture depend on their number alone."""
    path = tmp_path / "rows.jsonl"
    how = {"min_constraints": 2, "max_constraints": 4, "templates": ("type1",)}
    native.write(path, [q for q, _ in witness.generate(5, 16, split="train", **how)])
    mixture = (("witness", "", 1), ("jsonl", str(path), 1.5, 12))
    how = {"data__source": "mixture", "data__mixture": mixture, "data__hold_out": 4, "total_steps": 6, "eval_every": 3}
    how |= {"checkpoint_every": 1, "replay__fill": "mask"}

    def run(name, until=None):
        process = start(tmp_path / name, **how)
        metrics = tmp_path / name / "metrics.jsonl"
        while until and not (metrics.exists() and f'"step": {until}' in metrics.read_text()):
            assert process.poll() is None, process.communicate(timeout=400)
            time.sleep(0.001)
        if until:
            process.send_signal(signal.SIGKILL)
        output, errors = process.communicate(timeout=400)
        assert process.returncode == (-signal.SIGKILL if until else 0), errors
        return output

    run("whole")
    run("killed", until=3)
    assert "resuming" in run("killed")
    assert trajectory(tmp_path / "killed") == trajectory(tmp_path / "whole")
    one, other = (tmp_path / name / "model" / "model.safetensors" for name in ("killed", "whole"))
    assert one.read_bytes() == other.read_bytes()
    found = rows(tmp_path / "whole" / "metrics.jsonl")
    names = ("witness", "jsonl")
    assert [one["step"] for one in found if all(f"heldout_ila/{name}" in one for name in names)] == [0, 3, 6]
    for one in found[1:]:
        parts = [one[f"ila/{name}"] for name in names if f"ila/{name}" in one]
        assert parts and min(parts) - 1e-6 <= one["ila"] <= max(parts) + 1e-6
    assert all(sum(f"{figure}/{name}" in one for one in found) > 1 for figure in ("ila", "following") for name in names)
