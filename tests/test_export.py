"""Runs that were trained on eight devices, exported on this one."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trained_on_eight
from safetensors.numpy import load_file
from small_runs import ROOT, environment

from hir_jax.engine import Engine
from hir_jax.eval.answering import restored_params
from hir_jax.export import export_run
from hir_jax.model import decoder, lora
from hir_jax.model.files import hf
from hir_jax.model.files.checkpoint import open_checkpoint
from hir_jax.train import train
from hir_jax.types import InputError

TOKENS = np.random.default_rng(2).integers(5, 150, (2, 40)).astype(np.int32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, trained_on_eight.__file__, str(folder)]
    done = subprocess.run(command, env=environment(8), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def restored(runs):
    """name -> (Engine on one device, the whole model that the run ended with)."""
    found = {}
    for name, config in zip(("full", "lora"), trained_on_eight.configs(runs), strict=True):
        engine = Engine(config)
        found[name] = engine, restored_params(engine, runs / name)[0]
    return found


def logits(model, params) -> np.ndarray:
    positions = np.broadcast_to(np.arange(TOKENS.shape[1]), TOKENS.shape)
    hidden = decoder.hidden_states(model, params, TOKENS, positions, np.ones_like(TOKENS))
    return np.asarray(decoder.logits(model, params, hidden))


def torch_logits(directory, rounded: bool = False) -> np.ndarray:
    """transformers' logits in float32; `rounded`: of the weights rounded to bfloat16."""
    torch = pytest.importorskip("torch", reason="torch is not installed: only our own reader is compared")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32).eval()
    for weight in model.parameters() if rounded else ():  # and no buffer: rotary frequencies stay exact
        weight.data = weight.data.bfloat16().float()
    with torch.no_grad():
        return model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def program(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "hir_jax.export", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_runs_were_split_over_eight_devices_and_learnt(runs, restored):
    for name in ("full", "lora"):
        config = json.loads((runs / name / "config.json").read_text())
        assert (config["mesh.fsdp"], config["mesh.tensor"]) == (2, 2)
        losses = [json.loads(line)["nll"] for line in (runs / name / "metrics.jsonl").read_text().splitlines()[1:]]
        assert losses[-1] < losses[0]
    engine, params = restored["lora"]
    assert params["layers"]["q_lora_b"].any() and params["embed"] is engine.frozen["embed"]


def test_adapters_trained_on_eight_devices_are_those_trained_on_one(runs, restored, tmp_path):
    config = trained_on_eight.configs(runs)[1]
    config.save_model = False
    train(config, tmp_path / "lora")
    one = restored_params(restored["lora"][0], tmp_path / "lora")[0]["layers"]
    eight = restored["lora"][1]["layers"]
    for name in one:
        if "_lora_" in name:
            assert np.linalg.norm(one[name] - eight[name]) <= 1e-4 * np.linalg.norm(one[name]), name


@pytest.mark.parametrize("name", ["full", "lora"])
def test_exported_on_one_device_it_has_the_run_s_logits(name, runs, restored, tmp_path):
    engine, params = restored[name]
    for dtype, shard_gb in (("float32", 5.0), ("bfloat16", 2e-5)):
        out = tmp_path / dtype
        assert export_run(runs / name, out, None, adapter=False, dtype=dtype, shard_gb=shard_gb) == 3
        files = sorted(out.glob("*.safetensors"))
        assert (len(files) > 1) == (shard_gb < 1) and (out / hf.INDEX).exists() == (shard_gb < 1)
        opened = open_checkpoint(out)
        assert opened.stop_ids == tuple(engine.backbone.stop_ids) and len(opened.tokenizer) == len(
            engine.backbone.tokenizer
        )
        written = opened.load_params()
        for path, leaf in jax.tree_util.tree_leaves_with_path(written):
            key = path[-1].key
            wanted = decoder.matrix(engine.model, params["layers"], key) if len(path) == 2 else params[key]
            assert bool((leaf == wanted.astype(dtype).astype(jnp.float32)).all()), key
    wanted = logits(engine.model, params)
    # Merged and applied adapters round differently; without them the weights are the same ones.
    np.testing.assert_allclose(
        logits(engine.model, open_checkpoint(tmp_path / "float32").load_params()), wanted, atol=1e-4
    )
    np.testing.assert_allclose(torch_logits(tmp_path / "float32"), wanted, atol=1e-4)
    rounded = torch_logits(tmp_path / "float32", rounded=True)
    np.testing.assert_allclose(torch_logits(tmp_path / "bfloat16"), rounded, atol=1e-5)


def test_the_model_at_the_end_of_the_run_is_the_same_export(runs, restored, tmp_path):
    """The run wrote its model from eight devices; the program exports the same model from one."""
    done = program(f"--workdir={runs / 'lora'}", "--step=3", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0 and "step 3 of" in done.stdout, done.stderr
    ours, theirs = (load_file(path / hf.WEIGHTS) for path in (tmp_path / "out", runs / "lora" / "model"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_allclose(theirs[name], tensor, atol=1e-6, err_msg=name)


def test_an_earlier_step_and_the_start(runs, restored, tmp_path):
    start = export_run(runs / "lora", tmp_path / "start", 0, adapter=False)
    earlier = export_run(runs / "lora", tmp_path / "earlier", 2, adapter=False)
    assert (start, earlier) == (0, 2)
    base = load_file(runs / "full" / "model" / hf.WEIGHTS)
    for name, tensor in load_file(tmp_path / "start" / hf.WEIGHTS).items():
        np.testing.assert_array_equal(tensor, base[name])
    place = "model.layers.1.self_attn.q_proj.weight"
    steps = [load_file(path / hf.WEIGHTS)[place] for path in (tmp_path / "earlier", runs / "lora" / "model")]
    assert not np.array_equal(*steps) and not np.array_equal(steps[0], base[place])


def test_an_adapter_that_peft_loads(runs, restored, tmp_path):
    export_run(runs / "lora", tmp_path / "adapter", None, adapter=True)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(runs / "full" / "model") and config["r"] == 4
    torch = pytest.importorskip("torch", reason="torch is not installed")
    theirs = pytest.importorskip("peft", reason="peft is not installed: pip install --no-deps peft accelerate")
    model = theirs.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"), dtype=torch.float32).eval()
    with torch.no_grad():
        found = model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    engine, params = restored["lora"]
    np.testing.assert_allclose(found, logits(engine.model, params), atol=1e-4)


def test_bad_input_is_refused_by_name(runs, tmp_path):
    filled = tmp_path / "filled"
    filled.mkdir()
    (filled / "file").write_text("kept")
    out = tmp_path / "out"
    for changes, words in (
        ({"workdir": tmp_path / "none"}, "no run, it holds no config.json"),
        ({"step": 7}, r"no checkpoint of step 7; the steps there are: 0 \(the start\), \[2, 3\]"),
        ({"output": filled}, "nothing is overwritten"),
        ({"workdir": runs / "full", "adapter": True}, "--adapter needs a LoRA run"),
        ({"step": 0, "adapter": True}, "--adapter needs a LoRA run and a step after 0"),
    ):
        given = {"workdir": runs / "lora", "output": out, "step": None, "adapter": False} | changes
        with pytest.raises(InputError, match=words):
            export_run(given.pop("workdir"), given.pop("output"), given.pop("step"), **given)
    assert not out.exists() and [p.name for p in filled.iterdir()] == ["file"]
    done = program(f"--workdir={tmp_path / 'none'}", f"--output={out}")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_a_run_without_a_checkpoint_says_so(runs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text((runs / "full" / "config.json").read_text())
    with pytest.raises(InputError, match="no checkpoint yet; --step=0"):
        export_run(run, tmp_path / "out", None, adapter=False)


def test_an_exchanged_base_is_noticed(runs, tmp_path):
    """The base directory of the adapters has other weights by now."""
    config = json.loads((runs / "lora" / "config.json").read_text())
    model = open_checkpoint(runs / "full" / "model")
    params = model.load_params()
    params["final_norm"] = params["final_norm"].at[3].add(0.1)
    hf.save(tmp_path / "other", model.config, params, model.tokenizer, model.stop_ids)
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(runs / "lora" / "checkpoints")
    (run / "config.json").write_text(json.dumps(config | {"model.checkpoint": str(tmp_path / "other")}))
    with pytest.raises(InputError, match=r"other': its weights are not those .* beside \(.*full/model\)"):
        export_run(run, tmp_path / "out", None, adapter=False)
    assert lora.checksum(params) != lora.checksum(model.load_params())
