"""A response as the text that is checked: its tokens decoded, and the reasoning before the answer cut off."""

from __future__ import annotations

import re
from collections.abc import Sequence

OPENING, CLOSING = "<think>", "</think>"  # in any case
_THINKING = re.compile(rf"{OPENING}.*?(?:{CLOSING}|\Z)\s*", re.DOTALL | re.IGNORECASE)


def begins_thinking(prompt: str) -> bool:
    """Whether a prompt ends in reasoning that it has opened, which the response goes on with."""
    prompt = prompt.lower()
    return prompt.rfind(OPENING) > prompt.rfind(CLOSING)


def without_thinking(response: str, begun: bool = False) -> str:
    """The response without its reasoning: `<think> ... </think>` and the white space behind it, or all from a tag that is never
    closed.

    begun: whether the prompt opened it (`begins_thinking`).
    """
    return _THINKING.sub("", OPENING + response if begun else response)


def decode(tokenizer, sequences: Sequence[Sequence[int]]) -> list[str]:
    """Texts without special tokens, except for the think tags, which are text to whoever looks for them."""
    special = {i: token.content.lower() for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    shown = {OPENING, CLOSING} & set(special.values())
    if shown:
        dropped = {i for i, content in special.items() if content not in shown}
        sequences = [[int(i) for i in ids if int(i) not in dropped] for ids in sequences]
    return tokenizer.batch_decode(sequences, skip_special_tokens=not shown, clean_up_tokenization_spaces=False)
