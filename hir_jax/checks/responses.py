"""Turns a response into the texts that are checked: decodes tokens, removes the reasoning before the answer, cuts the forms of
loose mode."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

OPENING, CLOSING = "<think>", "</think>"  # in any case
_THINKING = re.compile(rf"{OPENING}.*?(?:{CLOSING}|\Z)\s*", re.DOTALL | re.IGNORECASE)


def begins_thinking(prompt: str) -> bool:
    """Whether a prompt ends inside reasoning, which the response then continues."""
    prompt = prompt.lower()
    return prompt.rfind(OPENING) > prompt.rfind(CLOSING)


def without_thinking(response: str, begun: bool = False) -> str:
    """The response without its reasoning: without `<think> ... </think>` and the white space after it, or without everything
    from a tag that is never closed.

    begun: whether the prompt opened the reasoning (`begins_thinking`).
    """
    return _THINKING.sub("", OPENING + response if begun else response)


def decode(tokenizer, sequences: Sequence[Sequence[int]]) -> list[str]:
    """Decodes without special tokens, except the think tags, which `without_thinking` has to find."""
    special = {i: token.content.lower() for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    shown = {OPENING, CLOSING} & set(special.values())
    if shown:
        dropped = {i for i, content in special.items() if content not in shown}
        sequences = [[int(i) for i in ids if int(i) not in dropped] for ids in sequences]
    return tokenizer.batch_decode(sequences, skip_special_tokens=not shown, clean_up_tokenization_spaces=False)


def loose_variants(response: str) -> Iterator[str]:
    """The forms of a response of which one has to pass in loose mode, without equal and blank ones.

    The response unchanged; without its first line, its last line, both (these three stripped); each of the four also without
    any asterisk. In the published code's order (which matters where a check raises ScorerStopsError): the response with and
    without asterisks, the three cuts, the cuts without asterisks. Source: the loose accuracy of IFEval (arXiv 2311.07911), as
    scored by the published code.
    """
    lines = response.split("\n")
    cuts = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    forms = (response, response.replace("*", ""), *cuts, *(cut.replace("*", "") for cut in cuts))
    variants = dict.fromkeys(forms)
    return (variant for variant in variants if variant.strip())
