"""The table of published shapes against transformers' own reading of the same keys, and the sizes that are published."""

import math

import jax
import pytest

from hir_jax.model import decoder
from hir_jax.model.files import published
from hir_jax.model.files.weights import CheckpointError

# billions of parameters on the models' pages: 3.21, 7.62 (7.61 on the page, which rounds down), 4.02
BILLIONS = {
    "meta-llama/Llama-3.2-3B-Instruct": 3.21, "Qwen/Qwen2.5-7B-Instruct": 7.62, "Qwen/Qwen3-4B-Instruct-2507": 4.02,
    "Qwen/Qwen3-4B": 4.02,
}  # fmt: skip


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_parameters_are_those_of_the_model_that_transformers_builds(name):
    found = published.outline(name)
    shapes = decoder.abstract_params(found.config)
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert round(count / 1e9, 2) == BILLIONS[name]
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = dict(published.PUBLISHED[name])
    theirs = AutoConfig.for_model(raw.pop("model_type"), **raw)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    assert sum(p.numel() for p in model.parameters()) == count  # tied matrices count once
    config, rope = found.config, theirs.rope_parameters
    assert rope["rope_theta"] == config.rope_theta and theirs.rms_norm_eps == config.rms_norm_eps
    assert model.model.layers[0].self_attn.head_dim == config.head_dim
    assert (model.model.layers[0].self_attn.q_proj.bias is not None) == config.attention_bias
    if config.rope_scaling:
        assert rope["rope_type"] == "llama3" and rope["factor"] == config.rope_scaling.factor


@pytest.mark.parametrize(
    ("name", "words", "tied", "stops", "pad"),
    [
        ("meta-llama/Llama-3.2-3B-Instruct", 128_256, True, (128_001, 128_008, 128_009), 128_001),
        ("Qwen/Qwen2.5-7B-Instruct", 152_064, False, (151_645, 151_643), 151_643),
        ("Qwen/Qwen3-4B-Instruct-2507", 151_936, True, (151_645, 151_643), 151_643),
    ],
)
def test_what_compiled_functions_depend_on(name, words, tied, stops, pad):
    found = published.outline(name)
    assert (found.config.vocab_size, found.config.tie_embeddings) == (words, tied)
    assert (found.stop_ids, found.pad_id) == (stops, pad)


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(CheckpointError, match=r"did you mean Qwen/Qwen3-4B-Instruct-2507\?"):
        published.outline("Qwen/Qwen3-4B-Instruct-2508")
