"""A run's files: truncated on resume, one object a step, readable by TensorBoard; and the run that owns a directory."""

import contextlib
import errno
import json
import math
import os
import resource
import struct
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from hir_jax.run import files


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ROWS = st.lists(st.tuples(st.integers(0, 9), st.text(max_size=5)), max_size=12)


@given(rows=ROWS, last=st.integers(0, 9), cut=st.text(max_size=20).filter(lambda t: "\n" not in t))
def test_truncate_keeps_whole_rows_up_to_the_step(tmp_path_factory, rows, last, cut):
    """Truncation works for any rows and any half line that a kill leaves; repeating it changes nothing."""
    path = tmp_path_factory.mktemp("truncate") / "metrics.jsonl"
    lines = [json.dumps({"step": step, "text": text}, ensure_ascii=False) + "\n" for step, text in rows]
    path.write_text("".join(lines) + cut, encoding="utf-8", newline="\n")
    for _ in range(2):
        files.truncate_after(path, last)
        expected = "".join(line for line, (step, _) in zip(lines, rows, strict=True) if step <= last)
        assert path.read_bytes().decode() == expected


@pytest.mark.parametrize("line", ['{"step": 2, "x": 1', "{}\n", "[1]\n", "null\n", '{"step": "2"}\n', "\x00\x00\n"])
def test_truncate_drops_lines_that_are_no_rows(tmp_path, line):
    """A file system that lost its last block leaves such lines."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line)
    files.truncate_after(path, 5)
    assert path.read_text() == '{"step": 1}\n'


def test_truncate_without_a_file(tmp_path):
    files.truncate_after(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_resume_appends_after_the_last_kept_step(tmp_path):
    with files.RunFiles(tmp_path, 0, tensorboard=False, fresh=True) as run:
        for step in range(5):
            run.metrics(step, {"ila": step / 10})
            run.replays(step, [{"task": "é"}, {"task": "b"}])
            run.kept(step, {"kind:0": (step, 5)} if step != 1 else {})
    with files.RunFiles(tmp_path, 2, tensorboard=False) as run:
        run.metrics(3, {"ila": 0.9})
    assert [(r["step"], r["ila"]) for r in rows(tmp_path / "metrics.jsonl")] == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.9)]
    assert [r["step"] for r in rows(tmp_path / "replays.jsonl")] == [0, 0, 1, 1, 2, 2]
    assert rows(tmp_path / "kept.jsonl") == [{"step": step, "kept": {"kind:0": [step, 5]}} for step in (0, 2)]
    assert "é" in (tmp_path / "replays.jsonl").read_text(encoding="utf-8")
    starts = rows(tmp_path / "starts.jsonl")
    assert [start["step"] for start in starts] == [0, 2]
    assert all(start["commit"] == files.commit() and start["jax"] == jax.__version__ for start in starts)


def test_a_run_without_a_checkpoint_begins_empty(tmp_path):
    for _ in range(2):  # killed before the first checkpoint, then started again
        with files.RunFiles(tmp_path, 0, tensorboard=False, fresh=True) as run:
            run.metrics(0, {"heldout_ila": 0.5})
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 0, "heldout_ila": 0.5}]


def test_rows_are_on_disk_at_once_and_are_strict_json(tmp_path):
    """JSON has neither NaN nor infinity: both become null."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    with files.RunFiles(tmp_path, 0, tensorboard=False, fresh=True) as run:
        run.metrics(1, {"loss": math.nan, "grad_norm": math.inf, "low": -math.inf, "ila": 0.5})
        line = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    found = json.loads(line, parse_constant=refuse)
    assert found == {"step": 1, "loss": None, "grad_norm": None, "low": None, "ila": 0.5}


def events(directory):
    """(step, tag, value) from TensorBoard's record files: u64 length, u32, that many bytes, u32."""
    for path in sorted(directory.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)


def test_tensorboard_has_the_scalars(tmp_path):
    with files.RunFiles(tmp_path, 0, tensorboard=True, fresh=True) as run:
        run.metrics(0, {"heldout_ila": 0.25})
        run.metrics(1, {"ila": 0.5, "loss": -1.5})
    assert list(events(tmp_path / "tensorboard")) == [(0, "heldout_ila", 0.25), (1, "ila", 0.5), (1, "loss", -1.5)]
    with files.RunFiles(tmp_path, 0, tensorboard=True) as run:
        run.metrics(1, {"ila": 0.75})
    assert list(events(tmp_path / "tensorboard"))[-1] == (1, "ila", 0.75)


def test_whose_directory_it_is(tmp_path):
    assert files.read_config(tmp_path) is None
    files.refuse_foreign(tmp_path)
    files.refuse_other_config(tmp_path, [])
    with pytest.raises(files.RunError, match=rf"{tmp_path}.*changed: learner.kl, seed"):
        files.refuse_other_config(tmp_path, ["learner.kl", "seed"])
    (tmp_path / "metrics.jsonl").write_text("mine\n")
    with pytest.raises(files.RunError, match=r"holds metrics.jsonl but no config.json"):
        files.refuse_foreign(tmp_path)


@pytest.mark.parametrize("text", ['{"seed": 1', "[]", '"x"', "\xff"])
def test_a_broken_config_json_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(files.RunError, match=r"config\.json: "):
        files.read_config(tmp_path)


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "deep" / "file.json"
    files.write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    files.write_atomically(path, "new")
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "far").mkdir()
    there, link = tmp_path / "far" / "file", tmp_path / "link"
    link.symlink_to(tmp_path / "second")
    (tmp_path / "second").symlink_to("far/file")
    for text in ("one", "two"):  # at first the link points to nothing
        files.write_atomically(link, text)
        assert link.is_symlink() and there.read_text() == text
    os.link(there, tmp_path / "old")
    files.write_atomically(link, ["th", "ree"])
    assert (there.read_text(), (tmp_path / "old").read_text()) == ("three", "two")  # a new file, not overwritten
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["far", "file", "link", "old", "second"]


def test_permissions_stay_and_names_may_be_long(tmp_path):
    path = tmp_path / ("n" * 255)
    files.write_atomically(path, "one")
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    path.chmod(0o640)
    files.write_atomically(path, "two")
    assert path.read_text() == "two" and path.stat().st_mode & 0o777 == 0o640


def umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


def test_text_goes_into_pipes_and_devices(tmp_path):
    fifo, found = tmp_path / "fifo", []
    os.mkfifo(fifo)
    assert files.is_stream(fifo) and files.is_stream("/dev/null")
    assert not any(map(files.is_stream, (tmp_path, tmp_path / "none", __file__)))
    for path in (fifo, tmp_path / "link"):
        reader = threading.Thread(target=lambda: found.append(fifo.read_text()))
        reader.start()
        files.write_jsonl(path, [{"a": 1}, {"a": 2}])
        reader.join()
        with contextlib.suppress(FileExistsError):
            (tmp_path / "link").symlink_to(fifo)
    assert found == ['{"a": 1}\n{"a": 2}\n'] * 2 and fifo.is_fifo()
    (tmp_path / "null").symlink_to("/dev/null")
    files.write_atomically(tmp_path / "null", "gone")
    assert (tmp_path / "null").is_char_device()
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        files.write_atomically("/dev/full", "text")
    with pytest.raises(IsADirectoryError):
        files.write_atomically(tmp_path, "text")


@pytest.mark.parametrize("to_file", [False, True])
def test_standard_output_by_its_name(tmp_path, to_file):
    """Also if standard output is a file, to which other output is printed before and after."""
    code = "from hir_jax.run import files; print('before'); files.write_atomically('/dev/stdout', 'rows\\n'); print('after')"
    with open(tmp_path / "out", "wb") as out:
        to = out if to_file else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", code], stdout=to, check=True)
    assert (done.stdout or (tmp_path / "out").read_bytes()) == b"before\nrows\nafter\n"


@contextlib.contextmanager
def no_file_beyond(size):
    """Writes beyond `size` bytes of a file fail with EFBIG, like writes to a full disk with ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_error_that_names_the_file(tmp_path, capfd):
    files.write_atomically(tmp_path / "file", "old")
    with no_file_beyond(100), pytest.raises(OSError, match=f"File too large: '{tmp_path / 'file'}'"):
        files.write_atomically(tmp_path / "file", "x" * 1000)
    assert (tmp_path / "file").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]
    for tensorboard, name in ((False, "metrics.jsonl"), (True, "tensorboard")):
        run, step = tmp_path / str(tensorboard), 0
        with (
            no_file_beyond(1000 if tensorboard else 200),
            pytest.raises(OSError, match="File too large") as caught,
            files.RunFiles(run, 0, tensorboard=tensorboard, fresh=True) as found,
        ):
            for step in range(100):
                found.metrics(step, {"": 0.5} if tensorboard else {"ila": 0.5})
        assert caught.value.errno == errno.EFBIG and caught.value.filename == str(run / name)
        assert 1 < step < 100
    assert capfd.readouterr() == ("", "")


def test_tensorboard_has_histograms_and_replays_as_texts(tmp_path):
    row = {"task": "Write.", "response": "a, b", "rewritten": "Write. Be short.", "constraints": [
        {"text": "Be short.", "satisfied": True}, {"text": "Use no commas.", "satisfied": False}]}  # fmt: skip
    with files.RunFiles(tmp_path, 0, tensorboard=True, fresh=True) as run:
        run.distributions(3, {"samples/cla": np.array([0.0, 0.5, 0.5]), "replays/integrity": np.zeros(0)}, [row])
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, at, found = path.read_bytes(), 0, {}
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        for value in Event.FromString(data[at + 12 : at + 12 + length]).summary.value:
            found[value.tag] = value
        at += length + 16
    assert found["samples/cla"].histo.num == 3 and found["samples/cla"].histo.sum == 1.0
    text = found["replay/0/text_summary"].tensor.string_val[0].decode()
    assert "NOT met: Use no commas." in text and "met: Be short." in text and "a, b" in text
    assert "replays/integrity" not in found


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with files.RunFiles(tmp_path, 0, tensorboard=False, fresh=True, wandb="hir", config={"seed": 3}) as run:
        run.metrics(1, {"ila": 0.5, "loss": float("nan")})
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
