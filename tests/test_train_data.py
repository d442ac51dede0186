"""Data that users bring, through the programs: IF-RLVR's rows are trained on and scored."""

import json
import math

import chat_cases
import pytest
from if_rlvr_rows import BULLETS, COMMA, ONCE, TASK, row, write
from small_runs import rows, small_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hir_jax import config as configs
from hir_jax.checks.verifier import Verifier
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
    good = [row(COMMA, ONCE, BULLETS, task=f"{TASK} {number}", key=f"row {number}") for number in range(9)]
    path = write(tmp_path / "rows.jsonl", row(COMMA, task="", key="broken"), *good)
    how = {"data__source": "if_rlvr", "data__path": str(path), "data__hold_out": 2, "data__max_prompt": 160}
    how |= {
        "model__tokenizer": tokenizer,
        "learner__micro_batch_tokens": 400,
        "eval_every": 2,
        "logging__replays_per_step": 4,
    }
    config = small_config(replay__fill="mask", **how)
    configs.check(config)
    train(config, tmp_path / "run")
    found = rows(tmp_path / "run" / "metrics.jsonl")
    assert [one["step"] for one in found] == [0, 1, 2] and "heldout_ila" in found[2]
    assert all(math.isfinite(one[name]) for one in found[1:] for name in ("loss", "grad_norm", "cla", "following"))
    assert "broken row, no task before the constraints" in caplog.text
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
