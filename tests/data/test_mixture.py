"""Mixtures of sources: their entries, their shares of steps and of held-out rows, their limits."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import small_config

from hir_jax import config as configs
from hir_jax.data import dataset, native
from hir_jax.data.generate.tiny import witness
from hir_jax.data.mixture import Part, parts_of, shares
from hir_jax.engine import Engine
from hir_jax.types import MIXTURE, InputError


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ((), r"set config.data.mixture = \(\(source, path, weight\), ...\)"),
        (("jsonl",), r"mixture\[0\] = 'jsonl': give \(source, path, weight\) or"),
        ((("jsonl", "a.jsonl"),), r"mixture\[0\] = \('jsonl', 'a.jsonl'\): give \(source, path, weight\) or"),
        (
            (("generated", "", 1), ("tfds", "a", 1)),
            r"mixture\[1\] = .*: the source must be one of jsonl, hir16k, if_rlvr, gen",
        ),
        ((("jsonl", "", 1),), "give the path of its file"),
        ((("generated", "rows", 1),), "its rows are generated, so give no path"),
        ((("generated", "", 0),), "the weight must be a number above 0"),
        ((("generated", "", float("nan")),), "the weight must be a number above 0"),
        ((("generated", "", True),), "the weight must be a number above 0"),
        ((("generated", "", 1, -2),), "the number of rows must be an integer"),
        ((("jsonl", "a/rows.jsonl", 1), ("jsonl", "b/rows.jsonl", 1)), "two entries are called 'jsonl:rows'"),
    ],
)
def test_a_wrong_entry_is_named(mixture, message):
    with pytest.raises(InputError, match=message):
        parts_of(mixture)
    with pytest.raises(configs.ConfigError, match=message):
        configs.check(small_config(data__source="mixture", data__mixture=mixture))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "jsonl", "path": "a"}, "config.data.mixture is set, but config.data.source is 'jsonl'"),
        ({"path": "a"}, "config.data.path and eval_path do not go with config.data.source 'mixture'"),
    ],
)
def test_keys_that_do_not_go_with_a_mixture(changes, message):
    config = small_config(data__source="mixture", data__mixture=(("witness", "", 1),))
    config.data.update(changes)
    with pytest.raises(configs.ConfigError, match=message):
        configs.check(config)


def test_names_are_short_and_differ():
    found = parts_of([["jsonl", "x/a.jsonl", 1], ["jsonl", "x/b.jsonl", 2, 7], ["generated", "", 3]])
    assert found[1] == Part("jsonl", "x/b.jsonl", 2.0, 7, "jsonl:b")
    assert [part.name for part in found] == ["jsonl:a", "jsonl:b", "generated"]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 500))
def test_shares_add_up_and_are_rounded(weights, total):
    found = shares([Part("generated", "", weight) for weight in weights], total)
    assert sum(found) == total
    assert all(abs(share - total * w / sum(weights)) <= 1 + 1e-9 for share, w in zip(found, weights, strict=True))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """(path, config, Dataset) of 24 generated rows and the first 10 of 16 in a file, three to one; 4 of the file are held out."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    how = {"min_constraints": 2, "max_constraints": 3, "templates": ("type1",)}
    native.write(path, [q for q, _ in witness.generate(5, 16, split="train", **how)])
    mixture = (("witness", "", 3), ("jsonl", str(path), 1, 10))
    config = small_config(data__source="mixture", data__mixture=mixture, data__hold_out=4, data__eval_size=8)
    configs.check(config)
    engine = Engine(config)
    return path, config, dataset.load(config, engine.backbone.frame, engine.backbone.end_id)


def names(rows):
    return Counter(row.instruction.labels[MIXTURE] for row in rows)


def test_limits_and_held_out_rows(loaded):
    path, config, data = loaded
    assert names(data.rows) == {"witness": 24, "jsonl": 10}
    assert names(data.heldout) == {"witness": 6, "jsonl": 2}
    mine = [row.instruction for row in data.rows if row.instruction.labels[MIXTURE] == "jsonl"]
    held = [row.instruction.source for row in data.heldout if row.instruction.labels[MIXTURE] == "jsonl"]
    assert all(q.source.startswith(f"{path}:") for q in mine) and not {q.source for q in mine} & set(held)
    assert [q.source for q in dataset.heldout(config)] == [row.instruction.source for row in data.heldout]


def test_steps_hold_each_source_by_its_weight_and_each_row_once_an_epoch(loaded):
    _, config, data = loaded
    batch = config.data.batch_prompts
    drawn = [i for step in range(200) for i in data.indices(step)]
    count = names(data.rows[i] for i in drawn)
    assert count["witness"] / count["jsonl"] == pytest.approx(3, rel=0.02)
    for name, size in (("witness", 24), ("jsonl", 10)):
        own = [i for i in drawn if data.rows[i].instruction.labels[MIXTURE] == name]
        epochs = [own[start : start + size] for start in range(0, len(own) - size + 1, size)]
        assert all(len(set(epoch)) == size for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 1
    again = [data.indices(step).tolist() for step in (7, 3, 199)]  # a function of the step
    assert again == [drawn[step * batch : (step + 1) * batch] for step in (7, 3, 199)]


def test_a_source_without_rows_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    native.write(path, [q for q, _ in witness.generate(5, 2, split="train", min_constraints=9, max_constraints=9)])
    mixture = (("witness", "", 3), ("jsonl", str(path), 1))
    engine = Engine(config := small_config(data__source="mixture", data__mixture=mixture, data__max_prompt=40))
    with pytest.raises(InputError, match="no training row is left of jsonl"):
        dataset.load(config, engine.backbone.frame, engine.backbone.end_id)


def test_a_config_with_a_mixture_equals_itself_read_back(tmp_path):
    config = small_config(data__source="mixture", data__mixture=(("witness", "", 3, 5), ("generated", "", 0.5)))
    (tmp_path / "config.json").write_text(configs.to_json(config))
    again = configs.of_run(tmp_path)
    configs.check(again)
    assert configs.flatten(again) == configs.flatten(config)
    assert parts_of(again.data.mixture) == parts_of(config.data.mixture)
