"""Gives path objects for names: local ones and `gs://BUCKET/...`. All rooms that open files use it.

A local name gives pathlib.Path, a name in a bucket epath.Path of etils, which Orbax and TFDS use too and which has the methods of
pathlib that are used here. Under epath are fsspec and gcsfs. The first use of a bucket asks for it, so that a bucket that does
not exist, may not be read or cannot be reached is one message at the start. A bucket has no directories: a directory is there
once an object in it is.

The environment variable STORAGE_EMULATOR_HOST names another server than Google's.
"""

from __future__ import annotations

import atexit
import errno
import functools
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING

from hir_jax.types import InputError

if TYPE_CHECKING:
    from google.cloud import storage

REACH_SECONDS = 30.0  # for the first answer of a bucket; its client tries again until then
_FAILURES = (  # what the clients raise that is no OSError; looked up where they are loaded, as they are slow to import
    ("google.api_core.exceptions", "GoogleAPIError"), ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"), ("aiohttp", "ClientError"),
)  # fmt: skip


def is_url(name: str | os.PathLike[str]) -> bool:
    """Whether a name begins with a scheme, as in gs://bucket/name. Raises InputError for gs: without two slashes, which would be
    the name of a local directory."""
    if re.match("gs:(?!//)", os.fspath(name)):
        raise InputError(f"{name}: the name of a bucket begins with gs://")
    return re.match(r"[A-Za-z][\w+.-]*://", os.fspath(name)) is not None


def in_bucket(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).startswith("gs://")


def at(name: str | os.PathLike[str]) -> Path:
    """The path of a name; a path object is returned as it is. Raises InputError for a bucket that cannot be used and for URLs
    of other schemes, which only data may have (`open_bytes`)."""
    if isinstance(name, PurePath):
        return name
    if not is_url(name):
        return Path(name)
    if not in_bucket(name):
        raise InputError(f"{name}: give a local path or one in a Cloud Storage bucket, gs://BUCKET/NAME")
    require_bucket(name.removeprefix("gs://").partition("/")[0])
    from etils import epath

    return epath.Path(name.rstrip("/"))


def local(name: str | os.PathLike[str]) -> Path:
    """The path of a name that must be a local one. Raises InputError for a URL."""
    if is_url(name):
        raise InputError(f"{name}: a local path is needed here, not a URL")
    return Path(name)


# ---- buckets


@functools.cache
def client() -> storage.Client:
    """The process's client of Cloud Storage, for writes with preconditions; reads go through epath."""
    from google.cloud import storage

    return storage.Client()


@functools.cache
def require_bucket(bucket: str) -> None:
    """Raises InputError unless the bucket answers. Sets up the packages that read it."""
    where = f"gs://{bucket}"
    # gcsfs asks for the kind of a bucket before each file, which takes a further permission; Orbax has its own way
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec
        import gcsfs  # noqa: F401  so that a missing package shows here
        from google.api_core import exceptions
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud.storage.retry import DEFAULT_RETRY
    except ImportError as error:
        raise InputError(
            f"{where}: buckets need a package that is not here ({error.name}): pip install gcsfs"
        ) from None
    # What they log is raised, too; retries are not worth a warning.
    for talkative, level in (
        ("fsspec", "WARNING"),
        ("gcsfs", "CRITICAL"),
        ("urllib3", "ERROR"),
        ("google.auth", "ERROR"),
    ):
        logging.getLogger(talkative).setLevel(level)
    for scheme in ("gcs", "gs"):
        fsspec.register_implementation(scheme, _file_system(), clobber=True)
    # Lists are asked for anew: tensorstore and other processes write there too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    credentials = (
        "GOOGLE_APPLICATION_CREDENTIALS names a key file, `gcloud auth application-default login` makes one, and a VM has its "
        "service account"
    )
    try:
        client().get_bucket(bucket, timeout=REACH_SECONDS / 3, retry=DEFAULT_RETRY.with_timeout(REACH_SECONDS))
    except exceptions.NotFound:
        raise InputError(f"{where}: no such bucket; make it with `gcloud storage buckets create {where}`") from None
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise InputError(
            f"{where}: no permission ({reason(error)}). The account needs the roles storage.objectUser and "
            f"storage.legacyBucketReader on the bucket; {credentials}"
        ) from None
    except DefaultCredentialsError:
        raise InputError(f"{where}: no credentials were found: {credentials}") from None
    except (OSError, *failures()) as error:
        raise InputError(f"{where}: the bucket cannot be reached: {reason(error)}") from None


@functools.cache
def _file_system() -> type:
    """The class by which fsspec, so also epath and Orbax, uses Cloud Storage: that of gcsfs, except that a deletion whose answer
    was lost succeeds. gcsfs deletes again, finds nothing, and reports that nothing was there."""
    import fsspec
    from fsspec.asyn import sync_wrapper

    class FileSystem(fsspec.get_filesystem_class("gcs")):
        async def _rm(self, path, recursive=False, **options):
            there = await self._exists(path)
            try:
                return await super()._rm(path, recursive=recursive, **options)
            except FileNotFoundError:
                if not there:
                    raise
                return []

        rm = sync_wrapper(_rm)

    return FileSystem


def failures() -> tuple[type[Exception], ...]:
    """The exceptions of the clients that are loaded, besides OSError; for an `except`."""
    return tuple(getattr(sys.modules[module], name) for module, name in _FAILURES if module in sys.modules)


def reason(error: Exception) -> str:
    """The system's message or the first line of a client's, at most 200 characters."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """What a client of buckets raises inside becomes an OSError with an errno that names `path`."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from error
    except (OSError, *failures()) as error:
        if getattr(error, "errno", None):
            raise
        code = errno.EACCES if getattr(error, "code", None) in (401, 403) else errno.EIO
        raise OSError(code, reason(error), os.fspath(path)) from error


# ---- reading


def open_bytes(name: str | os.PathLike[str]) -> IO[bytes]:
    """A file opened for reading: local, in a bucket, or a URL of any scheme that fsspec has a package for. Raises OSError,
    and InputError where that package is missing."""
    if not is_url(name):
        return open(name, "rb")
    if in_bucket(name):
        path = at(name)
        with named(path):
            return path.open("rb")
    files, place = _filesystem(os.fspath(name))
    with named(name):
        return files.open(place, "rb")


def _filesystem(url: str):
    """(fsspec's file system of a URL, the name in it). Raises InputError for a scheme that is unknown or lacks its package."""
    if in_bucket(url):
        at(url)
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"{url}: cannot be opened: {reason(error)}") from None


@functools.cache
def _copies() -> Path:
    directory = tempfile.mkdtemp(prefix="hir_jax_")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


@functools.cache
def local_copy(name: str | os.PathLike[str]) -> Path:
    """A local copy of the directory or file of a URL, for libraries that read local files alone; a local path is returned as it
    is. Copies have the originals' times, lie in TMPDIR and are removed when the process ends. Raises OSError and InputError as
    `open_bytes`; if there is nothing at the URL, there is nothing at the path."""
    if not is_url(name):
        return Path(name)
    name = os.fspath(name)
    files, place = _filesystem(name)
    root = _copies() / name.partition("://")[0]
    with named(name):
        for one, found in files.find(place, detail=True).items():
            copy = root / one.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(one, str(copy))
            if isinstance(found.get("mtime"), datetime):
                os.utime(copy, (found["mtime"].timestamp(),) * 2)
    return root / place.strip("/")


def modified(path: Path) -> float:
    """The time at which a file was last written, in seconds since 1970."""
    found = path.stat()
    return found.mtime if in_bucket(path) else found.st_mtime


def remove(directory: Path) -> None:
    """Removes a directory with all that is in it, if it is there."""
    if directory.exists():
        directory.rmtree() if in_bucket(directory) else shutil.rmtree(directory)
