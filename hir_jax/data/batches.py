"""Pads tokenised instructions to the arrays that the device works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hir_jax.data.segments import Encoded
from hir_jax.types import PromptBatch, PromptParts


@dataclass(frozen=True)
class PartShapes:
    """Padded sizes of PromptParts, fixed for a data set so that functions compile once for all its batches."""

    constraints: int
    head: int
    tail: int
    segment: int
    ordinals: int

    @staticmethod
    def of(rows: Sequence[Encoded], constraints: int) -> PartShapes:
        """The smallest shapes (head, tail and segment in multiples of 8 tokens) that hold all rows."""

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
    """NumPy PromptBatch of N rows, with prompts right-aligned in `length` columns, in which every row's `longest` must fit."""
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
