"""Imports without large modules that a package would import and we do not use."""

import subprocess
import sys

import pytest

from hir_jax.imports import without

PACKAGES = """
import sys
import hir_jax.run.board
from hir_jax.checks import english
english.warm_up()
assert english.word_tokens("We can't.") == ("We", "ca", "n't", "."), english.word_tokens("We can't.")
print(*sorted({"torch", "scipy.stats", "tensorboardX", "nltk"} & sys.modules.keys()))
"""


def test_large_modules_are_left_out():
    found = subprocess.check_output([sys.executable, "-c", PACKAGES], text=True)
    assert found.split() == ["nltk", "tensorboardX"]


def test_hidden_inside_and_as_before_outside():
    assert "smtplib" not in sys.modules
    with without("smtplib", "json"):
        import json  # imported before: stays

        with pytest.raises(ImportError):
            import smtplib
    assert json is sys.modules["json"]
    import smtplib

    assert smtplib.SMTP
    with pytest.raises(KeyError, match="raised inside"), without("antigravity"):
        raise KeyError("raised inside")
    assert "antigravity" not in sys.modules
