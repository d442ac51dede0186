"""Evaluation of a run on IFEval's format: its verdicts are those of hir_jax.score on its own responses."""

import json
import shutil

import pytest
from small_runs import small_config

from hir_jax import score
from hir_jax.constraints.verifier import Verifier
from hir_jax.evaluate import evaluate_file
from hir_jax.runs.checkpoints import Checkpoints
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
    return small_config(method="ilr", total_steps=1, data__eval_batch=2, save_model=False, **changes)


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
        evaluate_file(config(), run, "ifeval", str(prompts), None, 0.0),
        run / "evaluations" / "ifeval-step-1",
    )


def test_verdicts_are_those_of_the_scorer_on_the_same_responses(greedy, tmp_path):
    prompts, summary, out = greedy
    verdicts = tmp_path / "verdicts.jsonl"
    with Verifier(0, 5.0) as verifier:
        expected, errors = score.score_files(
            "ifeval", str(prompts), str(out / "responses.jsonl"), str(verdicts), verifier
        )
    assert errors == [] and summary == expected | {"step": 1}
    assert rows(out / "verdicts.jsonl") == rows(verdicts)
    responses = rows(out / "responses.jsonl")
    assert [(r["key"], r["prompt"]) for r in responses] == [(100 + i, p[0]) for i, p in enumerate(PROMPTS)]
    assert any(r["response"] for r in responses)


def test_greedy_is_repeatable_and_a_limit_takes_the_first(greedy, run, tmp_path):
    prompts, _, out = greedy
    copy = tmp_path / "run"
    shutil.copytree(run / "checkpoints", copy / "checkpoints")
    summary = evaluate_file(config(), copy, "ifeval", str(prompts), 1, 0.0)
    assert summary["rows"] == 1
    found = rows(copy / "evaluations" / "ifeval-step-1" / "responses.jsonl")
    assert found == rows(out / "responses.jsonl")[:1]


def test_temperature_samples(greedy, run, tmp_path):
    prompts, _, out = greedy
    copy = tmp_path / "run"
    shutil.copytree(run / "checkpoints", copy / "checkpoints")
    assert evaluate_file(config(), copy, "ifeval", str(prompts), None, 2.0)["rows"] == 3
    found = [r["response"] for r in rows(copy / "evaluations" / "ifeval-step-1" / "responses.jsonl")]
    assert found != [r["response"] for r in rows(out / "responses.jsonl")]
    with pytest.raises(InputError, match="--temperature=-1"):
        evaluate_file(config(), copy, "ifeval", str(prompts), None, -1.0)


def test_without_a_checkpoint_the_configs_own_model_answers(greedy, tmp_path):
    prompts, _, _ = greedy
    summary = evaluate_file(config(), tmp_path / "new", "ifeval", str(prompts), None, 0.0)
    assert summary["step"] == 0 and (tmp_path / "new" / "evaluations" / "ifeval-step-0" / "verdicts.jsonl").exists()
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_a_prompt_that_does_not_fit_is_named_before_anything_is_sampled(tmp_path):
    long = ("write about the river . " * 40, ["punctuation:no_comma"], [{}])
    prompts = write_prompts(tmp_path / "prompts.jsonl", [*PROMPTS, long])
    with pytest.raises(InputError, match=rf"{prompts}:4: the prompt takes \d+ tokens and config.data.max_prompt is 96"):
        evaluate_file(config(), tmp_path / "run", "ifeval", str(prompts), None, 0.0)
    assert not (tmp_path / "run").exists()


def test_evaluation_changes_no_checkpoint(greedy, run):
    with Checkpoints(run / "checkpoints", keep=2) as saved:
        assert saved.latest() == 1
