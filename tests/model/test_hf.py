"""Hugging Face directories: reading, refusing and writing."""

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from model_cases import CASES, random_tensors, write_model
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

from hir_jax.data.generate.tiny import lexicon
from hir_jax.model import decoder
from hir_jax.model.config import RopeScaling
from hir_jax.model.files import hf, hf_config
from hir_jax.model.files.checkpoint import CheckpointError, open_checkpoint

CONFIG = CASES["llama_tied"]


@pytest.fixture
def directory(tmp_path):
    return write_model(tmp_path / "model", CONFIG)


def rewrite(directory: Path, change) -> None:
    """Applies `change` to the dict of tensors of model.safetensors."""
    tensors = load_file(directory / hf.WEIGHTS)
    change(tensors)
    save_file(tensors, directory / hf.WEIGHTS)


def load(directory):
    return hf.load_params(
        directory, hf_config.parse_config(hf_config.read_json(directory / "config.json"), "config.json")
    )


# ---- config


CLASSES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


@pytest.mark.parametrize("name", CASES)
def test_config_written_by_transformers_and_by_us_is_the_same(name, tmp_path):
    """Ours -> transformers -> the layout of the installed transformers (rope_parameters in 5) -> ours."""
    config = CASES[name]
    written = hf_config.config_json(config, [1, 2], 0, "float32")
    assert hf_config.parse_config(written, "here") == config
    CLASSES[config.family](**written).save_pretrained(tmp_path)
    assert hf_config.parse_config(hf_config.read_json(tmp_path / "config.json"), "here") == config
    assert hf_config.read_stop_ids(tmp_path) == (1, 2)


def test_both_layouts_of_rotary_settings():
    raw = hf_config.config_json(CONFIG, [1], None, "float32")
    llama3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    old = raw | {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **llama3}}
    new = {k: v for k, v in raw.items() if not k.startswith("rope")}
    new["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 5e5, **llama3}
    for layout in (old, new):
        parsed = hf_config.parse_config(layout, "here")
        assert (parsed.rope_theta, parsed.rope_scaling) == (5e5, RopeScaling(32.0, 1.0, 4.0, 8192))
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    assert hf_config.parse_config(new, "here").rope_scaling is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mistral"}, "'mistral'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_kv_heads"),
    ],
)
def test_unsupported_features_are_refused_by_name(change, named):
    with pytest.raises(CheckpointError, match=named) as error:
        hf_config.parse_config(hf_config.config_json(CONFIG, [1], None, "float32") | change, "dir/config.json")
    assert "dir/config.json" in str(error.value)


@pytest.mark.parametrize(
    "key", ["vocab_size", "num_hidden_layers", "rms_norm_eps", "max_position_embeddings", "rope_theta"]
)
@pytest.mark.parametrize("value", [None, "8", 0, -1, True, float("nan")])
def test_numbers_that_are_none_are_refused_by_key(key, value):
    raw = hf_config.config_json(CONFIG, [1], None, "float32") | {key: value}
    with pytest.raises(CheckpointError, match=key) as error:
        hf_config.parse_config(raw, "config.json")
    assert "\n" not in str(error.value)


def test_rope_scaling_beside_rope_parameters_is_read_as_transformers_does(tmp_path):
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    raw = hf_config.config_json(CONFIG, [1], None, "float32")
    raw |= {
        "rope_parameters": {"rope_type": "default", "rope_theta": 7e5},
        "rope_scaling": {"rope_type": "llama3"} | llama3,
    }
    raw["rope_theta"] = 3e4
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    theirs = LlamaConfig.from_pretrained(tmp_path).rope_parameters
    found = hf_config.parse_config(raw, "config.json")
    assert (theirs["rope_type"], theirs["rope_theta"]) == ("llama3", found.rope_theta)
    assert found.rope_scaling == RopeScaling(*(theirs[key] for key in llama3))
    nested = raw | {"rope_scaling": None, "rope_parameters": {"full_attention": {"rope_type": "default"}}}
    with pytest.raises(CheckpointError, match=r"layer types \(full_attention\)"):
        hf_config.parse_config(nested, "config.json")


@pytest.mark.parametrize("same", [True, False])
def test_an_output_matrix_unlike_the_embedding_is_not_tied(same, directory):
    embedding = load_file(directory / hf.WEIGHTS)["model.embed_tokens.weight"]
    rewrite(directory, lambda t: t.update({"lm_head.weight": embedding + (0.0 if same else 1.0)}))
    source = hf.SafetensorsSource(directory)
    assert hf.really_tied(CONFIG, source) == dataclasses.replace(CONFIG, tie_embeddings=same)


def test_the_begin_token_and_the_sampling_defaults_are_written_as_they_came(directory, tmp_path):
    defaults = {"bos_token_id": 5, "do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2]}
    (directory / "generation_config.json").write_text(json.dumps(defaults), encoding="utf-8")
    raw = hf_config.read_json(directory / "config.json") | {"bos_token_id": 5}
    (directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    hf.save(tmp_path / "out", CONFIG, load(directory), None, [1, 2], kept=hf_config.read_kept(directory))
    assert hf_config.read_json(tmp_path / "out" / "config.json")["bos_token_id"] == 5
    assert hf_config.read_json(tmp_path / "out" / "generation_config.json") == defaults


def test_broken_json_names_the_file_and_line(directory):
    (directory / "config.json").write_text('{\n"model_type": "llama",\n')
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON .*line 3"):
        hf_config.read_json(directory / "config.json")


def test_stop_ids_come_from_the_generation_config_first(directory):
    assert hf_config.read_stop_ids(directory) == (1,)
    (directory / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert hf_config.read_stop_ids(directory) == (5, 6)
    for file in ("config.json", "generation_config.json"):
        (directory / file).write_text("{}")
    with pytest.raises(CheckpointError, match="eos_token_id"):
        hf_config.read_stop_ids(directory)


# ---- weights


def test_missing_extra_and_misshaped_tensors_are_named_in_one_error(directory):
    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.norm.weight"] = np.zeros(5, np.float32)
        tensors["model.layers.9.mlp.up_proj.weight"] = np.zeros(5, np.float32)

    rewrite(directory, change)
    with pytest.raises(CheckpointError) as error:
        load(directory)
    message = str(error.value)
    assert "1 missing: model.layers.1.mlp.up_proj.weight" in message
    assert "1 wrongly shaped: model.norm.weight is [5], not [32]" in message
    assert "1 not known to this model: model.layers.9.mlp.up_proj.weight" in message


def test_known_extras_are_allowed(directory):
    wanted = load(directory)

    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    rewrite(directory, change)
    jax.tree.map(np.testing.assert_array_equal, load(directory), wanted)


def test_truncated_absent_and_pickled_files(directory):
    file = directory / hf.WEIGHTS
    content = file.read_bytes()
    for short in (content[:-10], content[:100], b""):
        file.write_bytes(short)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: not a whole safetensors file"):
            load(directory)
    file.rename(directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        load(directory)


def test_index_must_agree_with_the_shards(directory):
    params = load(directory)
    sharded = directory.parent / "sharded"
    hf.save(sharded, CONFIG, params, None, [1], shard_bytes=20_000)
    index = hf_config.read_json(sharded / hf.INDEX)
    index["weight_map"]["model.norm.weight"] = max(index["weight_map"].values())
    (sharded / hf.INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json: .*model\.norm\.weight"):
        load(sharded)
    next(sharded.glob("model-00002*")).unlink()
    with pytest.raises(CheckpointError, match=r"model-00002.*no such file"):
        load(sharded)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_saved_weights_are_those_loaded(dtype, shard_bytes, tmp_path):
    config = CASES["qwen3"]
    source = write_model(tmp_path / "source", config)
    params = hf.load_params(source, config, dtype)
    hf.save(tmp_path / "saved", config, params, None, [1], dtype, shard_bytes)
    assert (tmp_path / "saved" / hf.INDEX).exists() == (shard_bytes < 10**9)
    again = hf.load_params(tmp_path / "saved", config, dtype)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    if dtype == "float32" and shard_bytes == 10**9:
        written, wanted = load_file(tmp_path / "saved" / hf.WEIGHTS), random_tensors(config)
        assert written.keys() == wanted.keys()
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(written[name], tensor)


def test_nothing_is_overwritten(directory):
    with pytest.raises(CheckpointError, match="nothing is overwritten"):
        hf.save(directory, CONFIG, load(directory), None, [1])
    assert sorted(p.name for p in directory.iterdir()) == ["config.json", hf.WEIGHTS]


def test_a_full_disk_leaves_nothing_and_names_the_directory(directory, tmp_path):
    """Weights are written by a library in Rust, which raises no OSError; writes beyond 3,000 bytes of a file fail here."""
    params, out = load(directory), tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(OSError, match=f"File too large: '{out}'"):
            hf.save(out, CONFIG, params, None, [1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == [directory.name]


def test_only_slices_that_devices_hold_are_read(directory):
    """With two shards over the intermediate size, no reading covers more than half of a gate matrix."""
    shapes = []

    class Spy(hf.SafetensorsSource):
        def read(self, name, index):
            array = super().read(name, index)
            if name.endswith("gate_proj.weight"):
                shapes.append(array.shape)
            return array

    source, config = Spy(directory), dataclasses.replace(CONFIG)
    half = (slice(None), slice(None), slice(0, config.intermediate_size // 2))
    found = hf.weights._read_leaf(
        source,
        hf.HF_NAMES,
        ("layers", "gate"),
        decoder.abstract_params(config)["layers"]["gate"].shape,
        "float32",
        half,
    )
    np.testing.assert_array_equal(found, load(directory)["layers"]["gate"][half])
    assert shapes == [(config.intermediate_size // 2, config.hidden_size)] * config.num_layers


MESH_PROGRAM = """
import sys
import jax, numpy as np
from hir_jax.model import decoder
from hir_jax.model.files import hf, hf_config
jax.config.update("jax_num_cpu_devices", 8)
config = hf_config.parse_config(hf_config.read_json(hf.Path(sys.argv[1]) / "config.json"), "config.json")
mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
rules = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
is_axes = lambda axes: isinstance(axes, tuple)
spec = lambda axes: jax.sharding.NamedSharding(mesh, jax.P(*(rules.get(a) for a in axes)))
shardings = jax.tree.map(spec, decoder.param_axes(config), is_leaf=is_axes)
params = hf.load_params(sys.argv[1], config, "float32", shardings)
whole = hf.load_params(sys.argv[1], config)
jax.tree.map(np.testing.assert_array_equal, params, whole)
q = params["layers"]["q"]
assert len(q.addressable_shards) == 8 and q.addressable_shards[0].data.size * 8 == q.size
hf.save(sys.argv[1] + "-again", config, params, None, [1])
jax.tree.map(np.testing.assert_array_equal, hf.load_params(sys.argv[1] + "-again", config), whole)
print("equal on", jax.device_count())
"""


def test_loading_onto_and_saving_from_eight_devices(directory):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MESH_PROGRAM, str(directory)], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "equal on 8", done.stderr


# ---- the front door


def test_a_written_directory_opens_again_with_its_tokenizer(tmp_path):
    tokenizer = lexicon.build_tokenizer()
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    config = dataclasses.replace(CONFIG, vocab_size=len(tokenizer))
    params = decoder.init(config, jax.random.key(0))
    hf.save(tmp_path / "out", config, params, tokenizer, (tokenizer.eos_token_id,))
    opened = open_checkpoint(tmp_path / "out")
    assert (opened.config, opened.stop_ids) == (config, (tokenizer.eos_token_id,))
    assert opened.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert opened.tokenizer.chat_template == tokenizer.chat_template
    jax.tree.map(np.testing.assert_array_equal, opened.load_params(), params)


def test_unknown_names_and_an_unreachable_hub(monkeypatch, tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        open_checkpoint("smollm3")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="nobody/nothing: not in the local hub cache"):
        open_checkpoint("nobody/nothing")


def test_a_directory_without_tokenizer_says_so(directory):
    with pytest.raises(CheckpointError, match="tokenizer"):
        open_checkpoint(directory)
