"""Objects, growing files and the lock of a run in a bucket, against fake-gcs-server."""

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import bucket_server
import jax
import pytest
from bucket_server import ROOT

from hir_jax import bucket, pathflags, paths
from hir_jax.bucket import ChangedError, Mirror, Object
from hir_jax.eval.responses import RefusedError, check_output
from hir_jax.run import files, lock
from hir_jax.run.checkpoints import Checkpoints
from hir_jax.run.files import RunError
from hir_jax.textfiles import read_jsonl
from hir_jax.types import InputError


@pytest.fixture(scope="module")
def port():
    with bucket_server.serving() as port:
        yield port


@pytest.fixture(params=["sound", "one request in ten fails"])
def server(request, port):
    mishap = bucket_server.every_tenth() if request.param != "sound" else lambda method, path: None
    with bucket_server.proxy(port, mishap) as found, bucket_server.used_here(found.url):
        yield found


class State(NamedTuple):
    params: jax.Array


def empty(request):
    """A directory of the bucket that only this test uses."""
    return paths.at(f"{ROOT}/{re.sub('[^a-z]+', '-', request.node.name)}")


@pytest.fixture
def there(server, request):
    return empty(request)


def test_a_write_asks_that_the_object_is_as_last_seen(there):
    mine, other = Object(there / "x"), Object(there / "x")
    assert mine.read() is None
    mine.put_bytes(b"one")
    with pytest.raises(ChangedError, match="another process has written it"):
        other.put_bytes(b"two")
    assert other.read()[1] == b"one"
    other.put_bytes(b"two")
    with pytest.raises(ChangedError):
        mine.put(io.BytesIO(b"three, not all"), 5)
    mine.look()
    mine.put(io.BytesIO(b"three, not all"), 5)
    assert (there / "x").read_bytes() == b"three"
    mine.delete()
    assert not (there / "x").exists() and mine.read() is None


def test_a_large_file_is_put_up_to_the_size_asked_for(there):
    """Above 8 MB the client uploads in another way."""
    content = os.urandom(9_000_000)
    mine = Object(there / "x")
    mine.put(io.BytesIO(content), len(content) - 1)
    mine.put(io.BytesIO(content), len(content))
    assert (there / "x").read_bytes() == content


def test_an_output_may_be_in_a_bucket_and_is_no_input(there):
    check_output(there / "x.jsonl", ["y.jsonl", f"{there}/z.jsonl"])
    with pytest.raises(RefusedError, match="must not be one of the input files"):
        check_output(there / "x.jsonl", ["y.jsonl", f"{there}/x.jsonl"])


def test_files_are_written_whole(there):
    for text in ("old\n", ["of ", "parts\n"]):
        files.write_atomically(there / "deep" / "x.txt", text)
        assert (there / "deep" / "x.txt").read_text() == "".join(text)
    files.write_jsonl(there / "rows.jsonl", [{"a": "é"}])
    assert [row for _, row in read_jsonl(there / "rows.jsonl")] == [{"a": "é"}]
    assert there.is_dir() and {path.name for path in there.iterdir()} == {"deep", "rows.jsonl"}


def test_a_directory_is_removed_though_the_answer_is_lost(port, request):
    """The client deletes again what is gone by then, and takes that for an error; a run's next checkpoint replaces the remains
    of an unfinished one in this way."""
    lost = []

    def mishap(method, path):
        if method != "DELETE" or lost:
            return None
        lost.append(path)
        return "lose"

    with bucket_server.proxy(port, mishap) as faulty, bucket_server.used_here(faulty.url):
        directory = empty(request) / "6"
        (directory / "a").write_text("remains")
        with Checkpoints(directory.parent, keep=1) as saved:
            saved.save(6, State(jax.numpy.ones(3)), {"step": 6})
            saved.wait()
            assert lost and saved.steps() == [6]
        assert not (directory / "a").exists()
        with pytest.raises(FileNotFoundError):
            (directory.parent / "7").rmtree()


def steps(path):
    return [row["step"] for _, row in read_jsonl(path)]


def test_growing_files_are_put_up_and_fetched_again(there):
    def write(step, fresh=False):
        with files.RunFiles(there, step, tensorboard=True, fresh=fresh) as run:
            for at in range(step + 1, step + 4):
                run.replays(at, [{"text": "x"}])
                run.metrics(at, {"ila": 0.5})
            run.put_up()
            return steps(there / "metrics.jsonl")

    assert write(0, fresh=True) == [1, 2, 3]
    time.sleep(1)  # a file of events has the second in its name
    assert write(2) == [1, 2, 3, 4, 5]  # rows after step 2 are dropped
    assert steps(there / "replays.jsonl") == [1, 2, 3, 4, 5]
    assert len([path for path in (there / "tensorboard").iterdir() if path.stat().length > 0]) == 2


def test_steps_do_not_wait_for_uploads_which_join_them(port, request):
    going_on = threading.Event()

    def mishap(method, path):
        return going_on if method == "POST" and "metrics" in path else None

    with bucket_server.proxy(port, mishap) as found, bucket_server.used_here(found.url):
        there = empty(request)

        def uploads():
            return sum(method == "POST" and "metrics" in path for method, path in found.seen)

        with files.RunFiles(there, 0, tensorboard=False) as run:
            run.metrics(1, {})
            while not uploads():
                time.sleep(0.01)
            for step in range(2, 200):
                run.metrics(step, {})
            assert not (there / "metrics.jsonl").exists()
            going_on.set()
        assert steps(there / "metrics.jsonl") == list(range(1, 200)) and uploads() == 2


def test_a_run_that_lost_its_directory_writes_over_nothing(there):
    with pytest.raises(ChangedError), files.RunFiles(there, 0, tensorboard=False) as run:
        run.metrics(1, {})
        run.put_up()
        bucket.replace(there / "metrics.jsonl", b'{"step": 7}\n')
        run.metrics(2, {})
    assert (there / "metrics.jsonl").read_bytes() == b'{"step": 7}\n'


def test_a_bucket_that_stops_answering_loses_no_rows(port, request):
    down = []
    with (
        bucket_server.proxy(port, lambda method, path: "forbid" if down else None) as found,
        bucket_server.used_here(found.url),
        Mirror(there := empty(request), []) as mirror,
    ):
        (mirror.local / "x").write_bytes(b"one")
        down.append(True)
        with pytest.raises(OSError, match=f"403 .*: '{there}/x'"):
            mirror.put_up()
        down.clear()
        mirror.put_up()
        assert (there / "x").read_bytes() == b"one"


# ---- the lock


HOLD = """
import sys
from hir_jax import paths
from hir_jax.run import lock
lock.BEAT_SECONDS = 0.2
lock._machine = lambda: sys.argv[2]
with lock.held(paths.at(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold(there, monkeypatch):
    """Starts another process that holds the directory, on a machine of the name given, until its stdin is closed."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lock, "SILENT_SECONDS", 3.0)
    monkeypatch.setattr(lock, "_machine", lambda: "here")
    started = []

    def start(machine):
        command = [sys.executable, "-c", HOLD, str(there), machine]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


@pytest.mark.parametrize("machine", ["here", "elsewhere"])
def test_the_second_is_refused_until_the_first_has_ended(there, hold, machine):
    first = hold(machine)
    with (
        pytest.raises(RunError, match=rf"{there}: a run is under way there \(process {first.pid} on "),
        lock.held(there),
    ):
        pass
    first.communicate("")
    assert not (there / lock.NAME).exists()
    with lock.held(there):
        assert json.loads((there / lock.NAME).read_text())["pid"] == os.getpid()
    assert not (there / lock.NAME).exists() and not there.exists()


@pytest.mark.parametrize("machine", ["here", "elsewhere"])
def test_after_a_kill_the_next_takes_over(there, hold, machine):
    hold(machine).kill()
    with lock.held(there) as mine:
        assert json.loads((there / lock.NAME).read_text())["pid"] == os.getpid()
        mine.check()


def test_of_many_that_start_together_one_gets_it(there, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    got, ended = [], threading.Barrier(8)

    def go():
        try:
            with lock.held(there):
                got.append(True)
                ended.wait()
        except RunError:
            ended.wait()

    threads = [threading.Thread(target=go) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert got == [True]


def test_a_holder_that_lost_the_lock_is_told(there, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    with lock.held(there) as mine:
        owner = json.dumps({"host": "elsewhere", "pid": 1, "token": "theirs"})
        while True:  # a beat may come in between
            try:
                bucket.replace(there / lock.NAME, owner.encode())
                break
            except ChangedError:
                continue
        with pytest.raises(RunError, match="process 1 on elsewhere"):
            while True:
                mine.check()
                time.sleep(0.01)
    assert json.loads((there / lock.NAME).read_text())["token"] == "theirs"


# ---- refusals


def test_a_bucket_that_is_only_readable(port, request):
    with (
        bucket_server.proxy(port, lambda method, path: "forbid" if method == "POST" else None) as found,
        bucket_server.used_here(found.url),
        pytest.raises(PermissionError, match=f"403 .*no permission of this account.*'{empty(request)}/{lock.NAME}'"),
        lock.held(empty(request)),
    ):
        pass


def refused(url, words, name=f"{ROOT}/run"):
    with bucket_server.used_here(url), pytest.raises(InputError, match=f"^{words}"):
        paths.at(name)


def test_a_bucket_that_cannot_be_used_is_one_message(port, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with bucket_server.proxy(port) as found:
        refused(found.url, "gs://no-such: no such bucket; make it with `gcloud storage buckets", "gs://no-such/run")
    with bucket_server.proxy(port, lambda *_: "forbid") as found:
        refused(found.url, f"{ROOT}: no permission .*no permission of this account.* storage.objectUser")
    monkeypatch.setattr(paths, "REACH_SECONDS", 1.0)
    refused("http://127.0.0.1:9", f"{ROOT}: the bucket cannot be reached: .*Connection refused|{ROOT}: .*Max retries")
    with bucket_server.used_here("http://127.0.0.1:9"), monkeypatch.context() as without:
        for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
            without.delenv(name, raising=False)
        without.setenv("CLOUDSDK_CONFIG", str(tmp_path))
        with pytest.raises(InputError, match=f"^{ROOT}: no credentials were found: GOOGLE_APPLICATION_CREDENTIALS"):
            paths.at(f"{ROOT}/run")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    refused("http://127.0.0.1:9", f"{ROOT}: buckets need a package that is not here .gcsfs.: pip install gcsfs")
    assert not list(tmp_path.iterdir())


def test_urls_that_no_run_can_be_in():
    with pytest.raises(InputError, match="s3://b/run: give a local path or one in a Cloud Storage bucket"):
        paths.at("s3://b/run")
    with pytest.raises(InputError, match="gs:/b/run: the name of a bucket begins with gs://"):
        paths.at("gs:/b/run")
    with pytest.raises(InputError, match="gs://b/data: a local path is needed here"):
        paths.local("gs://b/data")
    with pytest.raises(ValueError, match="gs://b/data: a local path is needed here"):
        pathflags._Path(local=True).parse("gs://b/data")
    with pytest.raises(InputError, match="nonsense://b/x: cannot be opened: Protocol not known: nonsense"):
        paths.open_bytes("nonsense://b/x")
