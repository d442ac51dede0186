"""The pages: they build without a warning, name every config key, and their links and tables are true."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import document
from hir_jax import config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_pages_build_without_a_warning_and_name_every_key(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={tmp_path}"],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    page = (tmp_path / "configuration" / "index.html").read_text(encoding="utf-8")
    named = re.findall(r"<tr>\s*<td><code>([\w.]+)</code></td>", page)
    assert sorted(named) == sorted(config.flatten(config.defaults()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_in_pages_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for path in re.findall(r"`((?:hir_jax|experiments|docs|configs|launch|tests)/[\w./]+)`", text):
        assert (ROOT / path).exists() or path == "hir_jax/checks/mine.py", path


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


def test_tables_of_the_results_are_those_of_the_committed_figures():
    document.main(["--check"])
