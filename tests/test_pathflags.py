"""Flags and config keys that name files: the user's home, and names with any sign."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from small_runs import small_config

from hir_jax import config as configs
from hir_jax import pathflags
from hir_jax.checks.judge.soft import VerdictCache
from hir_jax.data import dataset, native
from hir_jax.data.generate import synthesis
from hir_jax.engine import Engine
from hir_jax.evaluate import _run_of
from hir_jax.model.files.checkpoint import CheckpointError, open_checkpoint
from hir_jax.run import report
from hir_jax.types import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_home_is_put_in(home, monkeypatch):
    assert pathflags.expanded("~/a,b") == f"{home}/a,b" and pathflags.expanded("a~/~") == "a~/~"
    monkeypatch.chdir(home)
    (home / "~x").mkdir()
    assert pathflags.expanded("~x") == "~x"  # what is there is meant
    with pytest.raises(InputError, match="~nobody-of-this-name/x"):
        pathflags.expanded("~nobody-of-this-name/x")


def test_flags_of_paths(home, monkeypatch):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "DEFINE", lambda *a, **k: flags._defines.DEFINE(*a, flag_values=values, **k))
    pathflags.define("one", "", "")
    pathflags.define_list("several", [], "")
    (home / "a,b").mkdir()
    values(["program", "--one=~/x y", "--several=c,~/a,b,d"])
    assert values.one == f"{home}/x y" and values.several == ["c", f"{home}/a,b", "d"]


@pytest.mark.parametrize(
    ("there", "text", "found"),
    [
        ((), "a,b", ["a", "b"]),
        (("a,b",), "a,b", ["a,b"]),
        (("a,b",), "a,b,c", ["a,b", "c"]),
        (("b,c", "a"), "a,b,c", ["a", "b,c"]),
        (("a", "a,b"), "a,b", ["a,b"]),
        (("a,b",), "a,b@20,a,b@40", ["a,b@20", "a,b@40"]),
        (("a",), "a@1,a@2", ["a@1", "a@2"]),
        ((), "a, b", ["a", "b"]),
    ],
)
def test_names_with_commas_that_exist_win(tmp_path, monkeypatch, there, text, found):
    monkeypatch.chdir(tmp_path)
    for name in there:
        (tmp_path / name).mkdir()
    assert pathflags.split_names(text, lambda name: _run_of(name)[0].is_dir()) == found


def test_a_directory_of_the_whole_name_comes_before_a_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x@20").mkdir()
    (tmp_path / "x").mkdir()
    assert _run_of("x@20") == (Path("x@20"), None) and _run_of("x/@20") == (Path("x"), 20)
    assert _run_of("x@20@5") == (Path("x@20"), 5) and _run_of("a b=c,d") == (Path("a b=c,d"), None)


def test_names_of_reports_end_where_a_directory_begins(home, monkeypatch):
    monkeypatch.chdir(home)
    for name in ("lr=1,k", "x=y", "z"):
        (home / name).mkdir()
    found = report._grouped(["x=y", "new=x=y", "a=b=z", "lr=1,k", "own=~/z"])
    assert found == {
        "x=y": [Path("x=y")], "new": [Path("x=y")], "a=b": [Path("z")], "lr=1,k": [Path("lr=1,k")], "own": [home / "z"],
    }  # fmt: skip


def test_config_keys_that_are_paths(home):
    rows = synthesis.generate(0, 3)
    native.write(home / "rows.jsonl", rows)
    for key in ("path", "eval_path"):
        config = small_config(data__source="jsonl", **{f"data__{key}": "~/rows.jsonl"})
        found = dataset.heldout(config) if key == "eval_path" else [q for q, _ in dataset._pairs(config, "train", {})]
        assert [q.task for q in found] == [q.task for q in rows]
    with pytest.raises(CheckpointError, match=f"^{home}/model"):
        open_checkpoint("~/model")
    VerdictCache("~/cache/verdicts").close()
    assert (home / "cache" / "verdicts").exists()
    engine = Engine(small_config())
    engine.backbone.tokenizer.save_pretrained(home / "tokens")
    again = Engine(small_config(model__tokenizer="~/tokens"))
    assert len(again.backbone.tokenizer) == len(engine.backbone.tokenizer)


def test_config_files_in_the_home(home):
    (home / "mine.py").write_text((ROOT / "configs" / "tiny_hir.py").read_text())
    assert configs.load_file("~/mine.py").method == "hir"
    command = [sys.executable, "-m", "hir_jax.train", "--config=~/mine.py", "--config.method=none", "--workdir=~/run"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: config.method is 'none'")


def test_the_report_of_a_directory_with_any_sign(home):
    run = home / "lr=1e-6, k@2"
    run.mkdir()
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "ila": 0.5}) + "\n")
    for given in (str(run), "~/lr=1e-6, k@2", "name=~/lr=1e-6, k@2"):
        command = [sys.executable, "-m", "hir_jax.run.report", given]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"HOME": str(home)}, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"report: {run}/report.html\n"), done.stderr
