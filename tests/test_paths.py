"""Names of files, local and in buckets, and what is read from URLs."""

import json
import sys

import bucket_server
import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from bucket_server import ROOT

from hir_jax import paths
from hir_jax.data import prepared, tfds_builder
from hir_jax.data.generate.tiny import witness
from hir_jax.data.native import unanswered
from hir_jax.data.rows import read_rows
from hir_jax.model.files import hf
from hir_jax.textfiles import RowError, read_json, read_text
from hir_jax.types import InputError

ROWS = [{"key": str(i), "n": i} for i in range(5)]


@pytest.fixture(scope="module", params=["gs", "memory"])
def remote(request):
    """A URL under which nothing is: in the bucket, or of another of fsspec's schemes."""
    if request.param == "memory":
        yield "memory://somewhere"
        return
    with bucket_server.serving() as port, bucket_server.proxy(port) as server, bucket_server.used_here(server.url):
        yield ROOT


@pytest.fixture
def directory(tmp_path, remote, request):
    """Saves a local directory under a URL that only this test uses."""

    def save():
        url = f"{remote}/{request.node.originalname}"
        files, place = fsspec.core.url_to_fs(url)
        for file in filter(lambda one: one.is_file(), tmp_path.rglob("*")):
            files.pipe_file(f"{place}/{file.relative_to(tmp_path)}", file.read_bytes())
        return url

    return save


def read(path):
    errors = []
    return list(read_rows(path, errors.append)), list(map(str, errors))


def test_rows_of_urls_are_those_of_files(tmp_path, directory):
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "lines.jsonl").write_text("\n".join([*lines, "{"]) + "\n")
    (tmp_path / "tables").mkdir()
    for name, part in (("a", ROWS[:3]), ("b", ROWS[3:])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), tmp_path / "tables" / f"{name}.parquet")
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(str(tmp_path / "saved"))
    url = directory()
    for name in ("lines.jsonl", "tables", "tables/b.parquet", "saved"):
        (there, wrong), (here, also) = read(f"{url}/{name}"), read(tmp_path / name)
        assert there == [(place.replace(str(tmp_path), url), row) for place, row in here] and there
        assert wrong == [error.replace(str(tmp_path), url) for error in also]
    assert len(read(f"{url}/lines.jsonl")[1]) == 1
    with pytest.raises(RowError, match=f"^{url}/absent.jsonl: cannot be read: No such file or directory"):
        read(f"{url}/absent.jsonl")
    with pytest.raises(RowError, match=f"^{url}: holds both .jsonl and .parquet files"):
        read(url)


def test_texts_of_urls(tmp_path, directory):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}\r\n')
    url = directory()
    assert read_json(f"{url}/x.json") == {"a": "é"}
    with pytest.raises(RowError, match=f"^{url}/y.txt: cannot be read: No such file or directory"):
        read_text(f"{url}/y.txt")


def test_prepared_instructions(tmp_path, directory):
    rows = [
        row
        for row, _ in witness.generate(0, 4, split="train", min_constraints=2, max_constraints=3, templates=("type1",))
    ]
    tfds_builder.write(tmp_path, "native", {"train": unanswered(rows)}, {})
    assert prepared.read(directory(), "native", "train") == rows == prepared.read(tmp_path, "native", "train")


def test_a_directory_is_filled_and_copied_back(tmp_path, remote):
    if not paths.in_bucket(remote):
        pytest.skip("of URLs, only buckets are written to")
    target = paths.at(f"{remote}/filled")
    with hf.new_directory(target) as unfinished:
        for name in ("config.json", "deep/a.bin"):
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_text(name)
        assert not target.exists()
    copy = paths.local_copy(target)
    assert sorted(str(file.relative_to(copy)) for file in copy.rglob("*.*")) == ["config.json", "deep/a.bin"]
    assert abs(paths.modified(target / "config.json") - (copy / "config.json").stat().st_mtime) <= 1
    with pytest.raises(hf.CheckpointError, match="exists and is not empty"), hf.new_directory(target):
        pass
    paths.remove(target)
    assert not target.exists()


def test_schemes_without_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r"^s3://b/x\.jsonl: cannot be opened: Install s3fs"):
        read("s3://b/x.jsonl")


@pytest.mark.parametrize("name", ["runs/a", "/x/gs:/y", "c:x", "~/a", "OWNER/NAME", "gsx:/y"])
def test_local_names_stay_local(name):
    assert not paths.is_url(name) and str(paths.at(name)) == name and paths.local_copy(name) == paths.at(name)
