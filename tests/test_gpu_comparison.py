"""The comparison for an accelerator, tried on the CPU with a small model: carrying, a kill, resuming, the result's file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import gguf as gguf_package
import numpy as np
import pytest
from small_runs import rows

from experiments import carrying, gpu_comparison
from hir_jax import config as configs
from hir_jax.model.config import ModelConfig
from hir_jax.model.files.gguf import smollm2_wheel_path
from hir_jax.model.files.weights import GGUF_NAMES, expected_shapes
from hir_jax.types import InputError

ROOT = Path(__file__).parents[1]
PROMPTS = [
    ("Write about the sea without commas.", "punctuation:no_comma", {}),
    ("Write two bullet points about rain.", "detectable_format:number_bullet_lists", {"num_bullets": 2}),
    ("Name a tree. Include the word leaf.", "keywords:existence", {"keywords": ["leaf"]}),
]


def small_weights(path):
    """A GGUF file of a random model of two small layers, with the tokenizer and chat template of SmolLM2."""
    source, writer = gguf_package.GGUFReader(smollm2_wheel_path()), gguf_package.GGUFWriter(str(path), "llama")
    for name, field in source.fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    words = len(source.get_field("tokenizer.ggml.tokens").contents())
    model = ModelConfig("llama", words, 16, 32, 2, 2, 1, 8, rope_theta=1e4, rms_norm_eps=1e-5)
    writer.add_context_length(2048)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(model.intermediate_size)
    writer.add_block_count(model.num_layers)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_layer_norm_rms_eps(model.rms_norm_eps)
    rng = np.random.default_rng(0)
    for name, shape in expected_shapes(model, GGUF_NAMES).items():
        writer.add_tensor(name, rng.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(folder, name):
    """A wheel of a package with one module and nothing else."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "FOUND = True\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The parts of a trial, cut as if a call took little: no network is needed, since its only wheel is made here."""
    place = tmp_path_factory.mktemp("prepared")
    prompts = [
        {"key": key, "prompt": text, "instruction_id_list": [name], "kwargs": [kwargs]}
        for key, (text, name, kwargs) in enumerate(PROMPTS)
    ]
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    weights, wheels = small_weights(place / "small.gguf"), write_wheel(place / "wheels", "not_there_before")
    tree = carrying.CALL_BYTES - carrying.room()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carrying, "CALL_BYTES", tree + 3_000_000)
        gpu_comparison.main([
            "prepare", f"--folder={place / 'carried'}", f"--prompts={place / 'prompts.jsonl'}", f"--weights={weights}",
            f"--wheels={wheels}", "--tiny", f"--config.compilation_cache={place / 'cache'}",
            "--config.model.compute_dtype=float32",  # a CPU compiles bfloat16 half as fast
        ])  # fmt: skip
    return place


def keep(prepared, place, numbers):
    """A folder with these parts alone, as a call brings them."""
    for number in numbers:
        shutil.copytree(prepared / "carried" / f"part-{number}", place / f"part-{number}")
    return place


def test_parts_of_several_calls_are_joined_and_compared(prepared, tmp_path):
    parts = sorted((prepared / "carried").iterdir())
    assert [part.name for part in parts] == ["part-1", "part-2"]
    assert all(file.stat().st_size <= 3_000_000 for part in parts for file in part.iterdir())
    into = tmp_path / "into"
    for _ in range(2):  # a call is sent again
        contents, message = carrying.unpack(keep(prepared, tmp_path / "first", [1]), into)
        assert contents is None and message == "1 of 2 parts are here; still to be carried: part-2"
        shutil.rmtree(tmp_path / "first")
    damaged = keep(prepared, tmp_path / "damaged", [2])
    content = (damaged / "part-2" / "piece").read_bytes()
    (damaged / "part-2" / "piece").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"part-2: damaged on its way"):
        carrying.unpack(damaged, into)
    contents, message = carrying.unpack(keep(prepared, tmp_path / "second", [2]), into)
    assert message == "" and carrying.unpack(tmp_path / "nothing", into) == (contents, "")
    assert (contents / "weights.gguf").read_bytes() == (prepared / "small.gguf").read_bytes()
    assert (contents / "prompts.jsonl").read_bytes() == (prepared / "prompts.jsonl").read_bytes()
    for name in carrying.LANGUAGE:
        assert (contents / "nltk_data" / name).exists()
    assert len(rows(contents / "rows.jsonl")) == gpu_comparison.TINY["data.size"]
    assert json.loads((contents / "settings.json").read_text())["tiny"] is True


def test_other_parts_are_refused(prepared, tmp_path):
    with pytest.raises(InputError, match="holds no part"):
        carrying.unpack(tmp_path / "nothing", tmp_path / "into")
    carrying.pack({"rows.jsonl": prepared / "prompts.jsonl"}, tmp_path / "carried", 100)
    shutil.copytree(prepared / "carried" / "part-2", tmp_path / "carried" / "part-2", dirs_exist_ok=True)
    with pytest.raises(InputError, match="parts of two preparations"):
        carrying.unpack(tmp_path / "carried", tmp_path / "into")


def test_only_packages_that_lack_are_installed(tmp_path):
    wheels = write_wheel(write_wheel(tmp_path / "wheels", "not_there_before"), "numpy")
    for _ in range(2):
        carrying.install(wheels, tmp_path / "site")
    assert (tmp_path / "site" / "not_there_before.py").exists() and not (tmp_path / "site" / "numpy.py").exists()
    carrying.install(tmp_path / "none", tmp_path / "empty")
    assert (tmp_path / "empty").is_dir()


def test_wheels_are_asked_for_in_the_tested_versions(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(carrying.subprocess, "run", lambda command, **how: asked.append([str(a) for a in command]))
    carrying.fetch_wheels(tmp_path)
    assert all("--no-deps" in command for command in asked)
    named = {a for command in asked for a in command if "==" in a}
    assert named == {f"{name}=={version(name)}" for name in (*carrying.PURE, *carrying.COMPILED)}
    (tmp_path / "x-1.0-cp311-cp311-linux_x86_64.whl").touch()
    with pytest.raises(InputError, match="fits this machine alone"):
        carrying.fetch_wheels(tmp_path)


def test_the_variant_is_the_comparison_that_is_asked_for():
    config = configs.load_file(str(ROOT / gpu_comparison.CONFIG))
    assert (config.data.batch_prompts, configs.sequences(config) // config.data.batch_prompts) == (64, 8)
    assert (config.rollout.max_response, config.total_steps) == (256, 100)
    for overrides in gpu_comparison.METHODS.values():
        changed = configs.load_file(str(ROOT / gpu_comparison.CONFIG))
        changed.update_from_flattened_dict(overrides)
        configs.check(changed)
    assert gpu_comparison.BASE in gpu_comparison.METHODS


def test_bad_arguments_have_messages(tmp_path, capsys):
    given = ["prepare", f"--folder={tmp_path}", f"--prompts={tmp_path / 'p.jsonl'}", f"--wheels={tmp_path}", "--tiny"]
    with pytest.raises(InputError, match=r"--prompts=.*p\.jsonl: no such file"):
        gpu_comparison.main(given)
    (tmp_path / "p.jsonl").touch()
    with pytest.raises(InputError, match="sizee"):
        gpu_comparison.main([*given, "--config.data.sizee=3"])
    with pytest.raises(SystemExit):
        gpu_comparison.main(["run", "--carried=a", "--workdir=b", "--output=c", "--only=ilr,hirr"])
    assert "no method 'hirr'; known: ilr, clr, hir" in capsys.readouterr().err


RUN = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path(sys.argv[1], "checkpoints", "7").mkdir(parents=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(600)
"""


def test_the_time_of_a_call_ends_training_with_a_checkpoint_and_failures_are_named(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    (tmp_path / "settings.json").write_text(json.dumps({"tiny": True, "overrides": gpu_comparison.TINY}))

    def start(command, log, environment):
        directory = next(a for a in command if a.startswith("--workdir=")).removeprefix("--workdir=")
        log.parent.mkdir(parents=True)
        log.write_text("the disk is full\n")
        code = "raise SystemExit(3)" if directory.endswith("clr") else RUN
        assert environment["XLA_CLIENT_MEM_FRACTION"] == "0.30"
        return subprocess.Popen([sys.executable, "-c", code, directory])

    monkeypatch.setattr(gpu_comparison, "start", start)
    comparison = gpu_comparison.Comparison(tmp_path, tmp_path, tmp_path / "out", 0.0, 0.0, {})

    def left(self):
        """None once both runs can be told to stop."""
        return 0.0 if all((tmp_path / label / "ready").exists() for label in ("ilr", "hir")) else 1.0

    monkeypatch.setattr(gpu_comparison.Comparison, "left", left)
    errors = gpu_comparison.train(comparison, ["ilr", "clr", "hir"], {})
    assert errors == [f"clr ended with status 3; see {tmp_path / 'clr' / 'log.txt'}"]
    assert "the disk is full" in capsys.readouterr().out
    assert comparison.steps("ilr") == comparison.steps("hir") == {7} and comparison.steps("clr") == set()


def start(prepared, place, *more):
    given = [f"--carried={prepared / 'carried'}", f"--workdir={place / 'w'}", f"--output={place / 'out'}", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.gpu_comparison", "run", *given], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_its_result_says_that_it_is_none(prepared, tmp_path):
    """Takes long because each of three runs compiles its step, and one evaluation follows: the whole of what is started on an
    accelerator, so that it works there the first time."""
    process = start(prepared, tmp_path)
    while process.poll() is None and not any(tmp_path.glob("w/*/checkpoints/1")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert not found["finished"] and found["evaluations"] == {}
    process = start(prepared, tmp_path)
    said, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, said
    for label in gpu_comparison.METHODS:
        assert [row["step"] for row in rows(tmp_path / "w" / label / "metrics.jsonl")] == [0, 1, 2]
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["finished"] and not found["is_result"] and "NOT a result" in found["what"] and found["tiny"]
    assert found["device"] == "cpu" and found["versions"]["jax"] == version("jax") and found["commit"] and found["date"]
    assert set(found["evaluations"]) == {"0", "2"} and set(found["evaluations"]["0"]["runs"]) == {"start"}
    at_end = found["evaluations"]["2"]
    assert set(at_end["runs"]) == set(gpu_comparison.METHODS)
    for each in (found["evaluations"]["0"]["runs"]["start"], *at_end["runs"].values()):
        own, others, following = (each[name] for name in ("ila", "ila_shuffled", "following"))
        assert following[0] == pytest.approx(own[0] - others[0])
    assert set(at_end["differences"]) == {"ilr - start", "clr - start", "hir - start", "clr - ilr", "hir - ilr"}
    gap = at_end["differences"]["hir - ilr"]["cla"][0]
    assert gap == pytest.approx(at_end["runs"]["hir"]["cla"][0] - at_end["runs"]["ilr"]["cla"][0])
    with tarfile.open(tmp_path / "out" / "runs.tar.gz") as tar:
        names = tar.getnames()
    assert "hir/metrics.jsonl" in names and "clr/evaluations/ifeval-step-2-t0.6-n4/responses.jsonl" in names
    assert not any("checkpoints" in name for name in names)
    process = start(prepared, tmp_path, "--seconds=1")  # nothing is left to do
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "finished" in said and "evaluating" not in said
