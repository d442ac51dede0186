"""Keeps tokenised instructions on disk for the next start on the same data with the same tokenizer.

DIRECTORY/tokens/KEY.npz holds what `segments.encode_all` gave for a list of instructions. KEY is a hash of all that this depends
on: the instructions, the tokenizer with its chat template, the versions of the libraries and the modules of this package that
render and tokenise. Files may be removed at any time.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import logging
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from hir_jax import paths
from hir_jax.bucket import ChangedError
from hir_jax.data import chat, chat_frame, segments, templates
from hir_jax.data.chat import EncodeError
from hir_jax.data.chat_frame import ChatFrame
from hir_jax.data.segments import Encoded
from hir_jax.run.files import write_atomically
from hir_jax.types import Instruction

log = logging.getLogger(__name__)

Found = list[Encoded | EncodeError]

WORTH_SECONDS = 1.0  # what is tokenised faster is not kept
_ABSENT = -1  # the length of a segment that is None


def encode_all(frame: ChatFrame, instructions: Sequence[Instruction], *, roles: bool, directory: Path | None) -> Found:
    """What `segments.encode_all` returns, from the directory if it is there. None: without a directory."""
    if directory is None:
        return segments.encode_all(frame, instructions, roles=roles)
    path = directory / "tokens" / f"{_key(frame, instructions, roles)}.npz"
    if (found := _read(path, frame, instructions)) is not None:
        return found
    started = time.monotonic()
    found = segments.encode_all(frame, instructions, roles=roles)
    if time.monotonic() - started > WORTH_SECONDS:
        _write(path, found)
    return found


@functools.cache
def _programs() -> str:
    """What else the tokens depend on: versions, and the source of the modules that make them."""
    versions = [f"{name} {version(name)}" for name in ("tokenizers", "transformers", "jinja2")]
    sources = [Path(module.__file__).read_text(encoding="utf-8") for module in (chat, chat_frame, segments, templates)]
    return "\n".join([*versions, *sources, Path(__file__).read_text(encoding="utf-8")])


def _key(frame: ChatFrame, instructions: Sequence[Instruction], roles: bool) -> str:
    digest = hashlib.sha256(json.dumps([_programs(), frame.digest, roles]).encode())
    for q in instructions:
        texts = [constraint.text for constraint in q.constraints]
        digest.update(json.dumps([q.task, q.template, q.source, texts]).encode())
    return digest.hexdigest()[:32]


def _write(path: Path, found: Found) -> None:
    """Writes the file; a directory that cannot be written to is not worth more than a line of the log."""
    lengths: list[int] = []
    tokens: list[list[int]] = []
    rows: list[list] = []  # [constraints, roles of each, ordinal classes] or [reason, message]
    for row in found:
        if isinstance(row, EncodeError):
            rows.append([row.reason, str(row)])
            continue
        rows.append([len(row.segments), len(row.segments[0]) if row.segments else 0, row.ordinals])
        for part in (row.tokens, row.head, row.tail, *itertools.chain(*row.segments)):
            lengths.append(_ABSENT if part is None else len(part))
            tokens.append(part or [])
    content = io.BytesIO()
    np.savez_compressed(
        content,
        rows=np.frombuffer(json.dumps(rows).encode(), np.uint8),
        lengths=np.array(lengths, np.int32),
        tokens=np.fromiter(itertools.chain(*tokens), np.int32),
    )
    try:
        write_atomically(path, content.getvalue())
    except (OSError, ChangedError) as error:
        log.info("tokenised rows are not kept for the next start: %s: %s", path, paths.reason(error))


def _read(path: Path, frame: ChatFrame, instructions: Sequence[Instruction]) -> Found | None:
    """None if there is no such file, or it is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            rows, lengths, tokens = json.loads(bytes(file["rows"])), file["lengths"], file["tokens"]
        sizes = np.maximum(lengths, 0)
        ends = np.cumsum(sizes)
        if len(rows) != len(instructions) or ends[-1:].sum() != len(tokens):
            raise ValueError("it does not fit the instructions")
        tokens, numbers = tokens.tolist(), zip((ends - sizes).tolist(), lengths.tolist(), strict=True)
        parts = (None if length == _ABSENT else tokens[start : start + length] for start, length in numbers)
        return [_row(frame, q, row, parts) for q, row in zip(instructions, rows, strict=True)]
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive raises many kinds
        log.warning("%s: cannot be read (%s); the rows are tokenised again", path, paths.reason(error))
        return None


def _row(frame: ChatFrame, instruction: Instruction, row: list, parts) -> Encoded | EncodeError:
    if isinstance(row[0], str):
        reason, message = row
        return EncodeError(message, reason)
    constraints, roles, ordinals = row
    tokens, head, tail = itertools.islice(parts, 3)
    pieces = [list(itertools.islice(parts, roles)) for _ in range(constraints)]
    return Encoded(frame.normal_form(instruction), tokens, head, pieces, tail, ordinals)
