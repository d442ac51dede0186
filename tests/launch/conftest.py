import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from far_side import PROGRAM, ROOT, FarSide


@pytest.fixture
def far(tmp_path):
    far = FarSide(tmp_path / "far")
    yield far
    far.stop_all()


@pytest.fixture
def fresh(far):
    """A far side whose workers can be set up: `uv` makes an environment without installing. They lack bubblewrap and NFS."""
    far.nodes(node=["READY"])
    (far.directory / "program.py").write_text(PROGRAM)
    python = '[ "$1" = -c ] && exec echo jax\n[ "$1" = --version ] && exec cat .venv/version\nexec ' + sys.executable
    (far.directory / "python").write_text(f'#!/bin/sh\n{python} "$@"\n')
    (far.directory / "python").chmod(0o755)
    make = 'mkdir -p .venv/bin && cp "$FAKE/python" .venv/bin/ && echo "Python $4.1" > .venv/version'
    far.record("uv", f'if [ "$1" = venv ]; then {make}; fi; cp "$FAKE/program.py" hir_jax/train.py')
    far.record("python3", 'mkdir -p ~/.local/uv/bin && ln -s "$FAKE/bin/uv" ~/.local/uv/bin/uv')
    system = far.directory / "usr"
    system.mkdir()
    for folder in filter(os.path.isdir, ("/usr/sbin", "/usr/bin")):
        for path in Path(folder).iterdir():
            if path.name not in ("bwrap", "mount.nfs") and not (system / path.name).is_symlink():
                (system / path.name).symlink_to(path)
    far.environment["PATH"] = f"{far.directory / 'bin'}:{system}"
    yield far
    (ROOT / "runs" / "hir.tar.gz").unlink(missing_ok=True)


@pytest.fixture
def share(far):
    """What --nfs mounts: a directory on another file system than the workers' homes, where the machine has one."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = tempfile.mkdtemp(dir=memory)
    (far.directory / "share").symlink_to(path)
    yield Path(path)
    shutil.rmtree(path)
