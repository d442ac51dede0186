"""Tokenising an instruction by roles, so that any rewriting of it is a gather on device (architecture.md).

What a constraint looks like in tokens depends only on its place among the kept ones: its ordinal (its number in a
numbered list; else only first or not) and whether it is the last. Each constraint is therefore tokenised once per role,
cut by character offsets out of rendered contexts. `replay.relabel` puts the pieces together again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hir_jax.constraints.responses import begins_thinking
from hir_jax.instructions.chat import Chat, EncodeError
from hir_jax.instructions.templates import is_numbered, render, render_pieces
from hir_jax.types import Instruction, PromptBatch, PromptParts

_SENTINEL = "\ue000content\ue001"


@dataclass(frozen=True)
class ChatFrame:
    """What the chat template puts before and after the user's request, and the tokenizer that goes with it."""

    chat: Chat
    before: str
    after: str

    @property
    def tokenizer(self):
        return self.chat.tokenizer

    @property
    def thinks(self) -> bool:
        """Whether the template opens the reasoning that a response goes on with."""
        return begins_thinking(self.after)

    def encode(self, texts: Sequence[str]):
        """Token ids and character offsets of full chat texts; special tokens come from the template alone."""
        return self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)


@dataclass(frozen=True)
class Encoded:
    """One instruction as ragged token lists; `segments[c][role]` with role = 2 * ordinal class + is_last, or None."""

    instruction: Instruction
    tokens: list[int]
    head: list[int]
    segments: list[list[list[int] | None]]
    tail: list[int]
    ordinals: int

    @property
    def longest(self) -> int:
        """Upper bound in tokens over every rewriting."""
        return len(self.head) + len(self.tail) + sum(max((len(r) for r in s if r), default=0) for s in self.segments)


def chat_frame(tokenizer, arguments: Mapping[str, Any] | None = None, system: str = "") -> ChatFrame:
    """arguments, system: see `Chat`. Raises EncodeError if the tokenizer has no usable chat template."""
    chat = Chat(tokenizer, arguments or {}, system)
    before, found, after = chat.text(_SENTINEL).partition(_SENTINEL)
    if not found:
        raise EncodeError("the chat template changes the user's text: rewritten prompts cannot be cut out of it")
    if system.strip() not in before + after:
        raise EncodeError("config.model.system_prompt is set, and the chat template does not show it; leave it empty")
    return ChatFrame(chat, before, after)


def _cut(ids: Sequence[int], offsets: Sequence[tuple[int, int]], bounds: Sequence[int]) -> list[list[int]]:
    """Tokens between successive character bounds; one that straddles a bound belongs to where it begins.

    Byte-level tokenizers may trim white space from offsets: a token really begins no later than the one before it ended.
    """
    pieces: list[list[int]] = [[] for _ in range(len(bounds) + 1)]
    reached = 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        begin = min(start, reached)
        reached = max(reached, end)
        pieces[int(np.searchsorted(bounds, begin, side="right"))].append(token)
    return pieces


def _contexts(count: int, ordinals: int) -> list[list[int]]:
    """Subsequences of the constraints that show each in each role it can have."""
    singles = [[c] for c in range(count)]
    pairs = [[*range(j), c, c + 1] for c in range(count - 1) for j in range(min(c, ordinals - 1) + 1)]
    return singles + pairs


def encode(frame: ChatFrame, instruction: Instruction, *, roles: bool = True) -> Encoded:
    """Tokenise by roles. Raises EncodeError where putting the roles together differs from tokenising the rendering.

    Without `roles`, as for the "verbatim" template, the prompt is one piece, which is quick and cannot be rewritten.
    """
    texts = [c.text for c in instruction.constraints]
    if not roles or instruction.template == "verbatim" or not texts:
        ids = frame.encode([frame.chat.text(render(instruction))])["input_ids"][0]
        return Encoded(instruction, list(ids), list(ids), [[None, None]] * len(texts), [], 2)
    ordinals = max(2, len(texts)) if is_numbered(instruction.template) else 2
    contexts = _contexts(len(texts), ordinals)
    rendered = []
    for kept in [*contexts, list(range(len(texts)))]:
        before, pieces, after = render_pieces(instruction.task, [texts[c] for c in kept], instruction.template)
        lengths = [len(frame.before) + len(before)] + [len(p) for p in pieces]
        full = frame.before + before + "".join(pieces) + after + frame.after
        rendered.append((kept, full, np.cumsum(lengths)))
    spot_checks = _spot_checks(len(texts))
    oracles = [frame.chat.text(render(instruction, keep)) for keep in spot_checks]
    encoded = frame.encode([*(full for _, full, _ in rendered), *oracles])  # one call: each has a price of its own
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    segments: list[list[list[int] | None]] = [[None] * (2 * ordinals) for _ in texts]
    for (kept, _, bounds), tokens, spans in zip(rendered, ids, offsets, strict=False):
        head, *cut, tail = _cut(tokens, spans, bounds)
        for ordinal, (c, piece) in enumerate(zip(kept, cut, strict=True)):
            role = 2 * min(ordinal, ordinals - 1) + (ordinal == len(kept) - 1)
            if segments[c][role] is None:
                segments[c][role] = piece
    result = Encoded(instruction, list(ids[len(rendered) - 1]), head, segments, tail, ordinals)
    for keep, expected in zip(spot_checks, ids[len(rendered) :], strict=True):
        if gather(result, keep) != list(expected):
            raise EncodeError(
                f"{instruction.source}: constraint texts do not keep their tokens when others are left out (template "
                f"{instruction.template}); avoid leading or trailing white space in task and constraints"
            )
    return result


def _spot_checks(count: int) -> list[list[bool]]:
    """Kept sets on which every row's pieces are held against rendering and tokenising: all, and two others."""
    found = [[True] * count, [i % 2 == 0 for i in range(count)], [i % 3 != 0 for i in range(count)]]
    return [keep for keep in found if any(keep)]


def gather(encoded: Encoded, keep: Sequence[bool]) -> list[int]:
    """The rewriting that keeps the marked constraints, from the pieces; the host twin of `replay.relabel`."""
    kept = [c for c, k in enumerate(keep) if k]
    out = list(encoded.head)
    for ordinal, c in enumerate(kept):
        role = 2 * min(ordinal, encoded.ordinals - 1) + (ordinal == len(kept) - 1)
        out += encoded.segments[c][role]
    return out + encoded.tail


def tokenise_rendering(frame: ChatFrame, instruction: Instruction, keep: Sequence[bool] | None = None) -> list[int]:
    """The oracle: render, apply the chat template, tokenise."""
    text = frame.chat.text(render(instruction, keep))
    return list(frame.encode([text])["input_ids"][0])


@dataclass(frozen=True)
class PartShapes:
    """Padded sizes of PromptParts, fixed for a data set so that no batch compiles anew."""

    constraints: int
    head: int
    tail: int
    segment: int
    ordinals: int

    @staticmethod
    def of(rows: Sequence[Encoded], constraints: int) -> PartShapes:
        """Smallest shapes (head, tail, segment in multiples of 8 tokens) that hold all rows."""

        def up(values):
            return -(-max(values, default=1) // 8) * 8

        segments = [len(r) for row in rows for s in row.segments for r in s if r]
        return PartShapes(
            constraints,
            up([len(r.head) for r in rows]),
            up([len(r.tail) for r in rows]),
            up(segments),
            max((r.ordinals for r in rows), default=2),
        )


def prompt_batch(rows: Sequence[Encoded], shapes: PartShapes, length: int, pad_id: int) -> PromptBatch:
    """NumPy PromptBatch of N rows, prompts right-aligned in `length` columns (every row's `longest` must fit)."""
    n, c, q = len(rows), shapes.constraints, 2 * shapes.ordinals
    parts = PromptParts(
        head=np.full((n, shapes.head), pad_id, np.int32),
        head_length=np.array([len(r.head) for r in rows], np.int32),
        segments=np.full((n, c, q, shapes.segment), pad_id, np.int32),
        segment_length=np.zeros((n, c, q), np.int32),
        tail=np.full((n, shapes.tail), pad_id, np.int32),
        tail_length=np.array([len(r.tail) for r in rows], np.int32),
        ordinals=np.array([r.ordinals for r in rows], np.int32),
        present=np.zeros((n, c), bool),
    )
    tokens = np.full((n, length), pad_id, np.int32)
    for i, row in enumerate(rows):
        tokens[i, length - len(row.tokens) :] = row.tokens
        parts.head[i, : len(row.head)] = row.head
        parts.tail[i, : len(row.tail)] = row.tail
        parts.present[i, : len(row.segments)] = True
        for j, roles in enumerate(row.segments):
            for k, segment in enumerate(roles):
                if segment is not None:
                    parts.segments[i, j, k, : len(segment)] = segment
                    parts.segment_length[i, j, k] = len(segment)
    return PromptBatch(tokens, np.array([len(r.tokens) for r in rows], np.int32), parts)
