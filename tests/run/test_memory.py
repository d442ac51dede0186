"""Freed memory stays with the process, as page faults show; in a subprocess, because the setting cannot be undone."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, resource
from hir_jax.run.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(range(100)) * 1_000_000  # more than malloc keeps by default
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = min(faults() for _ in range(3))
kept = keep_freed_memory()
faults()
print(json.dumps([kept, plain, min(faults() for _ in range(3))]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_a_large_buffer_is_used_again():
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True).stdout
    kept, plain, after = json.loads(out)
    assert kept and plain > 10 and after < plain / 4
