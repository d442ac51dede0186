"""A real HTTP server on loopback that answers as an OpenAI-compatible endpoint would, or as it should not; and judges
that ask it."""

import contextlib
import json
import re
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from hir_jax.checks.judge.soft import SOFT, JudgeSettings
from hir_jax.checks.verifier import Question
from hir_jax.eval.verifiers import open_judge
from hir_jax.types import Constraint

PATH = "/v1/chat/completions"
KEY_NAME, KEY = "JUDGE_TEST_KEY", "sk-test-5fQ9-never-to-be-seen"


def completion(content, finish="stop", usage=(100, 10), **extra):
    """The body of a chat completion."""
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if usage else None
    message = {"role": "assistant", "content": content}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": counts,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}]} | extra  # fmt: skip


class Ask:
    """One request as the server sees it: the three texts of the question, and how often it was asked before."""

    def __init__(self, headers, body, before):
        self.headers, self.body, self.before = headers, body, before
        self.prompt, self.response, self.constraint = texts(body)


def texts(body):
    """(request, response, requirement) of a question, by its marked lines; "" for one that it has not."""
    question = body["messages"][1]["content"]
    found = [
        re.search(rf"^=== {name} (\w+)\n(.*?)\n=== end of {name} \1$", question, re.DOTALL | re.MULTILINE)
        for name in ("request", "response", "requirement")
    ]
    return [match.group(2) if match else "" for match in found]


def _size(content):
    return len(content) if isinstance(content, bytes) else 0


class JudgeServer:
    """`script(ask)` says what to do: a dict (sent as JSON), bytes (sent as they are), (status, headers, body; a body may come in
    parts, from an iterator, and then needs a Content-Length), or None
    (the connection is cut). It runs in the request's thread and may wait on events.

    asked: number of requests by (request, response, requirement); open, most_open: requests at a time; keys: the
    Authorization headers that came.
    """

    def __init__(self, script):
        self.script = script
        self.asked = Counter()
        self.keys = set()
        self.bodies = []
        self.open = self.most_open = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                with contextlib.suppress(ConnectionError):  # the client may be gone
                    outer._serve(self)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass  # clients that are killed are part of the tests

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.die()

    def die(self):
        """No connection is accepted any more; those under way may end."""
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        question = tuple(texts(body))
        with self._lock:
            ask = Ask(handler.headers, body, self.asked[question])
            self.asked[question] += 1
            self.keys.add(handler.headers["Authorization"])
            self.bodies.append((handler.path, body))
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        try:
            action = self.script(ask)
        finally:
            with self._lock:
                self.open -= 1
        if action is None:
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        if isinstance(action, dict):
            action = json.dumps(action).encode()
        status, headers, content = action if isinstance(action, tuple) else (200, {}, action)
        handler.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": _size(content)} | headers).items():
            handler.send_header(name, str(value))
        handler.end_headers()
        for part in [content] if isinstance(content, bytes) else content:
            handler.wfile.write(part)
            handler.wfile.flush()


YES, NO = completion("It is.\nYES"), completion("It is not.\nNO")


def by_text(ask):
    """A script that likes calm."""
    return YES if "calm" in ask.constraint else NO


def set_environment(monkeypatch):
    """A key, no proxies, and no certificates, which each client would load anew (0.1 s)."""
    monkeypatch.setenv(KEY_NAME, KEY)
    monkeypatch.setenv("SSL_CERT_DIR", str(Path(__file__).parent))
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def settings(server, **changes):
    defaults = {
        "kind": "endpoint", "model": "grader", "base_url": getattr(server, "url", server), "retries": 2,
        "api_key_env": KEY_NAME, "backoff_seconds": 0.01, "timeout_seconds": 20.0, "deadline_seconds": 60.0,
    }  # fmt: skip
    return JudgeSettings(**(defaults | changes))


def question(text="sound calm", response="All is well.", prompt="Write a note.", row=0, position=0):
    return Question(row, position, Constraint(SOFT, text=text), response, prompt, f"row {row}")


def ask(server, *questions, **changes):
    """(satisfied, reason) for each question, and the judge's usage."""
    questions = questions or (question(),)
    questions = [one._replace(row=row) for row, one in enumerate(questions)]
    with open_judge(settings(server, **changes)) as judge:
        outcomes = sorted(judge(questions))
        assert [outcome.row for outcome in outcomes] == list(range(len(questions)))
        return [(outcome.satisfied, outcome.reason) for outcome in outcomes], judge.usage
