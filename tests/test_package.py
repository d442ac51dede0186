"""The package: what a wheel holds, its commands, and that its lower bounds and the pinned versions agree."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hir_jax import config
from hir_jax.types import InputError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins():
    """Name -> the requirements of requirements.txt, one for each version of Python where they differ."""
    found = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line := line.split("#")[0].strip():
            found.setdefault(Requirement(line).name, []).append(Requirement(line))
    return found


def test_every_dependency_is_pinned_within_its_bounds():
    pinned = pins()
    needed = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]
    assert {each.name for each in needed} == set(pinned)
    for each in needed:
        for pin in pinned[each.name]:
            (version,) = [part.version for part in pin.specifier]
            assert each.specifier.contains(version), f"{pin} is outside {each}"


@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_commands_are_functions(command):
    module, _, function = PROJECT["scripts"][command].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_a_wheel_holds_the_configs_and_the_data(tmp_path):
    """Built, unpacked, and used from another directory."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path}", str(ROOT)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", f"--target={tmp_path / 'site'}", str(wheel)], check=True)
    assert {path.name for path in (tmp_path / "site" / "bin").iterdir()} >= set(PROJECT["scripts"])
    shipped = tmp_path / "site" / "hir_jax"
    kept = [path for path in (ROOT / "hir_jax").rglob("*") if path.suffix in (".jsonl", ".html", ".js", ".css")]
    assert len(kept) > 5
    for path in kept:
        assert (shipped / path.relative_to(ROOT / "hir_jax")).read_bytes() == path.read_bytes()
    ask = "from hir_jax import config; print(config.__file__, config.load_file('tiny_hir:easy').data.min_constraints)"
    said = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert said == [str(shipped / "config.py"), "6"]


def test_a_config_is_found_by_its_name_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.config_file("tiny_hir:easy") == f"{ROOT / 'configs' / 'tiny_hir.py'}:easy"
    assert config.load_file("tiny_hir:easy").data.max_constraints == 6
    (tmp_path / "tiny_hir").write_text("def get_config(): return 1\n")  # a file of one's own goes before
    assert config.load_file("tiny_hir") == 1
    with pytest.raises(
        InputError, match=r"mine: no such config file; those that come with hir_jax: .*qwen3_4b_hir, .*tiny_hir"
    ):
        config.load_file("mine")
