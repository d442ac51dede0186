"""Chat templates through the programs: the end of an SFT response, the fixed date over days, reasoning that is not checked."""

from dataclasses import replace
from datetime import datetime

import chat_cases
import jax
import numpy as np
import pytest
import real_tokenizers
import wrong_results
from model_cases import CASES, write_model
from small_runs import rows, small_config, trajectory
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from hir_jax.checks.device.conditions import encode
from hir_jax.checks.verifier import Verifier
from hir_jax.data import dataset, native
from hir_jax.engine import SELECT, Engine
from hir_jax.model.files.tokenizer import ids_of
from hir_jax.rollouts import Clock, roll_out
from hir_jax.step import policy_batch, select_replays
from hir_jax.train import Run, train
from hir_jax.types import Constraint, Instruction

NO_COMMA = Constraint("punctuation:no_comma")


# ---- item 3: the end of a response that is fitted


class TakenError(Exception):
    """Carries the first batch that a run would learn from."""


def sft_batch_of(name, responses, folder, monkeypatch):
    """(tokenizer, TrainBatch) of a run of method sft on these responses, by a random model with a real tokenizer."""
    tokenizer = real_tokenizers.load(name)
    config = replace(CASES["llama_tied"], vocab_size=ids_of(tokenizer))
    directory = write_model(folder / "model", config)
    tokenizer.save_pretrained(directory)
    ends = {"llama3_1": ("<|end_of_text|>", "<|eot_id|>"), "qwen3": ("<|endoftext|>", "<|im_end|>")}
    stop_ids = [tokenizer.convert_tokens_to_ids(end) for end in ends[name]]  # in the order of the published files
    (directory / "generation_config.json").write_text(f'{{"eos_token_id": {stop_ids}}}', encoding="utf-8")
    instructions = [Instruction(f"Write {i}.", (NO_COMMA,), "type1") for i in range(len(responses))]
    native.write(folder / "rows.jsonl", instructions, responses)

    def update(engine, state, batch):
        raise TakenError(batch)

    monkeypatch.setattr(Engine, "update", update)
    how = {"data__source": "jsonl", "data__path": str(folder / "rows.jsonl"), "data__batch_prompts": len(responses)}
    how |= {"data__max_prompt": 128, "rollout__max_response": 32, "model__checkpoint": str(directory)}
    with pytest.raises(TakenError) as taken:
        train(small_config(method="sft", **how), folder / "run")
    return tokenizer, taken.value.args[0]


def trained_texts(tokenizer, batch):
    """text -> its tokens that the loss is of, from the batch's mask."""
    columns = batch.tokens[:, -batch.response_mask.shape[1] :]
    ids = [row[mask].tolist() for row, mask in zip(columns, batch.response_mask, strict=True)]
    return {tokenizer.decode(one[:-1]): one for one in ids}


@pytest.mark.parametrize(("name", "end"), [("llama3_1", "<|eot_id|>"), ("qwen3", "<|im_end|>")])
def test_the_last_trained_token_ends_the_turn(name, end, tmp_path, monkeypatch):
    """And it is the only special one: neither the first of the stop ids nor anything of the prompt is trained on."""
    responses = ["Hello there.", "One two three", "Yes!\n", "A café 🙂"]
    tokenizer, batch = sft_batch_of(name, responses, tmp_path, monkeypatch)
    found = trained_texts(tokenizer, batch)
    assert found.keys() == set(responses) and (batch.weight == 1).all()
    end_id = tokenizer.convert_tokens_to_ids(end)
    for ids in found.values():
        assert ids[-1] == end_id and not set(ids[:-1]) & set(tokenizer.added_tokens_decoder)


def test_recorded_ends_of_turns(tmp_path, monkeypatch):
    cases = wrong_results.cases("3 end of turn")
    tokenizer, batch = sft_batch_of("llama3_1", [case["response"] for case in cases], tmp_path, monkeypatch)
    found = trained_texts(tokenizer, batch)
    for case in cases:
        last = tokenizer.convert_ids_to_tokens(found[case["response"]][-1])
        assert case["tokenizer"] == "llama3" and case["right"] == f"the response's last trained token is {last}"


# ---- item 4: a run goes on tomorrow

DAILY = chat_cases.LLAMA3.replace("not date_string is defined", "true")  # asks for the time whatever it is told


class Stopping(Run):
    """A run that is stopped after its first step."""

    def stops_after(self, step):
        return step == 1


def run_at(day, config, workdir, make_run=Run):
    """Trains with the clock of chat templates at noon of a day of May 2031."""

    class Midday:
        @staticmethod
        def now():
            return datetime(2031, 5, day, 12)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", Midday)
        shown = chat_cases.tokenizer("llama3", DAILY).apply_chat_template(
            [{"role": "user", "content": ""}], tokenize=False
        )
        assert f"Today Date: 0{day} May 2031" in shown  # to whom asks transformers, not hir_jax
        train(config, workdir, make_run)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two steps on one day; and one step on that day, the other on the next."""
    folder = tmp_path_factory.mktemp("days")
    chat_cases.tokenizer("llama3", DAILY).save_pretrained(folder / "tokenizer")
    how = {"model__tokenizer": str(folder / "tokenizer"), "data__max_prompt": 640, "learner__micro_batch_tokens": 4000}
    config = small_config(total_steps=2, learner__learning_rate=1e-2, save_model=False, **how)
    run_at(1, config, folder / "whole")
    run_at(1, config, folder / "resumed", Stopping)
    assert [row["step"] for row in rows(folder / "resumed" / "metrics.jsonl")] == [0, 1]
    run_at(2, config, folder / "resumed")
    return folder / "whole", folder / "resumed"


def test_a_run_that_is_resumed_on_another_day_is_the_same(runs):
    whole, resumed = runs
    assert [row["step"] for row in trajectory(whole)] == [0, 1, 2]
    assert trajectory(resumed) == trajectory(whole)
    assert rows(resumed / "replays.jsonl") == rows(whole / "replays.jsonl")


def test_recorded_dates(runs):
    for case in wrong_results.cases("4 date"):
        assert "strftime_now" in case["tokenizer"] and "strftime_now" in DAILY
        assert (
            case["right"] == "step 2 of a run resumed with the clock one day later equals an undisturbed run's"
        ) and trajectory(runs[1])[2] == trajectory(runs[0])[2]


# ---- item 17: reasoning

TWICE = {"letter": "a", "let_frequency": 2, "let_relation": "at least"}
TAGS = ("<think>", "</think>")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def small_tokenizer(template):
    """Nine tokens, so that a random model often writes tags: a, comma, space, one for any other character, two tags, specials."""
    core = Tokenizer(models.BPE({"?": 0, "a": 1, ",": 2, "Ġ": 3}, [], unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    how = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template}
    return PreTrainedTokenizerFast(tokenizer_object=core, **how)


def answers(rollout, begun):
    """The texts of responses, and what is left of them without their reasoning, taken apart token by token."""
    words = ["?", "a", ",", " ", "", "", "", *TAGS]
    for tokens, mask in zip(rollout.tokens, rollout.mask, strict=True):
        whole = left = ""
        inside, behind = begun, False  # within reasoning; right behind its end, where spaces go too
        for word in (words[i] for i in tokens[mask]):
            whole += word
            if inside:
                inside, behind = word != "</think>", word == "</think>"
            elif word == "<think>":
                inside = True
            elif word and not (behind and word == " "):
                left, behind = left + word, False
        yield whole, left


def expected(rollout, begun, stripped=True):
    """bool[B, 2]: which constraints each response's answer, or the whole of it, meets; a blank one meets none."""
    texts = [answer if stripped else whole for whole, answer in answers(rollout, begun)]
    return np.array([(bool(t.strip()) and "," not in t, t.count("a") > 1) for t in texts])


@pytest.mark.parametrize("template", [chat_cases.QWEN3, chat_cases.THINKING], ids=["opened by itself", "by the prompt"])
def test_verdicts_of_a_step_are_those_of_the_answer(template, tmp_path):
    """On the host, on the device before it and in one function there; the tokens that are learnt from stay whole."""
    begun = template == chat_cases.THINKING
    small_tokenizer(template).save_pretrained(tmp_path / "tokenizer")
    constraints = Constraint(NO_COMMA.id, {}, "No."), Constraint("keywords:letter_frequency", TWICE, "Twice a.")
    native.write(tmp_path / "rows.jsonl", [Instruction(f"Go {i}.", constraints, "type1") for i in range(4)])
    how = {"model__tokenizer": str(tmp_path / "tokenizer"), "data__source": "jsonl", "rollout__m": 12, "replay__k": 2}
    how |= {"data__path": str(tmp_path / "rows.jsonl"), "replay__fill": "mask"}
    engine = Engine(small_config(learner__kl=0.0, learner__micro_batch_tokens=2000, **how))
    assert engine.backbone.frame.thinks == begun
    data = dataset.load(engine.config, engine.backbone.frame, engine.backbone.end_id)
    prompts, params = engine.prompts(data.rows, data.shapes), engine.load_params()
    conditions = encode([constraints] * 4, data.shapes.constraints)
    found = {}
    with Verifier(0, 5.0) as verifier:
        for name, given in (("host", None), ("device", conditions)):
            found[name] = roll_out(engine, verifier, params, data.rows, prompts, 0, Clock(), given)[:2]
        whole = Engine(small_config(model__strip_thinking=False, **how))
        found["whole"] = roll_out(whole, verifier, params, data.rows, prompts, 0, Clock())[:2]
    rollout, verdicts = found["host"]
    how = {"settings": engine.settings}
    replays = select_replays(rollout, verdicts, 0, 0, engine.key(SELECT, 0), **how)
    batch = jax.device_get(policy_batch(params, None, prompts, rollout, verdicts, replays, **how)[0])
    found["one function"] = engine.whole_step(engine.init_state(params), None, prompts, conditions, 0)[3:5]
    for name, (one, decided) in found.items():
        filled = one.filled
        np.testing.assert_array_equal(one.tokens, rollout.tokens, err_msg=name)
        assert decided.known[filled].all() and filled.sum() == 4 * 12
        wanted = expected(one, begun, stripped=name != "whole")
        np.testing.assert_array_equal(decided.satisfied[filled], wanted[filled], err_msg=name)
    stripped, unstripped = found["host"][1].satisfied, found["whole"][1].satisfied
    assert (stripped != unstripped).any(0).all() and all(0.1 < x < 0.9 for x in stripped[rollout.filled].mean(0))
    learnt, sampled = batch.tokens[:, -12:][~batch.is_replay & (batch.weight > 0)], rollout.tokens[rollout.filled]
    np.testing.assert_array_equal(learnt, sampled)  # tags, reasoning and all
    assert (learnt == 7).any() and batch.is_replay.any()
