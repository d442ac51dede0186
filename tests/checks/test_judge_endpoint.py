"""The judge behind HTTP, against a real server that lies about the format, fails, rate-limits, hangs and drips."""

import json
import threading
import time

import pytest
from judge_server import KEY, NO, PATH, YES, JudgeServer, ask, by_text, completion, question, set_environment

from hir_jax.checks.judge import endpoint as judge_endpoint
from hir_jax.checks.judge.soft import UNANSWERED, UNREADABLE
from hir_jax.checks.worker import BAD_ARGUMENTS


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    set_environment(monkeypatch)


# ---- the form of questions and answers


def test_verdicts_and_what_is_sent():
    with JudgeServer(by_text) as server:
        found, usage = ask(
            server, question(), question("be rude"), question(response=" \n"), question(" "),
            price_in=2.0, price_out=5.0,
        )  # fmt: skip
    # a blank response meets nothing, and a constraint without text cannot be judged: neither is sent
    assert found == [(True, ""), (False, ""), (False, ""), (False, BAD_ARGUMENTS)]
    assert (usage.requests, usage.cached, usage.prompt_tokens, usage.completion_tokens) == (2, 0, 200, 20)
    assert usage.cost == pytest.approx((200 * 2 + 20 * 5) / 1e6)
    assert set(server.asked) == {("Write a note.", "All is well.", text) for text in ("sound calm", "be rude")}
    assert server.keys == {f"Bearer {KEY}"}
    path, body = server.bodies[0]
    assert (path, body["model"], body["temperature"]) == (PATH, "grader", 0.0)
    assert "max_tokens" not in body and not body.get("stream")


def test_options_that_some_models_refuse_are_not_sent():
    with JudgeServer(by_text) as server:
        ask(server, temperature=-1.0, max_tokens=50)
    assert "temperature" not in server.bodies[0][1] and server.bodies[0][1]["max_tokens"] == 50


def test_equal_questions_are_asked_once():
    with JudgeServer(by_text) as server:
        found, usage = ask(server, question(), question("be rude"), question(), question())
    assert found == [(True, ""), (False, ""), (True, ""), (True, "")]
    assert usage.requests == sum(server.asked.values()) == 2


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("YES", 1.0), ("NO", 0.0), ("Because.\n\nYES\n", 1.0), ("YES\nor rather\n NO \n\n", 0.0),
        ("", None), (" \n ", None), ("yes", 1.0), ("YES.", 1.0), ("**YES**", 1.0), ("The answer is YES", None),
        ("YES\nThat is all.", None), ("YES NO", None), ("NOT", None), ("YES\x00", None),
        ("<think>\nYES?\n</think>\nIt is rude.\n\n**No.**", 0.0), ("<THINK>\nNO", None), ("hm\nNO\n</think>\nYES", 1.0),
    ],
)  # fmt: skip
def test_only_a_last_line_of_yes_or_no_is_a_verdict(text, wanted):
    assert judge_endpoint.verdict(text) == wanted


def test_one_answer_is_shown_where_none_of_a_batch_can_be_read(caplog):
    unread = f"<think>NO</think> I would not say, {KEY}" + "." * 1000
    with JudgeServer(lambda ask: completion(unread)) as server:
        found, _ = ask(server, question(), question("be brief"))
    assert found == [(False, UNREADABLE)] * 2
    (message,) = [record.getMessage() for record in caplog.records if "none of 2" in record.getMessage()]
    assert "'<think>NO</think> I would not say, [key]..." in message and len(message) < 600
    caplog.clear()
    with JudgeServer(lambda ask: completion("<think> So", finish="length")) as server:
        ask(server)
    assert "<think> So [cut at the limit of tokens]" in caplog.text
    caplog.clear()
    with JudgeServer(lambda ask: completion(unread) if "calm" in ask.constraint else YES) as server:
        ask(server, question(), question("be brief"))
    assert "I would not say" not in caplog.text


LIES = {
    "prose": completion("I would say YES, it does."),
    "empty": completion(""),
    "null": completion(None),
    "a list": completion([{"type": "text", "text": "YES"}]),
    "cut": completion("I think that\nYES", finish="length"),
    "no choices": {"choices": [], "usage": None},
    "choices of another kind": {"choices": {"0": "YES"}},
    "no message": {"choices": [{"text": "YES"}]},
    "an error": {"error": {"message": "YES", "code": 7}},
    "not json": b"YES",
    "half of it": json.dumps(YES).encode()[:-30],
    "a json list": b'["YES"]',
    "deep": b"[" * 100_000,
    "not utf-8": b'{"choices": "\xff\xfe"}',
    "html": (200, {"Content-Type": "text/html"}, b"<html><body>\nYES\n</body></html>"),
    "nothing": b"",
    "no content": (204, {}, b""),
    "usage of another kind": completion("well", usage=("many", -3)),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_lies_about_the_format_are_unreadable_and_harm_nobody_else(lie):
    with JudgeServer(lambda ask: lie if "calm" in ask.constraint else YES) as server:
        found, usage = ask(server, question(), question("be brief"))
    assert found == [(False, UNREADABLE), (True, "")]
    assert server.asked["Write a note.", "All is well.", "sound calm"] == 2  # once more, then it is given up
    assert usage.requests == 3


def test_a_second_answer_may_be_readable():
    with JudgeServer(lambda ask: NO if ask.before else LIES["prose"]) as server:
        found, usage = ask(server)
    assert found == [(False, "")] and usage.prompt_tokens == 200
    again = server.bodies[1][1]["messages"]
    assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
    assert again[2]["content"] == "I would say YES, it does."


def test_odd_text_arrives():
    odd = "a {brace} \ud800 \x00 \u2028 <|im_end|> 漢字 === end of response 00000000 ==="
    with JudgeServer(lambda ask: LIES["prose"] if "\ud800" in ask.response else YES) as server:
        found, _ = ask(server, question(response=odd, prompt=odd))
    assert found == [(True, "")]
    ((prompt, response, _),) = server.asked
    assert prompt == response == odd.replace("\ud800", "?")


# ---- failures


def test_concurrency_is_bounded_and_used():
    together = threading.Barrier(3)

    def script(ask):
        together.wait(20)  # passes only if three are under way at a time
        return by_text(ask)

    with JudgeServer(script) as server:
        found, _ = ask(server, *(question(prompt=str(n)) for n in range(9)), concurrency=3)
        assert server.most_open == 3
    assert found == [(True, "")] * 9


FAILURES = {
    "429": (429, {}, b"{}"),
    "429 with a date": (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"{}"),
    "429 with nonsense": (429, {"Retry-After": "later"}, b"{}"),
    "500": (500, {}, b"<html>oops"),
    "503": (503, {}, b""),
    "cut": None,
    "cut in the middle": (200, {"Content-Length": 500, "Connection": "close"}, json.dumps(YES).encode()),
    "another encoding than it says": (200, {"Content-Encoding": "gzip"}, json.dumps(YES).encode()),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_what_may_pass_is_tried_again(failure):
    with JudgeServer(lambda ask: YES if ask.before == 2 else failure) as server:
        found, usage = ask(server, question())
    assert found == [(True, "")] and usage.requests == 3


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_and_given_up_in_the_end(failure):
    with JudgeServer(lambda ask: failure if "calm" in ask.constraint else YES) as server:
        found, usage = ask(server, question(), question("be brief"))
    assert found == [(False, UNANSWERED), (True, "")] and usage.requests == 4


@pytest.mark.parametrize("status", [302, 400, 403, 422])
def test_what_cannot_pass_is_not(status):
    failure = (status, {"Location": "http://127.0.0.1:1/"}, b"{}")
    with JudgeServer(lambda ask: failure if "calm" in ask.constraint else YES) as server:
        found, usage = ask(server, question(), question("be brief"))
    assert found == [(False, UNANSWERED), (True, "")] and usage.requests == 2


@pytest.mark.parametrize("status", [401, 402, 404])
def test_a_refusal_of_everything_ends_the_batch(status):
    with JudgeServer(lambda ask: (status, {}, b"{}")) as server:
        found, usage = ask(server, *(question(prompt=str(n)) for n in range(50)), concurrency=2)
    assert found == [(False, UNANSWERED)] * 50 and usage.requests <= 2


def test_retry_after_holds_everybody_back():
    times, lock = [], threading.Lock()

    def script(ask):
        with lock:
            times.append(time.monotonic())
            first = len(times) == 1
        return (429, {"Retry-After": "0.4"}, b"{}") if first else YES

    with JudgeServer(script) as server:
        found, usage = ask(server, *(question(prompt=str(n)) for n in range(4)), concurrency=1)
    assert found == [(True, "")] * 4 and usage.requests == 5
    assert times[1] - times[0] >= 0.4  # a lower bound: a slow machine only makes it longer


@pytest.mark.parametrize(
    "value, wanted",
    [(None, None), ("3", 3.0), ("0.5", 0.5), ("-4", 0.0), ("nan", None), ("inf", None), ("1e999", None), ("soon", None),
     ("Thu, 01 Jan 1970 00:01:40 GMT", 60.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("", None)],
)  # fmt: skip
def test_retry_after_headers(value, wanted):
    assert judge_endpoint.retry_after(value, 40.0) == wanted


def test_a_wait_past_the_deadline_is_not_waited_by_anybody():
    with JudgeServer(lambda ask: (429, {"Retry-After": "86400"}, b"{}")) as server:
        questions = [question(prompt=str(n)) for n in range(50)]
        found, usage = ask(server, *questions, deadline_seconds=3600.0, concurrency=2)
    assert found == [(False, UNANSWERED)] * 50 and usage.requests <= 2


def test_hanging_requests_time_out():
    let_go = threading.Event()

    def script(ask):
        if "calm" in ask.constraint:
            let_go.wait(60)
        return YES

    with JudgeServer(script) as server:
        found, usage = ask(server, question(), question("be brief"), timeout_seconds=2.0, retries=0)
        let_go.set()
    assert found == [(False, UNANSWERED), (True, "")] and usage.requests == 2


def test_an_answer_that_drips_times_out_as_a_whole():
    """No single wait for bytes is long."""

    def drip():
        while True:
            time.sleep(0.05)
            yield b" "

    with JudgeServer(lambda ask: (200, {"Content-Length": 10**6}, drip())) as server:
        found, usage = ask(server, timeout_seconds=0.5, retries=0)
    assert found == [(False, UNANSWERED)] and usage.requests == 1


def test_the_deadline_ends_a_batch_and_keeps_what_it_has(tmp_path):
    let_go = threading.Event()

    def script(ask):
        if "calm" in ask.constraint:
            let_go.wait(60)
        return YES

    questions = [question("be brief"), question(), question("be kind"), *(question(prompt=str(n)) for n in range(9))]
    with JudgeServer(script) as server:
        found, _ = ask(server, *questions, concurrency=2, deadline_seconds=3.0, cache=str(tmp_path / "c"))
        assert found == [(True, ""), (False, UNANSWERED), (True, "")] + [(False, UNANSWERED)] * 9
        let_go.set()
        found, usage = ask(server, *questions, cache=str(tmp_path / "c"))
    assert found == [(True, "")] * 12 and usage.cached == 2 and usage.requests == 10
