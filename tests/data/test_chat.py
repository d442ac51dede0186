"""Chat templates: the fixed date, arguments, the system prompt, the token that ends a turn, and broken templates."""

from datetime import datetime

import chat_cases
import pytest
from tokenizers import normalizers
from transformers.utils import chat_template_utils

from hir_jax.data.chat import DATE, Chat, EncodeError
from hir_jax.data.chat_frame import chat_frame
from hir_jax.data.segments import encode, gather, tokenise_rendering
from hir_jax.data.templates import render
from hir_jax.types import Constraint, Instruction


def at(monkeypatch, *day):
    """Makes the clock that transformers gives to templates return `day`."""

    class Clock:
        @staticmethod
        def now():
            return datetime(*day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


def theirs(tokenizer, content="Hi.", **variables):
    how = {"tokenize": False, "add_generation_prompt": True}
    return tokenizer.apply_chat_template([{"role": "user", "content": content}], **how, **variables)


def test_prompts_do_not_depend_on_the_day(monkeypatch):
    tokenizer, texts = chat_cases.tokenizer("llama3"), set()
    for day in (1, 2):
        at(monkeypatch, 2031, 5, day, 23, 59)
        texts.add(Chat(tokenizer).text("Hi."))
        assert f"Today Date: 0{day} May 2031" in theirs(tokenizer)
    at(monkeypatch, 2024, 7, 26)
    assert texts == {theirs(tokenizer)}  # the template's own default
    assert f"Today Date: {DATE}\n" in texts.pop()
    assert "Date: 03 Feb 2023\n" in Chat(tokenizer, {"date_string": "03 Feb 2023"}).text("Hi.")


@pytest.mark.parametrize("layout", ["%Y-%m-%d", "%d %B %Y", "%-d.%-m.%y, %A (%j)", "%H:%M:%S %p", "%c %% %x %X"])
@pytest.mark.parametrize("date", ["26 Jul 2024", "03 Feb 2023"])
def test_a_template_s_own_use_of_the_clock_gets_the_same_date(layout, date, monkeypatch):
    """In any layout, inside a loop and a macro, and with the white space at the template's beginning unchanged."""
    template = (
        "\n  {% if strftime_now is defined %}\n{% macro day() %}{{ strftime_now('" + layout + "') }}{% endmacro %}\n"
        "{% for m in messages %}[{{ strftime_now('"
        + layout
        + "') }}|{{ day() }}] {{ m.content }}{% endfor %}\n{% endif %}\n"
    )
    tokenizer = chat_cases.tokenizer("qwen3", template)
    found = Chat(tokenizer, {"date_string": date}).text("Hi.")
    parsed = datetime.strptime(date, "%d %b %Y")
    at(monkeypatch, parsed.year, parsed.month, parsed.day)
    assert found == theirs(tokenizer)


def test_a_date_that_is_none_is_refused_only_where_the_template_asks_for_the_time():
    arguments = {"date_string": "a rainy day"}
    assert "Today Date: a rainy day" in Chat(chat_cases.tokenizer("llama3"), arguments).text("Hi.")
    asks = chat_cases.tokenizer("qwen3", "{{ strftime_now('%Y') + messages[0].content }}")
    with pytest.raises(EncodeError, match="date_string is 'a rainy day'"):
        Chat(asks, arguments).text("Hi.")


def test_arguments_and_the_system_prompt_reach_the_template():
    tokenizer = chat_cases.tokenizer("qwen3")
    assert Chat(tokenizer).text("Hi.") == theirs(tokenizer)
    off = Chat(tokenizer, {"enable_thinking": False}).text("Hi.")
    assert off == theirs(tokenizer, enable_thinking=False) and off.endswith("<think>\n\n</think>\n\n")
    frame = chat_frame(tokenizer, {}, "Be kind.")
    assert frame.before == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    with pytest.raises(EncodeError, match=r"system_prompt is set.*does not show it"):
        chat_frame(chat_cases.tokenizer("llama2"), {}, "Be kind.")
    for name in ("tokenize", "add_generation_prompt", "messages", "chat_template"):
        with pytest.raises(EncodeError, match=rf"chat_template_args\.{name}: a chat template cannot be given this"):
            chat_frame(tokenizer, {name: True})


def test_rewritten_prompts_hold_the_arguments_and_the_system_prompt():
    """Also for a system prompt that is not in the tokenizer's normal form, which once shifted all offsets after it."""
    tokenizer = chat_cases.tokenizer("qwen3")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    system, arguments = "Parle du cafe\u0301 au the\u0301.", {"enable_thinking": False}
    frame = chat_frame(tokenizer, arguments, system)
    for template in ("type3", "type6"):
        instruction = Instruction("Write.", tuple(Constraint("x:y", {}, t) for t in ("A.", "B.", "C.")), template)
        encoded = encode(frame, instruction)
        for keep in ([True, True, True], [True, False, True], [False, True, False]):
            messages = [{"role": "system", "content": system}, {"role": "user", "content": render(instruction, keep)}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **arguments)
            expected = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert gather(encoded, keep) == expected == tokenise_rendering(frame, instruction, keep)


def test_whether_the_prompt_opens_the_reasoning():
    for template, arguments, opens in (
        (chat_cases.QWEN3, {}, False),
        (chat_cases.QWEN3, {"enable_thinking": False}, False),
        (chat_cases.THINKING, {}, True),
    ):
        assert chat_frame(chat_cases.tokenizer("qwen3", template), arguments).thinks == opens


@pytest.mark.parametrize(
    ("family", "template", "wanted"),
    [
        ("llama3", None, "<|eot_id|>"),  # not the tokenizer's eos_token, <|end_of_text|>
        ("qwen3", None, "<|im_end|>"),
        ("llama2", None, "</s>"),  # after a space
        ("qwen3", "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", "<|im_end|>"),  # shows none
        ("llama3", "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}"
         "{% endfor %}", "<|end_of_text|>"),  # the template shows no such turn
    ],
)  # fmt: skip
def test_the_token_that_ends_a_turn(family, template, wanted):
    tokenizer = chat_cases.tokenizer(family, template)
    assert tokenizer.convert_ids_to_tokens(Chat(tokenizer).end_of_turn) == wanted


BROKEN = {
    "{% for m in messages %}{{ m.content }}": "endfor",
    "{{ raise_exception('only\nfor tools') }}": "only for tools",
    "{{ messages[0].content + none }}": "can only concatenate",
    "{{ messages[7].content.x }}": "has no element 7",
    "{{ 1 // 0 }}": "division",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ 'x'|no_such_filter }}": "no_such_filter",
}


@pytest.mark.parametrize("template", BROKEN)
def test_broken_templates_are_one_line(template):
    with pytest.raises(EncodeError, match=BROKEN[template]) as error:
        chat_frame(chat_cases.tokenizer("qwen3", template))
    assert "\n" not in str(error.value) and "chat template" in str(error.value)


def test_named_templates():
    named = {"tool_use": chat_cases.LLAMA2, "rag": "x"}
    with pytest.raises(EncodeError, match=r"chat templates 'rag', 'tool_use' and none named 'default'"):
        chat_frame(chat_cases.tokenizer("qwen3", named))
    assert (
        chat_frame(chat_cases.tokenizer("qwen3", named | {"default": chat_cases.QWEN3})).before == "<|im_start|>user\n"
    )
    with pytest.raises(EncodeError, match="no chat template"):
        chat_frame(chat_cases.tokenizer("qwen3", ""))
