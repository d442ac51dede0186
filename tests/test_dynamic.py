"""Dynamic sampling in whole steps: which groups are trained on, what is counted, resuming, layouts; the overlong punishment."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import rows, small_config, trajectory

from experiments.run import curves
from hir_jax import config as configs
from hir_jax import rollouts
from hir_jax import train as training
from hir_jax.checks.verifier import Verifier
from hir_jax.data import dataset
from hir_jax.engine import Engine
from hir_jax.rollouts import Clock, roll_out, roll_out_dynamic
from hir_jax.run import report_data
from hir_jax.run.checkpoints import Checkpoints
from hir_jax.step import policy_batch, sample_rewards
from hir_jax.train import Run, train
from hir_jax.types import Replays, Rollout, Verdicts

# Two of three samples' CLA often differ, but not in every group
DYNAMIC = {
    "method": "clr", "rollout__dynamic_rounds": 2, "total_steps": 3, "learner__kl": 0.0, "learner__estimator": "grpo",
    "data__min_constraints": 1, "data__max_constraints": 2, "save_model": True,
}  # fmt: skip


# ---- which groups, with hand-made verdicts ---------------------------------------------------------------------------


def hand_made(met, known=None):
    """Rollout and verdicts of one constraint a row. met: [N][S]; row b's only token is b."""
    met = np.array(met, bool).reshape(-1, 1)
    known = np.ones_like(met) if known is None else np.array(known, bool).reshape(-1, 1)
    b = len(met)
    tokens, zeros, flags = np.arange(b, dtype=np.int32)[:, None], np.zeros((b, 1), np.float32), np.ones(b, bool)
    return Rollout(tokens, flags[:, None], zeros, zeros, flags, flags), Verdicts(met & known, known, np.ones_like(met))


def dynamic(monkeypatch, found, batches, engine):
    """`roll_out_dynamic` where the r-th batch's samples are `found[r]`; and the noise ids and rows of every batch."""
    asked, made = [], iter(found)

    def pretend(engine, verifier, params, rows, prompts, ids, step, clock, conditions):
        asked.append((ids, rows, prompts, conditions))
        return next(made)

    monkeypatch.setattr(rollouts, "sample_and_verify", pretend)
    given = lambda indices: ([f"row {i}" for i in indices], f"prompts {indices[0]}", f"conditions {indices[0]}")  # noqa: E731
    fake = SimpleNamespace(settings=engine.settings, for_sampling=lambda params: params)
    return roll_out_dynamic(fake, None, {}, batches, given, 0, Clock()), asked


def test_places_worked_by_hand(monkeypatch):
    """Four prompts of three samples. Groups 0 (all fail), 2 (all meet) and 3 (one usable success) are marked; of the first
    further batch group 2 differs and goes to place 0; of the second groups 0, 1 and 3 do: 0 and 1 go to places 2 and 3."""
    engine = Engine(small_config(method="ilr", rollout__dynamic_rounds=3))
    first = hand_made([[0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]], [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 0]])
    second = hand_made([[0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 0]])
    third = hand_made([[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
    batches = [np.arange(4), np.arange(4) + 10, np.arange(4) + 20, np.arange(4) + 30]
    found, asked = dynamic(monkeypatch, [first, second, third], batches, engine)
    assert found.indices.tolist() == [12, 1, 20, 21]
    assert found.verdicts.satisfied[:, 0].reshape(4, 3).tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert found.rollout.tokens[:, 0].reshape(4, 3).tolist() == [[6, 7, 8], [3, 4, 5], [0, 1, 2], [3, 4, 5]]
    assert [prompts for prompts, _ in found.drawn] == ["prompts 0", "prompts 10", "prompts 20"]
    ids = np.concatenate([each[0] for each in asked])
    assert len(np.unique(ids)) == 36 and ids[:4].tolist() == np.arange(12).reshape(4, 3).tolist()
    assert [each[1:] for each in asked] == [
        ([f"row {i}" for i in batch], f"prompts {batch[0]}", f"conditions {batch[0]}") for batch in batches[:3]
    ]


@pytest.mark.parametrize("seed", range(12))
def test_places_equal_a_loop(seed, monkeypatch):
    """Random verdicts, some unknown: a queue of open places, served in order by each batch's groups that differ."""
    rng, n = np.random.default_rng(seed), 5
    engine = Engine(small_config(method="ilr", rollout__dynamic_rounds=3, data__batch_prompts=n))
    made = [hand_made(rng.random((n, 3)) < 0.15, rng.random((n, 3)) < 0.9) for _ in range(4)]
    batches = list(rng.permutation(100)[: 4 * n].reshape(4, n))
    found, asked = dynamic(monkeypatch, made, batches, engine)

    def differs(group):
        """Of (satisfied, known) pairs."""
        return len({bool(met) for met, known in group if known}) == 2

    places, used, start = {}, 0, [list(zip(v.satisfied[:, 0], v.known[:, 0], strict=True)) for _, v in made]
    for r in range(4):
        still_open = [n_ for n_ in range(n) if n_ not in places or not differs(places[n_][1])]
        if r and not still_open:
            break
        used += 1
        groups = [(int(batches[r][i]), start[r][3 * i : 3 * i + 3]) for i in range(n)]
        if r == 0:
            places = dict(enumerate(groups))
            continue
        for place, group in zip(still_open, [g for g in groups if differs(g[1])], strict=False):
            places[place] = group
    assert len(asked) == used and found.indices.tolist() == [places[i][0] for i in range(n)]
    expected = [list(map(bool, pair)) for i in range(n) for pair in places[i][1]]
    assert np.stack([found.verdicts.satisfied[:, 0], found.verdicts.known[:, 0]], 1).tolist() == expected


def test_other_rows_are_new_and_a_function_of_the_seed():
    own = np.array([3, 7, 7, 11])  # a row may come twice where an epoch ends
    found = dataset.other_rows(20, own, 4, (0, 5, 1))
    assert found.shape == (4, 4) and len(np.unique(found)) == 16 and not set(found.ravel()) & set(own)
    np.testing.assert_array_equal(found, dataset.other_rows(20, own, 4, (0, 5, 1)))
    np.testing.assert_array_equal(found[:2], dataset.other_rows(20, own, 2, (0, 5, 1)))  # whatever the budget
    for seed in ((1, 5, 1), (0, 6, 1)):
        assert found.tolist() != dataset.other_rows(20, own, 4, seed).tolist()
    assert dataset.other_rows(4, own, 0, (0, 5, 1)).shape == (0, 4)


# ---- whole steps -----------------------------------------------------------------------------------------------------


def noted_run(monkeypatch, workdir, **changes):
    """A run; of each step (what was sampled, what was learnt from, the rows of the control)."""
    steps, sample, learn, control = [], rollouts.sample_and_verify, Engine.learn, training.control_of_step

    def sampled(engine, verifier, params, rows, prompts, ids, step, clock, conditions):
        found = sample(engine, verifier, params, rows, prompts, ids, step, clock, conditions)
        if len(steps) == step:
            steps.append(([], [], []))
        steps[step][0].append((rows, *found))
        return found

    def learnt(self, state, ref_params, prompts, rollout, verdicts, rounds, step):
        steps[step][1].append((prompts, rollout, verdicts))
        return learn(self, state, ref_params, prompts, rollout, verdicts, rounds, step)

    def controlled(engine, verifier, rows, rollout, verdicts, step, conditions):
        steps[step][2].append((rows, rollout, conditions))
        return control(engine, verifier, rows, rollout, verdicts, step, conditions)

    with monkeypatch.context() as patch:
        patch.setattr(rollouts, "sample_and_verify", sampled)
        patch.setattr(Engine, "learn", learnt)
        patch.setattr(training, "control_of_step", controlled)
        train(small_config(**changes), workdir)
    return steps


def test_what_is_trained_on_and_what_is_counted(tmp_path, monkeypatch):
    """A step's batch is made of groups of its samples, prompt and response of one row; metrics count the discarded ones."""
    config = small_config(**DYNAMIC)
    engine = Engine(config)
    data = dataset.load(config, engine.backbone.frame, engine.backbone.stop_ids[0], frozenset())
    steps = noted_run(monkeypatch, tmp_path / "run", **DYNAMIC)
    lines, total = rows(tmp_path / "run" / "metrics.jsonl"), 0
    replaced = 0
    for step, (drawn, [(prompts, rollout, verdicts)], [(control_rows, control_rollout, _)]) in enumerate(steps):
        line, groups = lines[step + 1], {}
        keys = [row.instruction.key for batch, *_ in drawn for row in batch]
        assert len(set(keys)) == len(keys) == 4 * len(drawn)
        own = [data.rows[i] for i in data.indices(step)]
        assert [row.instruction.key for row in drawn[0][0]] == [row.instruction.key for row in own]
        for batch, responses, met in drawn:
            for i, row in enumerate(batch):
                mine = jax.tree.map(lambda x, i=i: x[3 * i : 3 * i + 3], (responses, met))
                shares = [m[p].mean() for m, p in zip(mine[1].satisfied, mine[1].present, strict=True)]
                groups[row.instruction.key] = mine, len(set(shares)) > 1
        equal = 0
        for i, row in enumerate(control_rows):  # the batch's rows
            key, (mine, differs) = row.instruction.key, groups[row.instruction.key]
            assert prompts.tokens[i][-len(row.tokens) :].tolist() == list(row.tokens)
            found = jax.tree.map(lambda x, i=i: x[3 * i : 3 * i + 3], (rollout, verdicts))
            jax.tree.map(np.testing.assert_array_equal, found, mine)
            equal += not differs
            replaced += key != own[i].instruction.key
            assert (key != own[i].instruction.key) <= differs
        assert control_rollout is rollout
        assert line["groups_equal"] == pytest.approx(equal / 4)
        assert line["generated"] == 12 * len(drawn) and line["dynamic_rounds"] == len(drawn) - 1
        assert line["samples"] == 12 and (equal == 0 or len(drawn) == 3)
        tokens = sum(int(responses.mask.sum()) for _, responses, _ in drawn)
        assert line["tokens_per_s"] * line["seconds/step"] == pytest.approx(tokens)
        total += line["generated"]
    assert replaced > 0 and total > 12 * 3
    run = SimpleNamespace(metrics={row["step"]: row for row in lines})
    assert report_data.samples(run)[3] == total
    assert curves([*lines, {"step": 4, "samples": 12, "heldout_following": 0.5}])["samples"][-1] == total + 12


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    """Metrics, model and optimiser state bit for bit."""
    train(small_config(**DYNAMIC), tmp_path / "whole")
    for steps in (1, 3):
        train(small_config(**DYNAMIC | {"total_steps": steps}), tmp_path / "stopped")
    found = trajectory(tmp_path / "whole")
    assert trajectory(tmp_path / "stopped") == found and sum(row.get("dynamic_rounds", 0) for row in found) > 0
    states, engine = [], Engine(small_config(**DYNAMIC))
    for name in ("whole", "stopped"):
        with Checkpoints(tmp_path / name / "checkpoints", keep=2) as saved:
            states.append(jax.device_get(saved.restore(saved.latest(), engine.abstract_state)[0]))
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        assert one.tobytes() == other.tobytes()
    for name in ("kept.jsonl", "model/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_layouts_agree(tmp_path):
    """Checks on the device (never the whole step there), slots, and early verification against the host's checks."""
    ways = {
        "host": {},
        "device": {"constraints__on_device": True},
        "slots": {"rollout__slots": 5},
        "parts": {"rollout__response_buckets": (3, 8)},
    }
    seen = {}
    for name, changes in ways.items():
        train(small_config(**DYNAMIC | {"logging__tensorboard": False} | changes), tmp_path / name)
        assert "seconds/step_on_device" not in rows(tmp_path / name / "metrics.jsonl")[-1]
        seen[name] = trajectory(tmp_path / name), load_file(tmp_path / name / "model" / "model.safetensors")
    assert seen["device"][0] == seen["host"][0]
    for name, tolerance in (("device", 0), ("slots", 1e-5), ("parts", 1e-5)):
        for step, other in zip(seen["host"][0], seen[name][0], strict=True):
            how_busy = {key: other[key] for key in ("decode_busy",) if key in other}
            assert other == pytest.approx(step | how_busy, rel=1e-3, abs=1e-5)
            for key in ("generated", "dynamic_rounds", "groups_equal", "ila", "cla"):
                assert other.get(key) == step.get(key)
        for tensor, values in seen["host"][1].items():
            np.testing.assert_allclose(values, seen[name][1][tensor], rtol=0, atol=tolerance, err_msg=tensor)


def test_with_adapters_and_prompt_buckets(tmp_path):
    """Batches of several widths in a step."""
    changes = {"lora__rank": 4, "data__prompt_buckets": (28, 34), "save_model": False}
    train(small_config(**DYNAMIC | changes), tmp_path / "run")
    found = trajectory(tmp_path / "run")[1:]
    assert sum(row["dynamic_rounds"] for row in found) > 0 and found[-1]["updates_skipped"] == 0
    assert all(math.isfinite(value) for row in found for value in row.values())


def test_groups_that_stay_equal_give_no_gradient(tmp_path):
    """A random model meets all of three constraints nowhere: the budget is spent, the first samples stay, and nothing moves."""
    changes = {
        "method": "ilr", "total_steps": 1, "learner__weight_decay": 0.0, "data__min_constraints": 4,
        "data__max_constraints": 4, "rollout__max_response": 4,
    }  # fmt: skip
    train(small_config(**DYNAMIC | changes), tmp_path / "run")
    row = trajectory(tmp_path / "run")[1]
    assert row["ila"] == 0 and row["groups_equal"] == 1 and row["dynamic_rounds"] == 2 and row["generated"] == 36
    assert row["grad_norm"] == 0 and row["updates_skipped"] == 0 and row["loss"] == 0
    trained = load_file(tmp_path / "run" / "model" / "model.safetensors")
    engine = Engine(small_config(**DYNAMIC | changes))
    embed = np.asarray(engine.load_params()["embed"])
    np.testing.assert_array_equal(trained["model.embed_tokens.weight"], embed)


def test_one_batch_is_what_is_sampled_without_it():
    """Bit for bit: the same noise, tokens and verdicts as `roll_out`."""
    engine = Engine(small_config(method="clr"))
    data = dataset.load(engine.config, engine.backbone.frame, engine.backbone.stop_ids[0], frozenset())
    prompts, params = engine.prompts(data.rows[:4], data.shapes), engine.load_params()
    with Verifier(0, 5.0) as verifier:
        plain = roll_out(engine, verifier, params, data.rows[:4], prompts, 3, Clock())
        given = lambda indices: ([data.rows[i] for i in indices], prompts, None)  # noqa: E731
        found = roll_out_dynamic(engine, verifier, params, [np.arange(4)], given, 3, Clock())
    jax.tree.map(np.testing.assert_array_equal, (found.rollout, found.verdicts, 0), plain)
    assert found.indices.tolist() == [0, 1, 2, 3] and len(found.drawn) == 1


def test_what_resampling_generates_is_counted(tmp_path):
    train(small_config(save_model=False), tmp_path / "run")
    found = rows(tmp_path / "run" / "metrics.jsonl")[1:]
    assert all(row["generated"] == row["samples"] == 4 * (2 + row["resample_rounds"]) for row in found)
    assert all(0 <= row["groups_equal"] <= 1 and not {"dynamic_rounds", "overlong_penalty"} & set(row) for row in found)


# ---- the overlong punishment -----------------------------------------------------------------------------------------


def test_rewards_of_originals_and_replays_with_the_punishment():
    """One prompt, two constraints, responses of up to four tokens of which the last two are punished: samples of 4, 2 and 3
    tokens with ILA 1, 0 and 0, the last of them replayed. R_length = -1, 0, -1/2."""
    engine = Engine(
        small_config(method="hir", rollout__m=3, rollout__max_response=4, learner__overlong_tokens=2, learner__kl=0.0)
    )
    data = dataset.load(engine.config, engine.backbone.frame, engine.backbone.stop_ids[0], frozenset())
    prompts = engine.prompts(data.rows[:1], data.shapes)
    columns = data.shapes.constraints
    satisfied = np.zeros((4, columns), bool)
    satisfied[:3, :2] = [[1, 1], [0, 0], [0, 1]]
    present = np.zeros((4, columns), bool)
    present[:, :2] = True
    verdicts = Verdicts(satisfied, np.ones_like(satisfied), present)
    mask = np.arange(4) < np.array([4, 2, 3, 0])[:, None]
    zeros, filled = np.zeros((4, 4), np.float32), np.array([1, 1, 1, 0], bool)
    rollout = Rollout(np.full((4, 4), 7, np.int32), mask, zeros, zeros, np.ones(4, bool), filled)
    replays = Replays(np.array([2]), np.array([0.5]), np.array([True]))
    batch, metrics = policy_batch(None, None, prompts, rollout, verdicts, replays, settings=engine.settings)
    assert np.asarray(batch.is_replay).tolist() == [False, False, False, True]
    np.testing.assert_allclose(batch.reward, [1 - 1, 0, -0.5, 1 - 0.5])
    assert float(metrics["overlong_penalty"]) == pytest.approx((-1 + 0 - 0.5 - 0.5) / 4)
    assert np.asarray(sample_rewards(rollout, verdicts, settings=engine.settings)[0]).tolist() == [1, 0, 0, 0]


class Short(Run):
    """A run in which a quarter of all tokens end a response, so that lengths differ."""

    def __init__(self, *given):
        super().__init__(*given)
        stop_ids = tuple(range(0, len(self.engine.backbone.tokenizer), 4))
        self.engine.settings = dataclasses.replace(self.engine.settings, stop_ids=stop_ids)


def test_the_punishment_changes_the_update_alone(tmp_path):
    """In the first step: the same samples, ILA, CLA and replays, another gradient."""
    seen = {}
    for tokens in (0, 12):
        config = small_config(learner__overlong_tokens=tokens, total_steps=1, save_model=False)
        train(config, tmp_path / str(tokens), Short)
        seen[tokens] = trajectory(tmp_path / str(tokens))[1]
    assert -1 < seen[12]["overlong_penalty"] < 0
    for key in ("ila", "cla", "replays", "groups_equal", "response_tokens", "generated", "following"):
        assert seen[0][key] == seen[12][key]
    assert abs(seen[0]["grad_norm"] / seen[12]["grad_norm"] - 1) > 1e-3


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"method": "hir", "rollout__dynamic_rounds": 1},
            "dynamic_rounds = 1 .*'hir': set it to 0, or the method to ilr or clr",
        ),
        ({"method": "hir_clr", "rollout__dynamic_rounds": 1}, "rollout.dynamic_rounds"),
        ({"method": "sft", "rollout__dynamic_rounds": 1}, "rollout.dynamic_rounds"),
        ({"method": "rft", "rollout__dynamic_rounds": 1}, "rollout.dynamic_rounds"),
        ({"method": "dpo", "rollout__m": 3, "rollout__dynamic_rounds": 1}, "rollout.dynamic_rounds"),
        ({"method": "dpo", "rollout__m": 3, "learner__overlong_tokens": 1}, "overlong_tokens = 1 .*hir or ilr or clr"),
        ({"method": "rft", "learner__overlong_tokens": 1}, "learner.overlong_tokens"),
        ({"method": "sft", "learner__overlong_tokens": 1}, "learner.overlong_tokens"),
        ({"learner__overlong_tokens": 13}, "overlong_tokens = 13 must not be above config.rollout.max_response = 12"),
    ],
)
def test_methods_and_sizes_that_cannot_be_are_refused(changes, words):
    with pytest.raises(configs.ConfigError, match=words):
        configs.check(small_config(**changes))


@pytest.mark.parametrize("estimator", ["grpo", "reinforce_plus_plus", "rloo", "dr_grpo"])
def test_every_estimator_is_taken(estimator):
    for method in ("ilr", "clr"):
        how = {"rollout__dynamic_rounds": 9, "learner__overlong_tokens": 12}
        configs.check(small_config(method=method, learner__estimator=estimator, **how))


def test_too_few_rows_for_the_budget_are_refused(tmp_path):
    with pytest.raises(dataset.DataError, match=r"dynamic_rounds = 6 may draw 28 .* there are 24: make it 5 or less"):
        train(small_config(**DYNAMIC | {"rollout__dynamic_rounds": 6}), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
