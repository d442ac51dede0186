"""Writes objects in a bucket: whole ones under a precondition on their generation, and files that grow, from local copies.

A write succeeds only if the object is still the one that this process last saw (or is absent, as it then was), so that of two
runs in one directory the one that lost the lock cannot write over the other's files.
"""

from __future__ import annotations

import base64
import io
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, NamedTuple

from hir_jax import paths
from hir_jax.types import InputError

log = logging.getLogger(__name__)

# A file that has grown is put up whole: not more often than once a second, which is Cloud Storage's limit for an object, and
# a large one not more often than this rate allows, because a bucket bills what was overwritten for seven days more (its soft
# deletion, on by default).
_EVERY_SECONDS, _BYTES_PER_SECOND = 1.0, 1e5


class ChangedError(InputError):
    """Another process has written an object since this one last saw it."""


class Found(NamedTuple):
    """What an object is now: its generation, its last write by the server's clock, and its CRC32C in base64."""

    generation: int
    updated: datetime
    crc32c: str


class Object:
    """An object of a bucket. `put` and `delete` ask that it is still as `look`, `read` or `put` last saw it; first: absent.

    All methods raise OSError that names the path; `put` also raises ChangedError.
    """

    def __init__(self, path: Path):
        self.path, self.generation = path, 0
        self._bucket, _, self._name = os.fspath(path).removeprefix("gs://").partition("/")

    def _handle(self):
        # A new one each time: one that knows a generation asks for that one alone.
        return paths.client().bucket(self._bucket).blob(self._name)

    def look(self) -> Found | None:
        with paths.named(self.path):
            found = paths.client().bucket(self._bucket).get_blob(self._name)
        self.generation = found.generation if found else 0
        return found and Found(found.generation, found.updated, found.crc32c)

    def read(self) -> tuple[Found, bytes] | None:
        """The object and its content, None if there is none."""
        from google.api_core import exceptions

        while found := self.look():
            # what is not found was replaced or deleted meanwhile
            with paths.named(self.path), suppress(exceptions.NotFound, exceptions.PreconditionFailed):
                return found, self._handle().download_as_bytes(if_generation_match=found.generation)
        return None

    def put(self, content: IO[bytes], size: int) -> Found:
        """Writes the first `size` bytes of a file as the whole object."""
        from google.api_core import exceptions
        from google.cloud.storage.retry import DEFAULT_RETRY

        with paths.named(self.path):
            handle = self._handle()
            try:
                handle.upload_from_file(
                    content, rewind=True, size=size, if_generation_match=self.generation, retry=DEFAULT_RETRY
                )
            except exceptions.PreconditionFailed:
                # An earlier attempt may have arrived, though its answer was lost.
                seen, found = self.generation, self.look()
                if not found or found.crc32c != _crc32c(content, size):
                    self.generation = seen
                    raise ChangedError(f"{self.path}: another process has written it meanwhile") from None
                return found
        self.generation = handle.generation
        return Found(handle.generation, handle.updated, handle.crc32c)

    def put_bytes(self, content: bytes) -> Found:
        return self.put(io.BytesIO(content), len(content))

    def delete(self) -> None:
        """Deletes the object if it is still as last seen."""
        from google.api_core import exceptions

        with paths.named(self.path), suppress(exceptions.NotFound, exceptions.PreconditionFailed):
            self._handle().delete(if_generation_match=self.generation)


def _crc32c(content: IO[bytes], size: int) -> str:
    import google_crc32c

    content.seek(0)
    return base64.b64encode(google_crc32c.Checksum(content.read(size)).digest()).decode()


def replace(path: Path, content: bytes) -> None:
    """Writes an object whole, whether or not there is one. Raises OSError, and ChangedError if another process writes it too."""
    one = Object(path)
    one.look()
    one.put_bytes(content)


def put_directory(local: Path, remote: Path) -> None:
    """Puts all files of a local directory into an empty directory of a bucket, those named *config.json last: a directory without
    them is not complete."""
    files = [file for file in local.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: (file.name.endswith("config.json"), file)):
        with file.open("rb") as content:
            Object(remote / file.relative_to(local).as_posix()).put(content, file.stat().st_size)


class Mirror:
    """A temporary local directory, `local`, whose files only grow, and a thread that puts them up into one of a bucket.

    Writes go to local files, so a step waits for no upload; the thread puts up whole files, whichever steps they then hold.
    `put_up` waits until all that was written is there. The files `names` are fetched at first. Use as a context manager.
    """

    def __init__(self, remote: Path, names: Iterable[str]):
        self._remote, self._directory = remote, tempfile.TemporaryDirectory(prefix="hir_jax_")
        self.local = Path(self._directory.name)
        self._objects: dict[Path, Object] = {}
        # The size that is up, and the time from which the file may be put up again
        self._up: dict[Path, tuple[int, float]] = {}
        for name in names:
            self._fetch(self.local / name)
        self._busy, self._ended = threading.Lock(), threading.Event()
        self._changed: ChangedError | None = None
        threading.Thread(target=self._work, name="bucket", daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, *_):
        try:
            if not isinstance(error, OSError):  # else the bucket may be what failed
                self.put_up()
        except (OSError, ChangedError) as own:
            if kind is None:
                raise
            log.warning("%s", own)  # what ended the run is raised
        finally:
            with self._busy:
                self._ended.set()
                self._directory.cleanup()

    def _object(self, file: Path) -> Object:
        if file not in self._objects:
            self._objects[file] = Object(self._remote / file.relative_to(self.local).as_posix())
        return self._objects[file]

    def _fetch(self, file: Path) -> None:
        if seen := self._object(file).read():
            self._up[file] = file.write_bytes(seen[1]), 0.0

    def check(self) -> None:
        """Raises ChangedError if another process writes these files, too."""
        if self._changed:
            raise self._changed

    def put_up(self, due: float = math.inf) -> None:
        """Puts up all that was written so far and returns when it is there. Raises OSError, and ChangedError.

        due: only files that may be put up at this time."""
        with self._busy:
            # none after the end; a name with a dot is a draft of `write_atomically`
            for file in sorted(one for one in self.local.rglob("[!.]*") if one.is_file()):
                size, (before, after) = file.stat().st_size, self._up.get(file, (None, 0.0))
                if size != before and after <= due:
                    with file.open("rb") as content:
                        self._object(file).put(content, size)
                    self._up[file] = size, time.monotonic() + size / _BYTES_PER_SECOND

    def _work(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            try:
                self.put_up(time.monotonic())
            except ChangedError as error:
                self._changed = error
                return
            except OSError as error:
                log.warning("%s; it is tried again, at the latest at the next checkpoint", error)
