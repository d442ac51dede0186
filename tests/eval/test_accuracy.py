"""The control on real checks: who is checked against what, in training and on held-out instructions, and what is logged."""

import json

import numpy as np
import pytest
from small_runs import rows, small_config

from hir_jax.checks import registry
from hir_jax.checks.device.conditions import encode
from hir_jax.checks.judge.soft import SOFT
from hir_jax.checks.verifier import Row, Verifier
from hir_jax.data import dataset
from hir_jax.data.generate.tiny import witness
from hir_jax.data.templates import render
from hir_jax.engine import Engine
from hir_jax.eval.accuracy import accuracies, constraint_codes, control_of_step, shuffled
from hir_jax.hir import following
from hir_jax.rollouts import Clock, roll_out
from hir_jax.train import train
from hir_jax.types import Constraint, Instruction

FIGURES = ("ila_shuffled", "cla_shuffled", "following", "distinct", "overlap")


def instructions(count, low=1, high=3):
    drawn = witness.generate(0, count, min_constraints=low, max_constraints=high, split="heldout",
                             templates=("type1",))  # fmt: skip
    return [q for q, _ in drawn]


class Recorder(Verifier):
    """A verifier that keeps the rows it is asked about."""

    def verify(self, rows, width, **how):
        self.rows = getattr(self, "rows", []) + list(rows)
        return super().verify(rows, width, **how)


def with_soft(instruction):
    """The same with a soft constraint in front, which the control does not ask about."""
    return Instruction(
        instruction.task, (Constraint(SOFT, {}, "Be calm."), *instruction.constraints), instruction.template
    )


def test_codes_are_equal_for_equal_id_and_arguments_alone():
    def of(*constraints):
        return Instruction("x", tuple(Constraint(id, arguments) for id, arguments in constraints))

    comma, words = ("punctuation:no_comma", {}), "length_constraints:number_words"
    codes = constraint_codes(
        [of(comma, (words, {"num_words": 3, "relation": "at least"})), of((SOFT, {})),
         of((words, {"relation": "at least", "num_words": 3}), (words, {"num_words": 4, "relation": "at least"}), comma)],
        3,
    )  # fmt: skip
    assert codes.tolist() == [[0, 1, -1], [-1, -1, -1], [1, 2, 0]]


def test_one_text_for_all_held_out_instructions_follows_exactly_nothing():
    asked = instructions(64)
    text = 'the river , " the house " is old .\n* a small forest\n* a bird'
    with Verifier(0, 5.0) as verifier:
        found = accuracies(verifier, asked, [text] * 64, control=True)
    assert found["following"] == 0.0 and found["ila_shuffled"] > 0 and found["distinct"] == 1 / 64
    assert 0 < found["overlap"] < 1 and set(found) == {"ila", "cla", *FIGURES}


def test_a_text_that_follows_is_told_from_one_that_does_not():
    drawn = witness.generate(0, 64, min_constraints=3, max_constraints=3, split="heldout",
                             templates=("type1",))  # fmt: skip
    asked, answers = zip(*drawn, strict=True)
    with Verifier(0, 5.0) as verifier:
        own = accuracies(verifier, asked, answers, control=True)
        other = accuracies(verifier, asked, answers[1:] + answers[:1], control=True)
        plain = accuracies(verifier, asked, answers, control=False)
    assert own["ila"] == 1 and own["following"] == pytest.approx(1 - own["ila_shuffled"]) and own["following"] > 0.5
    assert abs(other["following"]) < 0.1
    assert plain == {name: own[name] for name in ("ila", "cla", "distinct")}


def test_responses_to_a_prompt_are_checked_against_another_ones_constraints_for_all_its_samples():
    """Each row that the verifier is asked about, against the plan; a soft constraint is not asked about, and does not count."""
    plain = instructions(12)
    asked, samples = [with_soft(q) if n % 3 == 0 else q for n, q in enumerate(plain)], 2
    texts = [f"response {n}" for n in range(24)]
    width = max(len(q.constraints) for q in asked)
    with Recorder(0, 5.0) as verifier:
        own_rows = [Row(q.constraints[-1:], texts[0], "", "") for q in asked for _ in range(samples)]
        own = verifier.verify(own_rows, width)
        verifier.rows = []
        found = shuffled(verifier, asked, texts, own)
    seen = {}
    for row in verifier.rows:
        prompt = int(row.response.split()[1]) // samples
        other = next(q for q in asked if render(q) == row.prompt)
        hard = [c for c in other.constraints if not registry.decider(c.id)]
        assert list(row.constraints) == hard and len(plain[prompt].constraints) == len(hard) > 0
        assert render(asked[prompt]) != row.prompt
        seen.setdefault(prompt, []).append((row.response, row.prompt))
    for prompt, pairs in seen.items():
        of_samples = [{p for y, p in pairs if y == f"response {prompt * samples + s}"} for s in range(samples)]
        size = sum(len(q.constraints) == len(plain[prompt].constraints) for q in plain)
        assert of_samples[0] == of_samples[1] and len(of_samples[0]) == min(size - 1, 8)
    for r, n in zip(*np.nonzero(found.other >= 0), strict=True):
        other = asked[found.other[r, n]]
        for c, constraint in enumerate(other.constraints):
            for b in (2 * n, 2 * n + 1):
                asks = not registry.decider(constraint.id)
                assert found.others.present[r, b, c] == found.others.known[r, b, c] == asks
                assert found.others.satisfied[r, b, c] == (asks and registry.check(constraint, texts[b], render(other)))


@pytest.mark.parametrize("device", [False, True])
def test_the_control_of_a_step_equals_a_loop_over_texts_and_checks(device, monkeypatch):
    """Verdict by verdict too: the means alone are the same for whatever partners where all responses are worth the same."""
    seen, figures = [], following.figures
    monkeypatch.setattr(following, "figures", lambda own, others: seen.append(others) or figures(own, others))
    few = {"data__min_constraints": 1, "data__max_constraints": 2, "rollout__max_response": 6}
    few["data__constraint_ids"] = ("tiny:no_postscript", "keywords:forbidden_words", "length_constraints:number_words")
    engine = Engine(small_config(replay__fill="mask", **few))
    data = dataset.load(engine.config, engine.backbone.frame, engine.backbone.stop_ids[0], frozenset())
    asked = data.rows[:8]
    prompts, conditions = engine.prompts(asked, data.shapes), None
    if device:
        conditions = encode([row.instruction.constraints for row in asked], data.shapes.constraints)
    with Verifier(0, 5.0) as verifier:
        given = engine.load_params(), asked, prompts, 3, Clock(), conditions
        rollout, verdicts, _ = roll_out(engine, verifier, *given)
        assert not rollout.filled.all()  # each prompt has a slot without a sample
        found = control_of_step(engine, verifier, asked, rollout, verdicts, 3, conditions).figures()
    texts, samples = engine.backbone.texts(rollout), len(rollout.filled) // 8
    counts = np.array([len(row.instruction.constraints) for row in asked])
    other = following.shuffles(counts, (engine.config.seed, 3), 1)[0]

    def meets(b, owner):
        return [registry.check(c, texts[b], render(owner.instruction)) for c in owner.instruction.constraints]

    pairs = [(b, other[b // samples]) for b in np.flatnonzero(rollout.filled) if other[b // samples] >= 0]
    own, theirs = ([meets(b, asked[j]) for b, j in side] for side in ([(b, b // samples) for b, _ in pairs], pairs))
    expected = {
        "ila_shuffled": np.mean([all(met) for met in theirs]),
        "cla_shuffled": np.mean([np.mean(met) for met in theirs]),
        "following": np.mean([all(met) for met in own]) - np.mean([all(met) for met in theirs]),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    (others,) = seen
    for (b, j), met in zip(pairs, theirs, strict=True):
        size = len(asked[j].instruction.constraints)
        assert others.satisfied[0, b, :size].tolist() == met and others.known[0, b, :size].all()
        assert others.present[0, b].sum() == size
    assert 0 < expected["ila_shuffled"] < 1 and expected["cla_shuffled"] > expected["ila_shuffled"]


def test_a_run_logs_the_control_and_its_key_turns_it_off(tmp_path):
    """Between stop and resume too, for what is learnt does not depend on it; nor on the temperature of held-out responses."""
    changes = {"data__eval_size": 24, "data__min_constraints": 1, "data__max_constraints": 2, "eval_every": 1}
    train(small_config(total_steps=1, **changes), tmp_path)
    train(small_config(total_steps=2, constraints__control=False, eval_temperature=1.0, **changes), tmp_path)
    first, with_control, without = rows(tmp_path / "metrics.jsonl")
    assert {f"heldout_{name}" for name in FIGURES} <= first.keys() and first["step"] == 0
    assert {*FIGURES, *(f"heldout_{name}" for name in FIGURES)} <= with_control.keys()
    assert "seconds/control" in with_control and 0 < with_control["distinct"] <= 1
    kept = {name for name in without if any(figure in name for figure in FIGURES)}
    assert kept == {"distinct", "heldout_distinct"} and "seconds/control" not in without
    # a random model's greedy response is the same for some prompts, and none of its sampled ones is
    assert with_control["heldout_distinct"] < 1 == without["heldout_distinct"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    shown = json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert {"following", "ila_shuffled", "distinct", "heldout_following"} <= shown["curves"].keys()
