"""Tokenises each constraint once for each role it can have, so that rewriting a prompt is a gather of segments on the device.

A constraint's role is its place among the kept constraints: its ordinal (its number in a numbered list, otherwise only first
or not first) and whether it is the last. Its tokens depend on nothing else. So the segment of each constraint in each role is
cut, by character offsets, out of prompts that are rendered and tokenised as a whole, and `hir.relabel` joins the segments of
the kept constraints. For each row we check that this equals tokenising the rewritten prompt; a row that fails is refused with
the reason.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from hir_jax.data.chat import EncodeError
from hir_jax.data.chat_frame import ChatFrame
from hir_jax.data.templates import is_numbered, number, render, render_pieces
from hir_jax.types import Instruction

_ALL_CHECKED = 6  # constraints up to which all kept sets of a row are checked; above it, a fixed sample
_SAMPLED = 24  # random kept sets checked of a row with more constraints
_TOGETHER = 64  # instructions that share a call of the tokenizer


@dataclass(frozen=True)
class Encoded:
    """One instruction as ragged token lists. `segments[c][role]`, with role = 2 * ordinal class + is_last, is None for a role
    that constraint c cannot have.

    `instruction` is in the tokenizer's normal form, so that the text shown of a row is the text that was tokenised.
    """

    instruction: Instruction
    tokens: list[int]
    head: list[int]
    segments: list[list[list[int] | None]]
    tail: list[int]
    ordinals: int  # number of ordinal classes

    @property
    def longest(self) -> int:
        """Upper bound on the tokens of any rewriting."""
        return len(self.head) + len(self.tail) + sum(max((len(r) for r in s if r), default=0) for s in self.segments)


@dataclass(frozen=True)
class _Context:
    """The chat text with only the constraints `kept`. `bounds` are the character positions in it where the head ends, and then
    in turn where each constraint's number and its body end."""

    kept: tuple[int, ...]
    text: str
    bounds: list[int]

    @staticmethod
    def of(frame: ChatFrame, instruction: Instruction, kept: tuple[int, ...], asks: bool) -> _Context:
        """asks: whether the chat template is asked in any case. Raises EncodeError as `_chat_text`."""
        before, pieces, after = _pieces(instruction, kept)
        content = before + "".join(pieces) + after
        text = (_chat_text if asks else _usual_text)(frame, instruction.source, content)
        shown = text[len(frame.before) : len(text) - len(frame.after)]
        trimmed = (len(content) - len(content.lstrip())) - (len(shown) - len(shown.lstrip()))
        ends = [len(before)]
        for ordinal, piece in enumerate(pieces):
            prefix = len(number(ordinal)) if is_numbered(instruction.template) else 0
            ends += [ends[-1] + prefix, ends[-1] + len(piece)]
        return _Context(kept, text, [len(frame.before) + min(max(end - trimmed, 0), len(shown)) for end in ends])

    def cut(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Tokens between successive bounds. A token that crosses a bound belongs to the piece in which it begins."""
        pieces: list[list[int]] = [[] for _ in range(len(self.bounds) + 1)]
        for token, place in zip(
            ids, np.searchsorted(self.bounds, [start for start, _ in offsets], side="right"), strict=True
        ):
            pieces[place].append(token)
        return pieces


def _pieces(instruction: Instruction, kept: Sequence[int]) -> tuple[str, list[str], str]:
    return render_pieces(instruction.task, [instruction.constraints[c].text for c in kept], instruction.template)


def _chat_text(frame: ChatFrame, source: str, content: str) -> str:
    """Raises EncodeError if the chat template does more than put `frame` around the request and strip it."""
    text = frame.chat.text(content)
    if not (text.startswith(frame.before) and text.endswith(frame.after)):
        raise EncodeError(
            f"{source}: the chat template puts other text around this request than around another one (the time of day, or words "
            f"that depend on the request): {_difference(frame, text)}"
        )
    if text[len(frame.before) : len(text) - len(frame.after)].strip() != content.strip():
        raise EncodeError(f"{source}: the chat template changes the text of the request")
    return text


def _usual_text(frame: ChatFrame, source: str, content: str) -> str:
    """The chat text without asking the template, which is slow, unless the request has outer white space."""
    if content != content.strip():
        return _chat_text(frame, source, content)
    return frame.before + content + frame.after


def _difference(frame: ChatFrame, text: str) -> str:
    """The place where the text first differs from the frame, for a message."""
    if not text.startswith(frame.before):
        at = len(_common([text, frame.before]))
        return f"{text[max(0, at - 20) : at + 20]!r} was {frame.before[max(0, at - 20) : at + 20]!r}"
    return f"it ends in {text[-40:]!r}, and the other in {frame.after[-40:]!r}"


def _contexts(count: int, numbered: bool) -> list[tuple[int, ...]]:
    """Kept sets that together show each constraint in each of its roles; the set of all constraints comes last. A numbered
    constraint is joined from its number and the text after it, so the sets grow with `count` and not with its square."""
    pairs = [] if numbered else [(c, c + 1) for c in range(count - 1)]
    return list(dict.fromkeys([*((c,) for c in range(count)), *pairs, tuple(range(count))]))


def _checked(count: int) -> list[tuple[int, ...]]:
    """Kept sets for which a row's segments are compared with rendering and tokenising: all sets of few constraints; otherwise
    each constraint after the first and before the last, and a fixed sample."""
    if count <= _ALL_CHECKED:
        return [tuple(c for c in range(count) if bits >> c & 1) for bits in range(1, 2**count)]
    draw = random.Random(count)
    shares = [draw.random() for _ in range(_SAMPLED)]
    sampled = [tuple(c for c in range(count) if draw.random() < share) for share in shares]
    ends = [pair for c in range(1, count - 1) for pair in ((0, c), (c, count - 1))]
    return [*ends, *filter(None, sampled)]


def encode(frame: ChatFrame, instruction: Instruction, *, roles: bool = True) -> Encoded:
    """Tokenises an instruction by roles. Raises EncodeError if joining the segments differs from tokenising the rendered prompt
    for one of the kept sets of `_checked`.

    Without `roles`, and for the "verbatim" template, the prompt is one piece, which is quick but cannot be rewritten.
    """
    (found,) = encode_all(frame, [instruction], roles=roles)
    if isinstance(found, EncodeError):
        raise found
    return found


def encode_all(
    frame: ChatFrame, instructions: Sequence[Instruction], *, roles: bool = True
) -> list[Encoded | EncodeError]:
    """For each instruction what `encode` returns or raises. Instructions share calls of the tokenizer, which have a fixed cost
    and use all cores; while one is made, the texts of the next are rendered."""
    found: list[Encoded | EncodeError] = []
    waiting = None
    with ThreadPoolExecutor(1) as thread:
        for start in range(0, len(instructions), _TOGETHER):
            drafts = [_attempt(_Draft.of, frame, q, roles) for q in instructions[start : start + _TOGETHER]]
            tokens = thread.submit(_tokens, frame, [draft for draft in drafts if isinstance(draft, _Draft)])
            found += _finished(frame, *waiting) if waiting else []
            waiting = drafts, tokens
        return found + (_finished(frame, *waiting) if waiting else [])


def _tokens(frame: ChatFrame, drafts: Sequence[_Draft]):
    """Iterators over (ids, offsets) of the drafts' texts that are cut, and over the ids of the others."""
    cut = frame.encode([text for draft in drafts for text in draft.cut])
    return iter(cut), iter(frame.ids([text for draft in drafts for text in draft.others]))


def _finished(frame: ChatFrame, drafts: list[_Draft | EncodeError], tokens: Future) -> list[Encoded | EncodeError]:
    """The drafts with the tokens of their texts, once these are there."""
    cut, others = tokens.result()
    found: list[Encoded | EncodeError] = []
    for draft in drafts:
        if isinstance(draft, _Draft):
            own = [next(cut) for _ in draft.cut], [next(others) for _ in draft.others]
            draft = _attempt(_encoded, frame, draft, *own)
        found.append(draft)
    return found


def _attempt(function, *arguments):
    """What the function returns; an EncodeError is returned, too."""
    try:
        return function(*arguments)
    except EncodeError as error:
        return error


@dataclass(frozen=True)
class _Draft:
    """An instruction and the chat texts that are to be tokenised: those that are cut into segments, one a context, and others."""

    given: Instruction
    instruction: Instruction  # in the tokenizer's normal form
    contexts: list[_Context]
    cut: list[str]
    checked: list[tuple[int, ...]]  # kept sets of the texts that the joined segments are compared with
    # of `checked` after the first len(cut); then, if the normal form differs, of all `checked` as given
    others: list[str]

    @staticmethod
    def of(frame: ChatFrame, given: Instruction, roles: bool) -> _Draft:
        instruction = frame.normal_form(given)
        count, numbered = len(instruction.constraints), is_numbered(instruction.template)
        if not roles or instruction.template == "verbatim" or not count:
            return _Draft(given, instruction, [], [frame.chat.text(render(given))], [], [])
        needed = _contexts(count, numbered)
        checked = list(dict.fromkeys([*needed, *_checked(count)]))
        # The chat template is asked about the first constraint alone and about all, and taken to treat the sets between alike.
        contexts = [_Context.of(frame, instruction, kept, asks=kept in (needed[0], needed[-1])) for kept in needed]
        others = [
            _usual_text(frame, instruction.source, render(instruction, _marks(kept, count)))
            for kept in checked[len(needed) :]
        ]
        if given != instruction:
            others += [frame.chat.text(render(given, _marks(kept, count))) for kept in checked]
        return _Draft(given, instruction, contexts, [context.text for context in contexts], checked, others)


def _encoded(frame: ChatFrame, draft: _Draft, cut: list[tuple[list[int], Any]], others: list[list[int]]) -> Encoded:
    """The segments of a draft. cut: (ids, offsets) of its texts that are cut; others: ids of the others. Raises EncodeError."""
    instruction, count = draft.instruction, len(draft.instruction.constraints)
    ids = [own for own, _ in cut]
    if not draft.contexts:
        return Encoded(instruction, ids[0], ids[0], [[None, None]] * count, [], 2)
    numbered = is_numbered(instruction.template)
    ordinals = max(2, count) if numbered else 2
    cuts = [context.cut(*one) for context, one in zip(draft.contexts, cut, strict=True)]
    head, tail = _common([cut[0] for cut in cuts]), _common([cut[-1][::-1] for cut in cuts])[::-1]
    numbers: dict[int, list[int]] = {}
    bodies: dict[tuple[int, int, bool], list[int]] = {}
    for context, (start, *inner, end) in zip(draft.contexts, cuts, strict=True):
        # Tokens of head and tail that depend on the neighbouring constraint (" The") become part of its segment.
        inner[0 if numbered else 1] = start[len(head) :] + inner[0 if numbered else 1]
        inner[-1] = inner[-1] + end[: len(end) - len(tail)]
        for ordinal, c in enumerate(context.kept):
            numbers.setdefault(min(ordinal, ordinals - 1), inner[2 * ordinal])
            body = c, 0 if numbered else min(ordinal, 1), ordinal == len(context.kept) - 1
            bodies.setdefault(body, inner[2 * ordinal + 1])

    def segment(c: int, ordinal: int, last: bool) -> list[int] | None:
        body = bodies.get((c, 0 if numbered else ordinal, last))
        return None if body is None or ordinal > c else numbers[ordinal] + body

    roles_of = [(ordinal, last) for ordinal in range(ordinals) for last in (False, True)]
    segments = [[segment(c, *role) for role in roles_of] for c in range(count)]
    result = Encoded(instruction, ids[-1], head, segments, tail, ordinals)
    wholes = [*ids, *others]
    as_given = wholes[-len(draft.checked) :]  # before normalisation, or the same again if that changed nothing
    for kept, whole, original in zip(draft.checked, wholes, as_given, strict=False):
        pieces = gather(result, _marks(kept, count))
        if pieces != whole:
            raise _joined(frame, instruction, kept, whole, pieces)
        if whole != original:
            raise EncodeError(
                f"{draft.given.source}: tokens of the row differ from those of its normal form "
                f"({_apart(frame, original, whole)}); write its texts in the form to which the tokenizer normalises them",
                "normal form",
            )
    return result


def _common(sequences: Sequence[Any]) -> Any:
    """The longest common prefix of lists or of texts."""
    shortest = min(sequences, key=len)
    return shortest[: next((i for i, x in enumerate(shortest) if any(s[i] != x for s in sequences)), len(shortest))]


def _marks(kept: Sequence[int], count: int) -> list[bool]:
    return [c in kept for c in range(count)]


def _joined(
    frame: ChatFrame, instruction: Instruction, kept: Sequence[int], whole: list[int], pieces: list[int]
) -> EncodeError:
    """The error for a row whose segments, joined, are not the tokens of the prompt that keeps `kept`."""
    blank = [i for i, c in enumerate(instruction.constraints, start=1) if not c.text.strip()]
    if blank and instruction.template == "type6":
        return EncodeError(
            f"{instruction.source}: constraint {blank[0]} has no text, which makes a blank line in template type6; give it one",
            "blank constraint",
        )
    numbers = ", ".join(str(c + 1) for c in kept)
    where = f"{instruction.source}: template {instruction.template} with only the constraints {numbers}"
    return EncodeError(
        f"{where}: the tokenizer joins characters of neighbours ({_apart(frame, whole, pieces)}), so that a constraint's tokens "
        "depend on which others are kept; change the text there",
        "joined tokens",
    )


def _apart(frame: ChatFrame, one: Sequence[int], other: Sequence[int]) -> str:
    """The first tokens that differ in two encodings of a prompt, for a message."""
    at = len(_common([one, other]))
    show = frame.tokenizer.decode
    first, second = (
        [show([t], clean_up_tokenization_spaces=False) for t in ids[max(0, at - 1) : at + 2]] for ids in (one, other)
    )
    return f"{first}, not {second}"


def gather(encoded: Encoded, keep: Sequence[bool]) -> list[int]:
    """Tokens of the prompt that keeps the marked constraints, joined from the segments; `hir.relabel` does this on the device."""
    kept = [c for c, k in enumerate(keep) if k]
    out = list(encoded.head)
    for ordinal, c in enumerate(kept):
        role = 2 * min(ordinal, encoded.ordinals - 1) + (ordinal == len(kept) - 1)
        out += encoded.segments[c][role]
    return out + encoded.tail


def tokenise_rendering(frame: ChatFrame, instruction: Instruction, keep: Sequence[bool] | None = None) -> list[int]:
    """Tokens of the prompt that keeps the marked constraints, by rendering and tokenising it: the reference for `gather`."""
    text = frame.chat.text(render(instruction, keep))
    return frame.ids([text])[0]
