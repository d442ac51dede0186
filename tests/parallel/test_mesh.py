"""The mesh's rules and messages, and eight virtual devices as (2, 2, 2) against one device."""

import json
import subprocess
import sys

import eight_devices
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from small_runs import ROOT, environment

from hir_jax.engine import Engine
from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.parallel import mesh as meshes

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def abstract_mesh(**sizes):
    return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# ---- rules and messages, on one device ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "words"),
    [((3, 1, 1), "wants 3 devices, there are 1"), ((-1, 2, 1), "wants 2 devices"), ((-1, -1, 1), "at most one is -1"),
     ((0, 1, 1), "positive"), ((-2, 1, 1), "positive")],
)  # fmt: skip
def test_mesh_that_devices_cannot_fill(sizes, words):
    with pytest.raises(meshes.MeshError, match=words):
        meshes.make_mesh(*sizes, devices=jax.devices()[:1])


def test_rest_of_the_devices():
    mesh = meshes.make_mesh(-1, 1, 1, devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert meshes.row_devices(abstract_mesh(**MESH)) == 4


def test_rows_that_do_not_split():
    class FourWays:
        shape = MESH

    with pytest.raises(meshes.MeshError, match=r"6 rows .* 4 devices .*batch_prompts.*eval_batch"):
        meshes.put_rows(FourWays, {"a": np.zeros((8, 2)), "b": np.zeros(6)})


def test_parameters_split_where_the_mesh_divides_them():
    """Heads, MLP and vocabulary split over tensor, the width over fsdp; three key/value heads do not divide and stay whole."""
    model = ModelConfig("qwen2", 50, 24, 16, 2, 4, 2, 6, attention_bias=True, tie_embeddings=False)
    mesh = abstract_mesh(**MESH)
    found = meshes.parameter_shardings(mesh, decoder.param_axes(model), decoder.abstract_params(model))
    expected = {
        "embed": ("tensor", "fsdp"), "unembed": ("fsdp", "tensor"), "final_norm": ("fsdp",), "attn_norm": (None, "fsdp"),
        "mlp_norm": (None, "fsdp"), "q": (None, "fsdp", "tensor"), "k": (None, "fsdp", "tensor"), "v": (None, "fsdp", "tensor"),
        "o": (None, "tensor", "fsdp"), "gate": (None, "fsdp", "tensor"), "up": (None, "fsdp", "tensor"),
        "down": (None, "tensor", "fsdp"), "q_bias": (None, "tensor"), "k_bias": (None, "tensor"), "v_bias": (None, "tensor"),
    }  # fmt: skip
    flat = found | found["layers"]
    assert {name: tuple(flat[name].spec) for name in expected} == expected
    odd = ModelConfig("llama", 51, 24, 16, 1, 3, 3, 6, tie_embeddings=False)
    wide = meshes.parameter_shardings(
        abstract_mesh(data=1, fsdp=1, tensor=4), decoder.param_axes(odd), decoder.abstract_params(odd)
    )
    assert wide["embed"].spec == PartitionSpec(None, None)  # 51 words
    assert wide["layers"]["k"].spec == PartitionSpec(None, None, None)  # 18 channels of three heads
    assert wide["layers"]["gate"].spec == PartitionSpec(None, None, "tensor")


# ---- eight devices against one -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mesh") / "model"
    eight_devices.write_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def pair(checkpoint):
    """(on one device, under (2, 2, 2) in a process of its own).

    Takes long because everything from the checkpoint to the update is compiled for one device and for eight; the tests below
    protect that the mesh changes no result.
    """
    out = checkpoint.parent / "eight.npz"
    process = subprocess.Popen(
        [sys.executable, eight_devices.__file__, str(checkpoint), str(out)], env=environment(8), cwd=ROOT,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    one = eight_devices.run(str(checkpoint), (1, 1, 1), jax.devices()[:1])
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    with np.load(out) as eight:
        return one, dict(eight)


def names(arrays, prefix):
    found = [name for name in arrays if name.startswith(prefix)]
    assert found
    return found


@pytest.mark.parametrize(
    "what", ["gradients[", "gradient_metrics", "fixed_metrics", "fixed_params", "whole_params", "buffered_params"]
)
def test_fixed_tokens_give_the_same_update(pair, what):
    """1e-5 in relative L2, over all parameters (or all metrics) together."""
    one, eight = (np.concatenate([np.ravel(arrays[name]) for name in names(pair[0], what)]) for arrays in pair)
    assert relative_error(eight, one) < 1e-5


def test_every_gradient_is_the_same(pair):
    for name in names(pair[0], "gradients["):
        assert relative_error(pair[1][name], pair[0][name]) < 2e-5, name


@pytest.mark.parametrize("step", range(eight_devices.STEPS))
def test_whole_step_samples_selects_and_relabels_the_same(pair, step):
    """Tokens, verdicts, selection and the relabelled batch are equal; their log-probs agree."""
    one, eight = pair
    assert one[f"step{step}/replays.valid"].any() and one[f"step{step}/batch.is_replay"].any()
    for name in names(one, f"step{step}/"):
        if one[name].dtype.kind in "bi":
            np.testing.assert_array_equal(eight[name], one[name], err_msg=name)
        else:
            np.testing.assert_allclose(eight[name], one[name], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("step", range(eight_devices.STEPS))
def test_a_buffer_holds_and_gives_the_same(pair, step):
    """It is whole on every device."""
    one, eight = pair
    assert (one[f"buffered{step}/buffer.born"] == step).any()
    assert one[f"buffered{step}/metrics['buffered']"] == 4 * (step > 0)
    for name in names(one, f"buffered{step}/"):
        if one[name].dtype.kind in "bi":
            np.testing.assert_array_equal(eight[name], one[name], err_msg=name)
        else:
            np.testing.assert_allclose(eight[name], one[name], rtol=2e-4, atol=2e-5, err_msg=name)
    assert all(piece == whole for piece, whole in json.loads(str(eight["buffer_layout"])).values())


def test_loaded_parameters_and_moments_are_really_split(pair, checkpoint):
    """Each device holds a quarter of every matrix and of its moments, straight from the checkpoint."""
    layouts = json.loads(str(pair[1]["layouts"]))
    matrices = 0
    for path, (piece, whole) in layouts["loaded"].items():
        if any(name in path for name in ("embed", "'q'", "'k'", "'v'", "'o'", "gate", "up", "down")):
            assert np.prod(piece) * 4 == np.prod(whole), path
            matrices += 1
        elif "attn_norm" in path or "mlp_norm" in path or "final_norm" in path:
            assert np.prod(piece) * 2 == np.prod(whole), path  # over fsdp
    assert matrices == 9
    for path, (piece, _) in layouts["loaded"].items():
        copies = [found for name, (found, _) in layouts["state"].items() if name.endswith(path)]
        assert copies == [piece] * 3, path  # the parameter and two moments
    model = Engine(eight_devices.case_config(str(checkpoint), (1, 1, 1)), jax.devices()[:1]).model
    assert (model.family, model.num_heads, model.num_kv_heads) == ("qwen3", 4, 2)


def test_no_device_gathers_a_stack_to_bring_it_to_the_sampler(pair):
    """From an eighth of the width to half of the heads: devices exchange parts, and gather at most their own half."""
    eight = pair[1]
    for name in names(eight, "given["):
        np.testing.assert_array_equal(eight[name.replace("given", "for_sampling", 1)], eight[name])
    seen = json.loads(str(eight["resharding"]))
    for path, (piece, whole) in seen["found"].items():
        assert np.prod(whole) == np.prod(piece) * (1 if "norm" in path else 2), path
        assert "norm" in path or np.prod(seen["given"][path][0]) * 8 == np.prod(whole), path
    norms = max(np.prod(whole) for path, (_, whole) in seen["given"].items() if "norm" in path)
    gathered = {np.prod(sizes) for kind, sizes in seen["sent"] if kind == "all-gather" and np.prod(sizes) > norms}
    assert gathered and gathered <= {np.prod(piece) for piece, _ in seen["found"].values()}
    assert any(kind == "all-to-all" for kind, _ in seen["sent"])
