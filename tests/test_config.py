"""Config: every key declared, values checked before anything is loaded, what may change on resume."""

import json
import math
import re
import runpy
from pathlib import Path

import pytest
import wrong_results
from hypothesis import given, settings
from hypothesis import strategies as st

from hir_jax import config as configs
from hir_jax import config_ranges
from hir_jax.parallel import mesh as meshes
from hir_jax.types import InputError

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))
FLAT = configs.flatten(configs.defaults())
KEYS = sorted(FLAT)


def is_free(key):
    return any(key == free or key.startswith(free + ".") for free in configs.FREE_ON_RESUME)


@pytest.mark.parametrize("path", FILES, ids=[p.name for p in FILES])
def test_files_in_configs_pass_the_check_and_explain_themselves(path):
    found = runpy.run_path(str(path))
    configs.check(found["get_config"]())
    assert "python -m hir_jax" in found["__doc__"]


@pytest.mark.parametrize("name", ["llama32_3b", "qwen25_7b", "qwen3_4b"])
def test_configs_of_the_papers_backbones_follow_the_released_code(name):
    """pi_old is the trainer's, uncorrected, and something is evaluated, before training too (`test_train` has step 0)."""
    path = ROOT / "configs" / f"{name}_hir.py"
    config = configs.load_file(str(path))
    assert config.rollout.old_logp == "trainer" and config.learner.importance_cap == 0
    assert config.eval_every == 10 and config.data.hold_out > 0 and config.data.eval_size > 0
    text = path.read_text(encoding="utf-8")
    assert ("settings of the released run for Qwen3-4B" in text) == (name != "qwen3_4b") and "float32" not in text


TINY = "configs/tiny_hir.py"


# What the tiny environment asks for whatever the recipe, and what was tuned: see the file
TINY_OWN = ("replay.fill", *(f"learner.{name}" for name in (
    "learning_rate", "kl", "micro_batch_tokens", "mini_batches", "pack_columns",
)))  # fmt: skip


def test_the_tiny_recipe_is_the_papers():
    found = configs.flatten(configs.load_file(TINY))
    fixed = {
        key: value for key, value in FLAT.items() if key.startswith(("replay.", "learner.")) and key not in TINY_OWN
    }
    assert found["method"] == "hir" and found.items() >= fixed.items()


@pytest.mark.parametrize("variant", ["papr", "easy,hard", ""])
def test_variants_that_cannot_be_are_named(variant):
    with pytest.raises(
        InputError, match=f"{TINY}:{variant}: no such variant; known: sft, hard_sft, demo_sft, easy, medium, hard, demo"
    ):
        runpy.run_path(str(ROOT / TINY))["get_config"](variant)


def test_every_key_is_documented_where_it_is_declared():
    text = (ROOT / "hir_jax" / "config.py").read_text(encoding="utf-8")
    settings = (ROOT / "hir_jax" / "checks" / "judge" / "soft.py").read_text(encoding="utf-8")
    for key in KEYS:
        name = key.split(".")[-1]
        declared = re.findall(rf"^    [a-z.]+\.{name} = (.*)$", text, re.MULTILINE)
        if key.startswith("constraints.judge."):
            declared = re.findall(rf"^    {name}: [a-z]+ = (.*)$", settings, re.MULTILINE)
        declared = [line for line in declared if "ConfigDict" not in line]
        assert declared and all("  # " in line for line in declared), f"{key} has no comment"


def test_free_keys_exist():
    groups = {key.split(".")[0] for key in KEYS if "." in key}
    assert [key for key in configs.FREE_ON_RESUME if key not in FLAT and key not in groups] == []


def test_mesh_keys_are_those_of_the_mesh():
    assert tuple(configs.defaults().mesh) == meshes.AXES


def test_flatten_equals_itself_read_back_from_json():
    config = configs.defaults()
    config.data.prompt_buckets = (64, 128)
    assert json.loads(configs.to_json(config)) == configs.flatten(config)
    assert FLAT["mesh.fsdp"] == 1 and FLAT["data.templates"][0] == "type1"


@given(st.sets(st.sampled_from(KEYS)))
def test_changed_keys_are_the_changed_ones_that_are_not_free(changed):
    new = FLAT | {key: "changed" for key in changed}
    expected = {key for key in changed if not is_free(key)}
    if "learner.schedule" in changed and "total_steps" in changed:
        expected.add("total_steps")  # the schedule was or is one that ends at total_steps
    assert configs.changed_keys(FLAT, new) == configs.changed_keys(new, FLAT) == sorted(expected)
    assert configs.changed_keys(new, new) == []


@pytest.mark.parametrize(
    ("key", "schedule", "expected"),
    [
        ("learner.schedule", "constant", []),
        ("learner.schedule", "cosine", ["total_steps"]),
        ("replay.schedule", "linear", []),
        ("replay.schedule", "cosine", ["total_steps"]),
    ],
)
def test_total_steps_is_free_only_without_a_schedule_that_ends(key, schedule, expected):
    old = FLAT | {key: schedule}
    assert configs.changed_keys(old, old | {"total_steps": 999}) == expected


def test_keys_that_came_or_went_count_as_changed():
    assert configs.changed_keys(FLAT, FLAT | {"replay.new": 1}) == ["replay.new"]
    assert configs.changed_keys(FLAT | {"replay.old": 1}, FLAT) == ["replay.old"]


def test_a_key_newer_than_the_run_was_at_its_default():
    older = {key: value for key, value in FLAT.items() if not key.startswith("lora.")}
    assert configs.changed_keys(older, FLAT) == configs.changed_keys(FLAT, older) == []
    assert configs.changed_keys(older, FLAT | {"lora.rank": 4}) == ["lora.rank"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("method", "ppo", "one of hir, ilr, clr, hir_clr, sft, rft, dpo"),
        ("data.source", "csv", "one of generated, witness, jsonl"),
        ("data.source", "jsonl", "set config.data.path"),
        ("logging.profile_steps", (12, 10), "give the first and the last step"),
        ("logging.profile_steps", (3,), "give the first and the last step"),
        ("learner.baseline", "originals", "std_floor above 0"),
        ("total_steps", 0, "positive"),
        ("rollout.temperature", 0.0, "positive"),
        ("rollout.top_p", 0.0, r"\(0, 1\]"),
        ("replay.k", -1, "must not be negative"),
        ("learner.kl", -0.1, "must not be negative"),
        ("learner.mini_batches", 7, "512 sequences a step do not split"),
        ("data.prompt_buckets", (4096,), "at most config.data.max_prompt = 2048"),
        ("rollout.response_buckets", (0,), "positive"),
        ("lora.rank", -1, "must not be negative"),
        ("lora.alpha", 0.0, "positive"),
        ("lora.base_dtype", "int8", "one of float32, bfloat16"),
        ("lora.targets", ("q", "k_proj"), "has no 'k_proj', only q, k, v, o, gate, up, down; did you mean 'k'"),
        ("lora.targets", ("gates",), "did you mean 'gate'"),
        ("lora.targets", ("q", "v", "q"), "each once"),
        ("lora.targets", (), "give one or more of q, k, v, o, gate, up, down"),
        ("lora.targets", (1,), "holds 1; give a tuple of str"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(key, value, words):
    config = configs.defaults()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(configs.ConfigError, match=words) as caught:
        configs.check(config)
    assert key in str(caught.value)


NUMBERS = {key: value for key, value in FLAT.items() if type(value) in (int, float)}
BUCKETS = ("data.prompt_buckets", "rollout.response_buckets")


def ends(interval):
    """The parts of "-1 or [1, inf)": (low, high, whether low belongs to it, whether high does)."""
    for part in interval.split(" or "):
        bare = part.strip("[]()")
        low, high = (float(x) for x in (bare.split(",") if "," in bare else (bare, bare)))
        yield low, high, part[0] != "(", part[-1] != ")"


def outside(interval):
    def is_out(x):
        return not any(low < x < high or (x == low and a) or (x == high and b) for low, high, a, b in ends(interval))

    at_the_ends = [x for low, high, *_ in ends(interval) for x in (low, high, low - 1, high + 1, low - 1e-3)]
    return st.one_of(st.sampled_from([*at_the_ends, math.nan, math.inf, -math.inf]), st.floats()).filter(is_out)


def test_every_numeric_key_has_one_range_that_holds_its_default():
    listed = [key for keys in config_ranges.RANGES.values() for key in keys]
    assert sorted(listed) == sorted([*NUMBERS, *BUCKETS])
    assert list(config_ranges.faults(FLAT)) == []


@given(st.data(), st.sampled_from(sorted([*NUMBERS, *BUCKETS])))
@settings(max_examples=300)
def test_numbers_outside_of_their_range_are_refused_by_name(data, key):
    interval = next(interval for interval, keys in config_ranges.RANGES.items() if key in keys)
    value = data.draw(outside(interval))
    if key in BUCKETS or isinstance(NUMBERS[key], int):
        value = int(value) if math.isfinite(value) and value == int(value) else None
    if value is None:
        return
    config = configs.defaults()
    config.update_from_flattened_dict({key: (value,) if key in BUCKETS else value})
    with pytest.raises(configs.ConfigError, match=f"^config.{key} is ") as caught:
        configs.check(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("learner.learning_rate", math.nan, "finite"),
        ("learner.learning_rate", 1e39, "finite in float32"),
        ("learner.beta1", 1.0, r"in \[0, 1\)"),
        ("learner.beta2", 1 - 1e-9, r"which is 1.0 in float32; it must be in \[0, 1\)"),
        ("rollout.temperature", 1e-50, "which is 0.0 in float32; it must be positive"),
        ("learner.max_grad_norm", -1.0, "must not be negative"),
        ("data.label_noise", 1.5, r"in \[0, 1\]"),
        ("seed", -1, r"in \[0, 4294967295\]"),
        ("rollout.top_k", -1, "must not be negative"),
        ("learner.dual_clip", 1.0, r"in \(1, inf\)"),
        ("mesh.fsdp", 0, "be -1 or positive"),
        ("constraints.judge.threshold", 1.0, r"in \[0, 1\)"),
    ],
)
def test_ranges_worked_by_hand(key, value, words):
    config = configs.defaults()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(configs.ConfigError, match=f"^config.{key} is .*{words}"):
        configs.check(config)


def test_recorded_overrides_are_refused_or_taken():
    for row in wrong_results.cases("9 ranges"):
        key, value = row["override"].split("=")
        config = configs.defaults()
        config.update_from_flattened_dict({key: type(FLAT[key])(value)})
        if row["right"].startswith("refused"):
            with pytest.raises(configs.ConfigError, match=f"^config.{key} is {FLAT[key].__class__(value)}; it must"):
                configs.check(config)
        else:
            configs.check(config)


def test_an_unknown_key_in_a_config_file_names_the_nearest():
    config = configs.defaults()
    with config.unlocked():
        config.rollout.temprature = 1.0
    with pytest.raises(configs.ConfigError, match=r"'rollout.temprature'; did you mean 'rollout.temperature'\?"):
        configs.check(config)


def test_sequences_a_step():
    config = configs.defaults()
    assert configs.sequences(config) == 64 * (6 + 2)
    config.method = "sft"
    assert configs.sequences(config) == 64


def test_weights_and_biases_without_its_package_is_refused_first(monkeypatch):
    config = configs.defaults()
    config.logging.wandb = "hir"
    monkeypatch.setattr(configs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(configs.ConfigError, match="pip install wandb"):
        configs.check(config)
