"""Evaluation of a run on IFEval's format: its verdicts are those of hir_jax.score on its own responses."""

import json
import os
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_runs import small_config

from hir_jax import config as configs
from hir_jax.checks.verifier import Verifier
from hir_jax.engine import Engine
from hir_jax.eval.answering import Request, evaluate_run, restored_params
from hir_jax.eval.comparing import differences_of_evaluations
from hir_jax.eval.judging import judge_files
from hir_jax.eval.scoring import score_files
from hir_jax.evaluate import evaluate
from hir_jax.model import decoder
from hir_jax.run.checkpoints import Checkpoints
from hir_jax.train import train
from hir_jax.types import InputError

PROMPTS = [
    ("write about the river . use no commas .", ["punctuation:no_comma"], [{}]),
    ("write at least 3 words about a small house .", ["length_constraints:number_words"],
     [{"num_words": 3, "relation": "at least"}]),
    ("write two paragraphs and name the word forest .", ["length_constraints:number_paragraphs", "keywords:existence"],
     [{"num_paragraphs": 2}, {"keywords": ["forest"]}]),
]  # fmt: skip


def write_prompts(path, prompts=PROMPTS):
    rows = [
        {"key": 100 + i, "prompt": prompt, "instruction_id_list": ids, "kwargs": kwargs}
        for i, (prompt, ids, kwargs) in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def config(**changes):
    return small_config(**{"method": "ilr", "total_steps": 1, "data__eval_batch": 2, "save_model": False} | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a checkpoint of step 1."""
    workdir = tmp_path_factory.mktemp("evaluate") / "run"
    train(config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def greedy(run):
    prompts = write_prompts(run.parent / "prompts.jsonl")
    return (
        prompts,
        *evaluate_run(config(), run, Request("ifeval", str(prompts))),
    )


def test_verdicts_are_those_of_the_scorer_on_the_same_responses(greedy, tmp_path):
    prompts, summary, out = greedy
    verdicts = tmp_path / "verdicts.jsonl"
    with Verifier(0, 5.0) as verifier:
        expected, errors = score_files("ifeval", str(prompts), str(out / "responses.jsonl"), str(verdicts), verifier)
    assert errors == [] and summary == summary | expected | {"step": 1}
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["intervals"]["ila"].mean == pytest.approx(expected["prompt_strict"])
    assert 0 < summary["response_tokens"] <= 12 and 0 <= summary["repetition"] <= 1 and summary["entropy"] > 0
    assert rows(out / "verdicts.jsonl") == rows(verdicts)
    responses = rows(out / "responses.jsonl")
    assert [(r["key"], r["prompt"]) for r in responses] == [(100 + i, p[0]) for i, p in enumerate(PROMPTS)]
    assert any(r["response"] for r in responses)


def test_greedy_is_repeatable_and_a_limit_takes_the_first(greedy, run, tmp_path):
    prompts, _, out = greedy
    copy = tmp_path / "run"
    shutil.copytree(run / "checkpoints", copy / "checkpoints")
    summary, _ = evaluate_run(config(), copy, Request("ifeval", str(prompts), 1))
    assert summary["rows"] == 1
    found = rows(copy / "evaluations" / "ifeval-step-1-first-1" / "responses.jsonl")
    assert found == rows(out / "responses.jsonl")[:1]


def test_temperature_samples(greedy, run, tmp_path):
    prompts, *_ = greedy
    copy = tmp_path / "run"
    shutil.copytree(run / "checkpoints", copy / "checkpoints")
    summary, several = evaluate_run(config(), copy, Request("ifeval", str(prompts), None, 2.0, samples=4))
    assert summary["rows"] == 12 and set(summary["pass_at_k"]) == {"1", "2", "4"} and several.name.endswith("-t2-n4")
    _, same = evaluate_run(config(data__eval_batch=3), copy, Request("ifeval", str(prompts), 2, 2.0, samples=4))
    assert same.name == "ifeval-step-1-t2-n4-first-2"  # three and one of a prompt at a time
    assert rows(same / "responses.jsonl") == rows(several / "responses.jsonl")[:8]
    found = rows(several / "responses.jsonl")
    assert [r["key"] for r in found] == [100] * 4 + [101] * 4 + [102] * 4
    assert len({r["response"] for r in found[:4]}) > 1
    by_prompt = rows(several / "prompts.jsonl")
    strict = [all(r["strict"]) for r in rows(several / "verdicts.jsonl")]
    assert [r["ila"] for r in by_prompt] == [sum(strict[i : i + 4]) / 4 for i in (0, 4, 8)]
    assert [r["pass@4"] for r in by_prompt] == [float(any(strict[i : i + 4])) for i in (0, 4, 8)]
    with pytest.raises(InputError, match="--temperature=-1"):
        evaluate_run(config(), copy, Request("ifeval", str(prompts), temperature=-1.0))
    with pytest.raises(InputError, match="--samples=2 at temperature 0"):
        evaluate_run(config(), copy, Request("ifeval", str(prompts), samples=2))


def test_the_configs_own_model_answers_where_step_0_is_asked_for(greedy, tmp_path):
    prompts, _, _ = greedy
    with pytest.raises(InputError, match=r"new: no such run, so no checkpoint yet; .*new@0 in hir_jax.evaluate"):
        evaluate_run(config(), tmp_path / "new", Request("ifeval", str(prompts)))
    assert not (tmp_path / "new").exists()
    summary, _ = evaluate_run(config(), tmp_path / "new", Request("ifeval", str(prompts)), 0)
    assert summary["step"] == 0 and (tmp_path / "new" / "evaluations" / "ifeval-step-0" / "verdicts.jsonl").exists()
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_a_prompt_that_does_not_fit_is_named_before_anything_is_sampled(tmp_path):
    long = ("write about the river . " * 40, ["punctuation:no_comma"], [{}])
    prompts = write_prompts(tmp_path / "prompts.jsonl", [*PROMPTS, long])
    with pytest.raises(InputError, match=rf"{prompts}:4: the prompt takes \d+ tokens and config.data.max_prompt is 96"):
        evaluate_run(config(), tmp_path / "run", Request("ifeval", str(prompts)), 0)
    assert not (tmp_path / "run").exists()


def test_evaluation_changes_no_checkpoint(greedy, run):
    with Checkpoints(run / "checkpoints", keep=2) as saved:
        assert saved.latest() == 1


def test_held_out_and_unseen_instructions(run):
    changed = config(data__unseen_ids=("training:word_times", "startend:end_checker", "tiny:one_of"))
    held, _ = evaluate_run(config(), run, Request("heldout"))
    assert held["rows"] == 4 and held["overall"] == held["intervals"]["ila"].mean
    other, out = evaluate_run(changed, run, Request("unseen"))
    assert set(other["family"]) <= set(changed.data.unseen_ids) and other["rows"] == 4 and out.name == "unseen-step-1"
    with pytest.raises(InputError, match=r"config\.data\.unseen_ids"):
        evaluate_run(config(), run, Request("unseen"))


def test_responses_for_a_judge(run, tmp_path):
    """Every level that is scored is answered, under the key by which the scorer finds it, and nothing is judged here."""
    levels = [{"example_id": 1, "category": "content", "source": "s", "level": n, "target": "",
               "constraint_type": "content", "instruction": f"write {n} lines about the river ." if n else ""}
              for n in range(6)]  # fmt: skip
    prompts = tmp_path / "content.jsonl"
    prompts.write_text("".join(json.dumps(level) + "\n" for level in levels), encoding="utf-8")
    summary, out = evaluate_run(config(), run, Request("followbench", str(prompts)))
    assert sorted(path.name for path in out.iterdir()) == ["responses.jsonl", "summary.json"]
    assert 0 < summary["response_tokens"] <= 12 and "intervals" not in summary
    written = rows(out / "responses.jsonl")
    assert [(row["key"], row["prompt"]) for row in written] == [
        (f"content/1/{n}", levels[n]["instruction"]) for n in range(1, 6)
    ]
    scored, _, errors = judge_files("followbench", str(prompts), str(out / "responses.jsonl"), os.devnull)
    assert (scored["rows"], scored["missing"], errors) == (5, 0, [])
    with pytest.raises(InputError, match="one response to each prompt"):
        evaluate_run(config(), run, Request("followbench", str(prompts), None, 1.0, samples=2))


def test_perplexity_is_that_of_the_models_own_log_probs(run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the river and the small house . a forest is old . " * 3)
    summary, out = evaluate_run(config(rollout__temperature=0.7), run, Request("text", str(text)))
    engine = Engine(config())
    params, _ = restored_params(engine, run)
    ids = np.array(engine.backbone.tokenizer(text.read_text())["input_ids"])
    nats = []
    for start in range(0, len(ids) - 1, 12):  # windows of max_response tokens behind one
        window = ids[start : start + 13][None]
        at = np.arange(window.shape[1])[None]
        hidden = decoder.hidden_states(engine.model, params, window, at, np.ones_like(at, bool))
        logp = jax.nn.log_softmax(decoder.logits(engine.model, params, hidden))[0]
        nats += [-float(logp[i, window[0, i + 1]]) for i in range(window.shape[1] - 1)]
    assert summary["tokens"] == len(ids) - 1 == len(nats)
    assert summary["perplexity"] == pytest.approx(np.exp(np.mean(nats)), rel=1e-4)
    assert len(rows(out / "prompts.jsonl")) == summary["windows"] and out.name == "text-text-step-1"


def test_the_program_compares_steps_of_a_run(run, tmp_path, capsys):
    """Before and after, on held-out instructions and on plain text (forgetting): both summaries, and differences paired over
    prompts or windows."""
    text = tmp_path / "text.txt"
    text.write_text("the river and the small house . a forest is old . " * 3)
    names = [f"{run}@0", str(run)]
    for benchmark, prompts, figure, count in (("heldout", None, "ila", "rows"), ("text", str(text), "nll", "windows")):
        asked = {"benchmark": benchmark, "prompts": prompts, "limit": None, "temperature": 0.0, "samples": 1}
        evaluate(SimpleNamespace(workdir=names, config=None, control="shuffle", **asked))
        found = json.loads(capsys.readouterr().out)
        assert list(found["runs"]) == names and list(found["differences"]) == names[1:]
        before, after = found["runs"].values()
        assert (before["step"], after["step"]) == (0, 1) and before[count] == after[count] > 1
        mean, low, high = found["differences"][names[1]][figure]
        assert low <= mean <= high
        assert mean == pytest.approx(after["intervals"][figure][0] - before["intervals"][figure][0])
        where = [run / "evaluations" / f"{benchmark}{'-text' if prompts else ''}-step-{step}" for step in (0, 1)]
        values = [{row["key"]: row[figure] for row in rows(path / "prompts.jsonl")} for path in where]
        assert mean == pytest.approx(np.mean([values[1][key] - value for key, value in values[0].items()]))
    assert before["perplexity"] != after["perplexity"]  # the step did move the model
    assert after["perplexity"] == pytest.approx(np.exp(after["nll"]))


def test_differences_are_paired_over_common_prompts(tmp_path):
    for name, keys, values in (("a", "1234", (0, 1, 0, 1)), ("b", "2345", (1, 1, 1, 0))):
        (tmp_path / name).mkdir()
        lines = [{"key": k, "prompt": f"prompt {k}", "ila": v} for k, v in zip(keys, values, strict=True)]
        lines.append({"key": "6", "prompt": f"of {name}'s config", "ila": 0})
        (tmp_path / name / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mean, low, high = differences_of_evaluations({name: tmp_path / name for name in "ab"})["b"]["ila"]
    assert mean == pytest.approx(1 / 3) and 0 <= low < mean < high <= 1  # on 2, 3 and 4: 0, 1, 0
    (tmp_path / "b" / "prompts.jsonl").write_text(json.dumps({"key": "1", "prompt": "other", "ila": 1}) + "\n")
    with pytest.raises(InputError, match="b: it answered none of the prompts that a did"):
        differences_of_evaluations({name: tmp_path / name for name in "ab"})


def test_a_run_is_evaluated_with_its_own_config(run):
    found = configs.of_run(run)
    assert configs.flatten(found) == configs.flatten(config())
    with pytest.raises(InputError, match=r"no config\.json"):
        configs.of_run(run.parent / "nothing")
