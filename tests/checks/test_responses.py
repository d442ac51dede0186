"""Reasoning is cut from what is checked: by hand, and on the device as on the host."""

import chat_cases
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hir_jax.checks import responses
from hir_jax.checks.device import verify as device
from hir_jax.checks.device.conditions import encode
from hir_jax.checks.responses import begins_thinking, without_thinking
from hir_jax.types import Constraint

NO_COMMA = Constraint("punctuation:no_comma")


@pytest.mark.parametrize(
    ("response", "begun", "answer"),
    [
        ("<think>\nIs it so, or not?\n</think>\n\nIt is so.", False, "It is so."),
        ("It is so.", False, "It is so."),
        ("<think>x</think>A. <THINK>\n, y</Think> B.", False, "A. B."),
        ("<think>, and so on", False, ""),  # cut at max_response
        ("A. <think>, and", False, "A. "),
        ("a, b\n</think>\nIt is so.", True, "It is so."),  # the prompt ends with <think>
        ("a, b", True, ""),
        ("a, b\n</think>\nIt <think>is</think> so.", True, "It so."),
        ("It is </think> so.", False, "It is </think> so."),
        ("<think>a<think>b</think>c</think>d", False, "c</think>d"),
        ("<thinking>a</thinking> b", False, "<thinking>a</thinking> b"),
        ("", False, ""),
    ],
)
def test_what_is_left_of_a_response(response, begun, answer):
    assert without_thinking(response, begun) == answer


def test_prompts_that_open_the_reasoning():
    for prompt, begun in (
        ("", False),
        ("<think>\n", True),
        ("<Think>\n\n</Think>\n", False),
        ("</think><think>", True),
    ):
        assert begins_thinking(prompt) == begun


def arrays(texts, width):
    encoded = [text.encode() for text in texts]
    data = np.frombuffer(b"".join(text.ljust(width, b"\0") for text in encoded), np.uint8).reshape(-1, width)
    return data, np.array([len(text) for text in encoded], np.int32)


on_the_device = jax.jit(device.without_thinking, static_argnames="begun")
PARTS = [
    "<think>",
    "</think>",
    "<THINK>",
    "</ThinK>",
    "<",
    "</",
    "think>",
    "<think",
    " ",
    "\n",
    "\x1c",
    "a",
    ",",
    ">",
    "/",
]


@given(st.lists(st.lists(st.sampled_from(PARTS), max_size=14).map("".join), min_size=8, max_size=8), st.booleans())
@settings(max_examples=150)
def test_the_device_cuts_as_the_host_does(texts, begun):
    found, length, certain = jax.device_get(on_the_device(*arrays(texts, 112), begun=begun))
    assert certain.all() and not (found * (np.arange(112) >= length[:, None])).any()
    for text, row, size in zip(texts, found, length, strict=True):
        assert bytes(row[:size]).decode() == without_thinking(text, begun)


@pytest.mark.parametrize("special", [False, True])
def test_tokens_are_decided_as_their_text_is(special):
    """Tags that are one token, spelt out, or special; reasoning that is not ASCII, and tokens that may hide a tag."""
    tags = ("<think>", "</think>")
    words = (", \u00e9", "\u00e9</thi", "nk>", "so", "<th") + (() if special else tags)
    tokenizer = chat_cases.tokenizer("qwen3", words=words, special=tags if special else ())
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in (*words, *tags, "<|im_end|>", "a", ",")}
    table = device.token_bytes(tokenizer, len(tokenizer))
    rng = np.random.default_rng(0)
    tokens = rng.choice(list(ids.values()), (300, 9)).astype(np.int32)
    tokens[:3, :6] = [ids[w] for w in ("<think>", ", \u00e9", ",", "</think>", "so", "<|im_end|>")]
    mask = np.arange(9) < rng.integers(0, 10, 300)[:, None]
    mask[:3] = np.arange(9) < 6
    texts = responses.decode(tokenizer, [row[m] for row, m in zip(tokens, mask, strict=True)])
    assert texts[0] == "<think>, \u00e9,</think>so"
    verify = jax.jit(device.verify, static_argnames=("width", "thinking"))
    conditions = encode([[NO_COMMA]], 1)
    known = 0
    for thinking in (False, True):
        found = jax.device_get(verify(table, conditions, tokens, mask, width=90, thinking=thinking))
        for text, satisfied, decided in zip(texts, found.satisfied[:, 0], found.known[:, 0], strict=True):
            answer = without_thinking(text, thinking)
            if decided:
                assert satisfied == (bool(answer.strip()) and "," not in answer), text
            else:
                assert not text.isascii()
            known += decided and not text.isascii()
        assert found.known[:3].all() and found.satisfied[:3].all()
    assert known > 30  # the reasoning need not be ASCII
    whole = jax.device_get(verify(table, conditions, tokens, mask, width=90))
    assert not whole.known[:3].any()
