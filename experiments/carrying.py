"""Carries files to a machine without network whose calls take only so many bytes: one archive, cut into parts.

Here `pack` writes DIR/part-1, DIR/part-2, ...; each call carries one of them there, with the code. There `unpack` keeps the
parts that have come. When all are there it joins them, compares the checksum (sha256) and unpacks. `fetch_wheels` and
`language_data` get, here, packages and data that the machine lacks; `install` installs the packages there. What runs there
needs only the standard library and this checkout.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from hir_jax.run import files
from hir_jax.textfiles import read_json
from hir_jax.types import InputError

CALL_BYTES = 64 << 20  # that a call takes: the checkout, without what git ignores, and a part
_SPARE_BYTES = 1 << 20  # of them, for the names of the files
_ROOT = Path(__file__).parents[1]
MANIFEST, _PIECE = "manifest.json", "piece"
PYTHON = "3.12"  # the machine's
# What it lacks: packages of any platform, compiled packages, and the data of NLTK that IFEval's checks need
PURE = (
    "ml_collections", "gguf", "nltk", "defusedxml", "langdetect", "emoji", "syllapy", "zhconv", "pebble", "portpicker",
    "tensorboardX", "tokamax", "qwix", "einshape", "typeguard", "immutabledict", "pydantic", "annotated-types",
    "typing-inspection",
)  # fmt: skip
COMPILED = ("grain", "array_record", "pydantic_core")
LANGUAGE = ("tokenizers/punkt_tab/english", "corpora/stopwords/english", "taggers/averaged_perceptron_tagger_eng")
# What pip calls the machine: x86-64 Linux with glibc 2.28 or newer, and the Python there
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def room() -> int:
    """Bytes that a part may have beside the checkout. InputError if none are left."""
    listed = subprocess.run(
        ["git", "-C", str(_ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    paths = {_ROOT / name for name in listed.split("\0") if name}
    tree = sum(path.lstat().st_size for path in paths if os.path.lexists(path))
    if (left := CALL_BYTES - _SPARE_BYTES - tree) <= 0:
        raise InputError(
            f"{_ROOT}: its files have {tree} bytes, a call takes {CALL_BYTES}: move away what is not needed"
        )
    return left


def pack(contents: Mapping[str, Path], folder: Path, room: int) -> list[Path]:
    """Writes folder/part-I/{piece, manifest.json}, pieces of at most `room` bytes, in place of parts that are there, and
    returns their folders.

    contents: name in the archive -> file or directory.
    """
    for old in folder.glob("part-*"):
        shutil.rmtree(old)
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "archive.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
        for name, path in contents.items():
            tar.add(path, name)
    parts, whole, sums = [], hashlib.sha256(), []
    with open(archive, "rb") as file:
        while piece := file.read(room):
            whole.update(piece)
            sums.append(hashlib.sha256(piece).hexdigest())
            parts.append(folder / f"part-{len(sums)}")
            parts[-1].mkdir()
            (parts[-1] / _PIECE).write_bytes(piece)
    archive.unlink()
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    manifest = {"made": made, "commit": files.commit(), "sha256": whole.hexdigest(), "parts": sums}
    for part in parts:
        files.write_atomically(part / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return parts


def unpack(folder: Path, into: Path) -> tuple[Path | None, str]:
    """(the directory with the contents, "") or, as long as parts lack, (None, a message). Takes the parts that are in `folder` to
    `into`, where earlier calls left theirs; each preparation has a directory of its own there. Without any part, the contents
    unpacked last.

    InputError for a damaged part, or parts of two preparations.
    """
    found = {part.parent: read_json(part) for part in sorted(folder.glob(f"part-*/{MANIFEST}"))}
    earlier = sorted(into.glob("*/contents"), key=lambda path: path.stat().st_mtime)
    if not found and earlier:
        return earlier[-1], ""
    if not found:
        raise InputError(f"{folder}: holds no part-*; prepare it, and carry one of its parts here")
    manifest, *others = found.values()
    if any(other != manifest for other in others):
        raise InputError(f"{folder}: holds parts of two preparations; delete it and carry the parts of one")
    place = into / manifest["sha256"][:16]
    place.mkdir(parents=True, exist_ok=True)
    for part in found:
        number = int(part.name.removeprefix("part-"))
        piece = (part / _PIECE).read_bytes()
        if hashlib.sha256(piece).hexdigest() != manifest["parts"][number - 1]:
            raise InputError(f"{part}: damaged on its way (checksum); carry it again")
        draft = place / f".{_PIECE}-{number}"
        draft.write_bytes(piece)
        draft.replace(place / f"{_PIECE}-{number}")
    contents, pieces = place / "contents", [place / f"{_PIECE}-{i + 1}" for i in range(len(manifest["parts"]))]
    if contents.is_dir():
        return contents, ""
    if lacking := [f"part-{i}" for i, piece in enumerate(pieces, 1) if not piece.exists()]:
        return (
            None,
            f"{len(pieces) - len(lacking)} of {len(pieces)} parts are here; still to be carried: {', '.join(lacking)}",
        )
    _join(pieces, manifest, contents)
    return contents, ""


def _join(pieces: Sequence[Path], manifest: Mapping, contents: Path) -> None:
    """Joins the pieces, compares the whole's checksum and unpacks it; `contents` is there only once it is complete."""
    archive, draft, whole = contents.with_name("archive.tar.gz"), contents.with_name("unpacking"), hashlib.sha256()
    with open(archive, "wb") as file:
        for piece in pieces:
            data = piece.read_bytes()
            whole.update(data)
            file.write(data)
    if whole.hexdigest() != manifest["sha256"]:
        raise InputError(
            f"{archive}: its checksum is not that of the manifest; delete {contents.parent} and carry all parts again"
        )
    shutil.rmtree(draft, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(draft, filter="data")
    files.write_atomically(draft / MANIFEST, json.dumps(dict(manifest), indent=1) + "\n")
    archive.unlink()
    draft.rename(contents)


def fetch_wheels(to: Path) -> None:
    """Gets wheels of PURE and COMPILED, in the versions installed here and without what they need themselves. Those of PURE are
    built here if there is only a source. Needs a package registry."""
    to.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    pure, compiled = ([f"{name}=={importlib.metadata.version(name)}" for name in names] for names in (PURE, COMPILED))
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", to, *pure], check=True)
    if special := [wheel.name for wheel in to.glob("*.whl") if not wheel.name.endswith("-none-any.whl")]:
        raise InputError(
            f"{to}: {', '.join(special)}: fits this machine alone; name its package among the compiled ones"
        )
    kind = ["--python-version", PYTHON, "--implementation", "cp", *(a for p in _PLATFORMS for a in ("--platform", p))]
    how = ["download", "--quiet", "--no-deps", "--only-binary=:all:", *kind]
    subprocess.run([*pip, *how, "--dest", to, *compiled], check=True)


def language_data() -> dict[str, Path]:
    """NLTK's data that IFEval's checks need: their names below a directory that NLTK can search, and their places here."""
    import nltk.data

    from hir_jax.checks import registry

    registry.load()  # names what is missing, and makes NLTK search the wheels that hold data
    return {f"nltk_data/{name}": Path(str(nltk.data.find(name))) for name in LANGUAGE}


def install(wheels: Path, site: Path) -> None:
    """Installs those of the wheels whose packages this Python lacks into the directory `site`, which is there only once they all
    are. The machine's own packages stay in use."""
    if site.is_dir():
        return
    lacking = []
    for wheel in sorted(wheels.glob("*.whl")):
        try:
            importlib.metadata.distribution(wheel.name.split("-")[0])
        except importlib.metadata.PackageNotFoundError:
            lacking.append(wheel)
    draft = site.with_name(site.name + ".unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    if lacking:
        how = ["install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", draft]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, *how, *lacking], check=True)
    draft.rename(site)
