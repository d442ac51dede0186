"""A run's instructions: read or generated, tokenised by roles, filtered by length; batches by step through grain."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import grain
import numpy as np

from hir_jax.instructions import native, synthesis, witness
from hir_jax.instructions.roles import ChatFrame, Encoded, EncodeError, PartShapes, encode
from hir_jax.types import InputError, Instruction

log = logging.getLogger(__name__)


class DataError(InputError):
    """Data that cannot be trained on; the message says what to change."""


@dataclass(frozen=True)
class Dataset:
    """Training rows (with tokenised responses, end token included, for sft), held-out rows, and what was left out."""

    rows: list[Encoded]
    responses: list[list[int]]  # empty but for sft
    heldout: list[Encoded]
    shapes: PartShapes
    left_out: Counter
    order: grain.MapDataset  # step -> indices of the step's rows, i64[N]

    def indices(self, step: int) -> np.ndarray:
        """Rows of a step: every row once an epoch, shuffled anew each epoch; a function of (data order seed, step)."""
        return np.asarray(self.order[step])


def _instructions(config) -> tuple[list[Instruction], list[str], list[Instruction]]:
    """(training instructions, responses for sft, held-out instructions) of the config's source."""
    data, sft = config.data, config.method == "sft"
    limits = {"min_constraints": data.min_constraints, "max_constraints": data.max_constraints}
    limits["templates"] = tuple(data.templates)
    if data.source == "jsonl":
        heldout = native.read(data.eval_path)[: data.eval_size] if data.eval_path else []
        if not sft:
            return native.read(data.path), [], heldout
        pairs = native.read_pairs(data.path)
    elif data.source == "witness":
        limits["ids"] = tuple(data.constraint_ids)
        heldout = [q for q, _ in witness.generate(data.seed, data.eval_size, split="heldout", **limits)]
        noise = data.label_noise if sft else 0.0
        pairs = witness.generate(data.seed, data.size, split="train", label_noise=noise, **limits)
    else:
        if sft:
            raise DataError("data.source = 'generated' has no responses to fit: sft needs 'jsonl' or 'witness'")
        heldout = synthesis.generate(data.seed, data.eval_size, split="heldout", **limits)
        return synthesis.generate(data.seed, data.size, split="train", **limits), [], heldout
    return [q for q, _ in pairs], [y for _, y in pairs] if sft else [], heldout


def _encode_rows(frame: ChatFrame, instructions: Sequence[Instruction], limit: int, left_out: Counter, *, roles: bool):
    """(index, Encoded) of the rows that can be used; the others are counted by reason, the first of each logged."""
    for index, instruction in enumerate(instructions):
        try:
            row = encode(frame, instruction, roles=roles)
        except EncodeError as error:
            reason, detail = "roles", str(error)
        else:
            if row.longest <= limit:
                yield index, row
                continue
            reason, detail = (
                "longer than max_prompt",
                f"{instruction.source}: {row.longest} tokens, max_prompt is {limit}",
            )
        if not left_out[reason]:
            log.warning("left out (%s): %s", reason, detail)
        left_out[reason] += 1


def load(config, frame: ChatFrame, stop_id: int) -> Dataset:
    """Reads everything before the first step: a bad row is an error here, not in the middle of a run.

    Raises RowError (file:line) for rows that break the format, DataError where nothing is left to train on.
    """
    instructions, texts, heldout = _instructions(config)
    left_out: Counter = Counter()
    limit, roles = config.data.max_prompt, config.method != "sft"  # baselines without replay see the rows that HiR sees
    kept = list(_encode_rows(frame, instructions, limit, left_out, roles=roles))
    rows, responses = [row for _, row in kept], []
    if config.method == "sft":
        encoded = frame.tokenizer([texts[i] for i, _ in kept], add_special_tokens=False)["input_ids"]
        responses = [[*ids, stop_id] for ids in encoded]
        short = [i for i, ids in enumerate(responses) if len(ids) <= config.rollout.max_response]
        left_out["longer than max_response"] += len(responses) - len(short)
        rows, responses = [rows[i] for i in short], [responses[i] for i in short]
    heldout_rows = [row for _, row in _encode_rows(frame, heldout, limit, left_out, roles=roles)]
    left_out = +left_out
    if left_out:
        log.warning("left out of %d rows: %s", len(instructions) + len(heldout), dict(left_out))
    if not rows:
        raise DataError(f"no training row is left of {len(instructions)}; left out: {dict(left_out) or 'none'}")
    constraints = max(len(r.segments) for r in [*rows, *heldout_rows])
    order = grain.MapDataset.range(len(rows)).seed(config.seed).shuffle().repeat().batch(config.data.batch_prompts)
    return Dataset(rows, responses, heldout_rows, PartShapes.of([*rows, *heldout_rows], constraints), left_out, order)
