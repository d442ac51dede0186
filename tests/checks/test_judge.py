"""The judge through the verifier, across deaths of either side; its cache, settings and key."""

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from judge_server import (
    KEY,
    KEY_NAME,
    YES,
    JudgeServer,
    ask,
    by_text,
    completion,
    question,
    set_environment,
    settings,
)

from hir_jax.checks import registry
from hir_jax.checks.judge.soft import SOFT, UNANSWERED, UNREADABLE, Case, JudgeError, VerdictCache, digest
from hir_jax.checks.verifier import Row, Verifier
from hir_jax.deciders import open_judge
from hir_jax.types import Constraint

NO_COMMA = Constraint("punctuation:no_comma")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    set_environment(monkeypatch)


def test_soft_is_declared_for_the_judge():
    assert registry.decider(SOFT) == "judge"
    registry.validate(Constraint(SOFT, text="anything"))
    assert registry.describe(SOFT, {}).endswith(".")


# ---- through the verifier, and across deaths of either side


def _rows(count):
    calm, rude = Constraint(SOFT, text="sound calm"), Constraint(SOFT, text="be rude")
    return [Row([NO_COMMA, calm, rude], f"Answer {n}, all told.", "Write.", f"row {n}") for n in range(count)]


def test_hard_and_soft_together_while_the_server_dies_and_comes_back(tmp_path):
    alive = 7
    served = threading.Lock()
    count = 0

    def dying(ask):
        nonlocal count
        with served:
            count += 1
            return by_text(ask) if count <= alive else None

    cache = str(tmp_path / "verdicts.sqlite")
    rows = _rows(6)
    with (
        JudgeServer(dying) as server,
        open_judge(settings(server, cache=cache, retries=0)) as judge,
        Verifier(1, 5.0, {"judge": judge}) as verifier,
    ):
        verdicts = verifier.verify(rows, 4)
        assert verifier.unknown_counts == {UNANSWERED: 5}
    assert verdicts.known[:, 0].all() and not verdicts.satisfied[:, 0].any()  # the hard ones: every answer has a comma
    known = verdicts.known[:, 1:3]
    assert (
        known.sum() == alive and (verdicts.satisfied[:, 1] == known[:, 0]).all() and not verdicts.satisfied[:, 2].any()
    )
    with JudgeServer(by_text) as server:
        with open_judge(settings(server, cache=cache)) as judge, Verifier(1, 5.0, {"judge": judge}) as verifier:
            again = verifier.verify(rows, 4)
            assert not verifier.unknown_counts
            assert judge.usage.cached == alive and judge.usage.requests == 5
        asked = {(response, text) for _, response, text in server.asked}
    assert again.known[:, :3].all() and again.satisfied[:, 1].all() and not again.satisfied[:, 2].any()
    kept = {(rows[row].response, rows[row].constraints[1 + k].text) for row, k in zip(*known.nonzero())}
    assert len(asked) == 5 and not asked & kept


def test_no_server_at_all():
    with JudgeServer(by_text) as server:
        pass
    found, usage = ask(server, question(), question("be brief"))
    assert found == [(False, UNANSWERED)] * 2 and usage.requests == 6


KILLED = """
import sys
from hir_jax.checks.judge.soft import JudgeSettings, SOFT
from hir_jax.checks.verifier import Question
from hir_jax.deciders import open_judge
from hir_jax.types import Constraint
judge = open_judge(JudgeSettings("endpoint", "grader", sys.argv[2], base_url=sys.argv[1], api_key_env="", concurrency=2))
assert "jax" not in sys.modules  # whoever asks an endpoint need not load it
judge([Question(n, 0, Constraint(SOFT, text="sound calm"), f"answer {n}", "Write.", "") for n in range(20)])
"""


def test_a_killed_process_has_kept_every_verdict_that_reached_it(tmp_path):
    """Two at a time: when the ninth request comes, at least seven answers have been read."""
    cache, let_go, nine = str(tmp_path / "c.sqlite"), threading.Event(), threading.Event()
    lock, count = threading.Lock(), 0

    def script(ask):
        nonlocal count
        with lock:
            count += 1
            number = count
        if number == 9:
            nine.set()
        if number >= 9:
            let_go.wait(60)
        return YES

    with JudgeServer(script) as server:
        process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, cache], cwd=Path(__file__).parents[2])
        assert nine.wait(60)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        let_go.set()
    questions = [question(response=f"answer {n}", prompt="Write.") for n in range(20)]
    with JudgeServer(by_text) as server:
        found, usage = ask(server, *questions, cache=cache, api_key_env="")
        assert found == [(True, "")] * 20
        assert 7 <= usage.cached <= 8 and usage.requests == 20 - usage.cached
        found, usage = ask(server, *questions, cache=cache, api_key_env="")
        assert found == [(True, "")] * 20 and (usage.cached, usage.requests) == (20, 0)


# ---- the cache


def test_the_cache_is_keyed_by_judge_and_case_and_not_by_where_the_judge_is(tmp_path):
    cache = str(tmp_path / "sub" / "c.sqlite")
    with JudgeServer(by_text) as server, JudgeServer(by_text) as moved:
        assert ask(server, cache=cache)[1].requests == 1
        assert ask(server, cache=cache, concurrency=3, timeout_seconds=9.0, price_in=1.0)[1].requests == 0
        assert ask(moved, cache=cache, api_key_env="")[1].requests == 0
        for other in ({"model": "another"}, {"temperature": 0.5}, {"max_tokens": 9}):
            assert ask(server, cache=cache, **other)[1].requests == 1
        for other in (question("be calm"), question(response="No."), question(prompt="Write.")):
            assert ask(server, other, cache=cache)[1].requests == 1


def test_unknown_verdicts_are_not_kept(tmp_path):
    with JudgeServer(lambda ask: completion("Perhaps.")) as server:
        assert ask(server, cache=str(tmp_path / "c"))[0] == [(False, UNREADABLE)]
        server.script = by_text
        assert ask(server, cache=str(tmp_path / "c"))[0] == [(True, "")]


def test_calls_at_the_same_time_ask_once():
    with JudgeServer(by_text) as server, open_judge(settings(server)) as judge, ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(judge, [[question(), question("be rude")]] * 4))
    assert all([outcome.satisfied for outcome in found] == [True, False] for found in outcomes)
    assert sorted(server.asked.values()) == [1, 1] and judge.usage.cached == 6


def test_digests_tell_parts_apart():
    assert digest("a", "bc") != digest("ab", "c") != digest("abc") and digest({"a": 1, "b": 2}) == digest(
        {"b": 2, "a": 1}
    )
    assert digest("\ud800") != digest("\ud801")


def test_a_file_that_is_no_cache_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but notes " * 50)
    with pytest.raises(JudgeError, match=r"notes.txt: cannot be used as the judge's cache"):
        VerdictCache(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text().startswith("not a database")
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE verdicts (name TEXT)").connection.close()
    with pytest.raises(JudgeError, match=r"other.sqlite: .*name another file"):
        VerdictCache(tmp_path / "other.sqlite")
    with pytest.raises(JudgeError, match=r"notes.txt.c: cannot be used"):
        VerdictCache(tmp_path / "notes.txt" / "c")


def test_two_caches_on_one_file_see_each_other(tmp_path):
    first, second = VerdictCache(tmp_path / "c"), VerdictCache(tmp_path / "c")
    first.put("k", "m", 0.25)
    assert second.get(["k", "l"]) == {"k": 0.25}
    first.close()
    second.close()


def test_a_cache_that_breaks_costs_no_verdict(tmp_path, caplog):
    with JudgeServer(by_text) as server, open_judge(settings(server, cache=str(tmp_path / "c"))) as judge:
        breaker = sqlite3.connect(tmp_path / "c")
        breaker.execute("CREATE TRIGGER full BEFORE INSERT ON verdicts BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        breaker.close()
        assert judge([question()])[0].satisfied
    assert "disk full" in caplog.text


# ---- settings and the key


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "oracle"}, "kind"), ({"model": " "}, "model"), ({"threshold": 1.0}, "threshold"),
        ({"concurrency": 0}, "concurrency"), ({"retries": -1}, "retries"), ({"dtype": "int8"}, "dtype"),
        ({"base_url": "judge.example/v1"}, "base_url"), ({"base_url": "https://me:hunter2@judge.example"}, "base_url"),
        ({"base_url": "https://judge.example/v1?key=hunter2"}, "base_url"), ({"base_url": "http://h:99999"}, "base_url"),
        ({"base_url": "http://[::1"}, "base_url"), ({"api_key_env": "NOT_SET"}, "NOT_SET"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_one_clear_error(change, message):
    with pytest.raises(JudgeError, match=message) as caught:
        open_judge(settings("http://127.0.0.1:1/v1", **change))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", ["", "  ", "two words", "schlüssel", "a\nb", "a\x7fb"])
def test_keys_that_no_header_can_hold(value, monkeypatch):
    monkeypatch.setenv(KEY_NAME, value)
    with pytest.raises(JudgeError, match=KEY_NAME) as caught:
        open_judge(settings("http://127.0.0.1:1/v1"))
    assert not value.strip() or value not in str(caught.value)


def test_the_key_is_nowhere_but_in_its_header(tmp_path, caplog, capfd):
    """Even where the server says it in every way it can, and every library logs all it has."""
    caplog.set_level(logging.DEBUG)
    echo = json.dumps({"error": {"message": f"bad key {KEY}", "code": KEY, "type": KEY}, "choices": KEY}).encode()
    headers = {"x-request-id": "1", "Content-Type": "application/json"}
    statuses = iter([400, 403, 429, 500, 200, 200, 401])

    def script(ask):
        if "calm" not in ask.constraint:
            return completion(f"{KEY}\nYES", usage=(KEY, KEY))
        return (next(statuses), headers, echo)

    outcomes, shown = [], []
    with JudgeServer(script) as server:
        with open_judge(settings(server, cache=str(tmp_path / "c"), retries=1)) as judge:
            for n in range(5):
                outcomes += judge([question("be brief", prompt=str(n))])
                outcomes += judge([question(prompt=str(n))])
            shown += [repr(judge), str(judge), repr(judge._backend), repr(judge.usage), repr(judge._backend.identity)]
            files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        shown += [repr(settings(server)), repr(outcomes)]
        assert server.keys == {f"Bearer {KEY}"}
    files |= {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert files and len(outcomes) == 10 and sum(outcome.satisfied for outcome in outcomes) == 5
    assert {outcome.reason for outcome in outcomes} == {"", UNANSWERED, UNREADABLE}
    logged = caplog.text + "".join(repr(record.__dict__) for record in caplog.records) + "".join(capfd.readouterr())
    for text in [*shown, logged, *(data.decode("latin-1") for data in files.values())]:
        assert KEY not in text and KEY[8:] not in text


def test_cases_hold_only_what_is_shown():
    assert Case._fields == ("prompt", "constraint", "response")
