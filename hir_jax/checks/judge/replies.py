"""Reads a judge's reply: the text without its reasoning, and the yes or no that it ends with.

Everything that reads judges' replies calls `without_reasoning` first: `judge.endpoint` and the benchmarks of `judged`.
"""

from __future__ import annotations

import json
import re

_THINK_TAG = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_VERDICTS = {"yes": True, "no": False}
_DECORATION = " \t*_~`\"'“”‘’.!()[]<>#-"
_LABEL = re.compile(r"(?:final\s+)?(?:answer|verdict)[*_\s]*[:：][*_\s]*", re.IGNORECASE)
_SHOWN = 200  # characters that a message shows of either end of a reply


def without_reasoning(reply: str) -> str:
    """The reply without the text between think tags (<think> or <thinking>, in any case), and stripped if it has such tags.

    A tag that is not closed hides all text after it. A closing tag without an opening one, which the chat template may have
    written into the prompt, hides all text before it.
    """
    if not _THINK_TAG.search(reply):
        return reply
    kept: list[str] = []
    start, inside = 0, False
    for tag in _THINK_TAG.finditer(reply):
        if tag[1]:
            kept = kept if inside else []
            start, inside = tag.end(), False
        elif not inside:
            kept.append(reply[start : tag.start()])
            inside = True
    return "".join(kept if inside else [*kept, reply[start:]]).strip()


def leaves_reasoning_open(text: str) -> bool:
    """Whether the last think tag of a text is an opening one."""
    tags = _THINK_TAG.findall(text)
    return bool(tags) and not tags[-1]


def unfenced(text: str) -> str:
    """The content of the code fence that ends the text, without the fence's language; the stripped text if there is none."""
    text = text.strip()
    if not text.endswith("```"):
        return text
    _, fence, content = text[:-3].rpartition("```")
    return re.sub(r"\A[\w+-]*[ \t]*\n", "", content).strip() if fence else text


def yes_or_no(reply: str) -> bool | None:
    """The verdict of a reply whose last line is the word yes or no, in any case; None of any other.

    Reasoning is ignored, and so are Markdown's marks, quotes, brackets, a final period or a label ("Answer:") around the word.
    The line may be in a code fence. The reply may also end in a JSON object that gives the word, or true or false, as its
    "answer" or "verdict" or as its only entry.
    """
    text = unfenced(without_reasoning(reply))
    if text.endswith("}"):
        return _of_json(text[text.find("{") :])
    return _word(text.splitlines()[-1]) if text else None


def _word(line: str) -> bool | None:
    word = line.strip(_DECORATION)
    label = _LABEL.match(word)
    return _VERDICTS.get(word[label.end() if label else 0 :].strip(_DECORATION).lower())


def _of_json(text: str) -> bool | None:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entries, dict):
        return None
    named = [value for name, value in entries.items() if name.lower() in ("answer", "verdict")]
    values = named or (list(entries.values()) if len(entries) == 1 else [])
    said = {value if isinstance(value, bool) else _word(value) if isinstance(value, str) else None for value in values}
    return said.pop() if len(said) == 1 else None


def shown(reply: str) -> str:
    """A reply as a message shows it: quoted, a long one without its middle."""
    return repr(reply if len(reply) <= 2 * _SHOWN else f"{reply[:_SHOWN]} ... {reply[-_SHOWN:]}")
