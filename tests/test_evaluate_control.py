"""evaluate's controls against plain loops over the responses that it wrote."""

import json
from collections import defaultdict

import numpy as np
import pytest
from small_runs import rows, small_config

from hir_jax.checks import registry
from hir_jax.data import dataset
from hir_jax.data.templates import render
from hir_jax.eval.answering import TASK, Request, evaluate_run
from hir_jax.hir import following
from hir_jax.train import train
from hir_jax.types import InputError

SAMPLES = 3


def config(**changes):
    sizes = {"data__eval_size": 12, "data__min_constraints": 1, "data__max_constraints": 3}
    return small_config(**{"method": "ilr", "total_steps": 1, "save_model": False} | sizes | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a checkpoint of step 1."""
    workdir = tmp_path_factory.mktemp("evaluate") / "run"
    train(config(), workdir)
    return workdir


def by_prompt(out, name):
    """Prompt -> its texts, in order."""
    found = defaultdict(list)
    for row in rows(out / f"{name}.jsonl"):
        found[row["prompt"]].append(row["response"])
    return found


def meets(instruction, text):
    return all(registry.check(c, text) for c in instruction.constraints)


def test_the_shuffled_control_is_that_of_a_loop(run):
    summary, out = evaluate_run(config(), run, Request("heldout", temperature=1.0, samples=SAMPLES))
    instructions, texts = dataset.heldout(config()), by_prompt(out, "responses")
    counts = np.array([len(q.constraints) for q in instructions])
    other = following.shuffles(counts, (0,), following.EVALUATION_SHIFTS)
    written = {row["prompt"]: row for row in rows(out / "prompts.jsonl")}
    gaps = []
    asked, not_asked = defaultdict(list), defaultdict(list)
    for n, q in enumerate(instructions):
        partners = [instructions[j] for j in other[:, n] if j >= 0]
        assert all(len(p.constraints) == len(q.constraints) and p != q for p in partners)
        own = texts[render(q)]
        if partners:
            gaps.append(np.mean([meets(q, y) - meets(p, y) for p in partners for y in own]))
            assert written[render(q)]["following"] == pytest.approx(gaps[-1])
            assert written[render(q)]["ila_shuffled"] == pytest.approx(
                np.mean([meets(p, y) for p in partners for y in own])
            )
        else:
            assert "following" not in written[render(q)]
        for c in q.constraints:  # the same constraint on the responses of prompts without its type, where there are any
            rows_of = [instructions[m] for m in range(len(instructions)) if n in other[:, m]]
            foreign = [p for p in rows_of if c.id not in {d.id for d in p.constraints}]
            if foreign:
                asked[c.id].append(np.mean([registry.check(c, y) for y in own]))
                not_asked[c.id].append(np.mean([registry.check(c, y) for p in foreign for y in texts[render(p)]]))
    assert summary["intervals"]["following"].mean == pytest.approx(np.mean(gaps))
    assert summary["by_type"].keys() == asked.keys()
    for id, found in summary["by_type"].items():
        assert found["asked"] == pytest.approx(np.mean(asked[id])) and found["prompts"] == len(asked[id])
        assert found["not_asked"] == pytest.approx(np.mean(not_asked[id]))
        assert found["gap"].mean == pytest.approx(found["asked"] - found["not_asked"])
    every = [y for some in texts.values() for y in some]
    assert summary["intervals"]["distinct"].mean == pytest.approx(len(set(every)) / len(every))
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))


def test_the_task_control_answers_the_task_without_its_constraints(run):
    request = Request("heldout", temperature=1.0, samples=SAMPLES, control=TASK)
    summary, out = evaluate_run(config(), run, request)
    assert out.name == f"heldout-step-1-t1-n{SAMPLES}-task"
    given = rows(out / "task_responses.jsonl")
    gaps = []
    for n, q in enumerate(dataset.heldout(config())):
        own = by_prompt(out, "responses")[render(q)]
        alone = given[n * SAMPLES : (n + 1) * SAMPLES]
        assert {row["prompt"] for row in alone} == {q.task}
        gaps.append(np.mean([meets(q, y) for y in own]) - np.mean([meets(q, row["response"]) for row in alone]))
    assert summary["intervals"]["following_task"].mean == pytest.approx(np.mean(gaps))
    assert "following" not in summary["intervals"] and summary["intervals"]["ila_task"].mean >= 0


def test_prompts_whose_constraints_cannot_be_taken_away_are_refused(run, tmp_path):
    prompt = {"key": 1, "prompt": "Use no commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(prompt) + "\n")
    with pytest.raises(InputError, match=rf"--control=task: {path}:1: the prompt's own wording holds its constraints"):
        evaluate_run(config(), run, Request("ifeval", str(path), control=TASK))
