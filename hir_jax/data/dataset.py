"""Loads a run's instructions: reads or generates them, tokenises them by roles, filters by length, and orders them by step."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grain
import numpy as np

from hir_jax import paths
from hir_jax.checks import registry
from hir_jax.data import hir16k, if_rlvr, native, prepared, token_cache
from hir_jax.data.batches import PartShapes
from hir_jax.data.chat import EncodeError
from hir_jax.data.chat_frame import ChatFrame
from hir_jax.data.generate import synthesis
from hir_jax.data.generate.tiny import witness
from hir_jax.data.mixture import FILES, Part, parts_of, shares
from hir_jax.data.native import Pair, unanswered
from hir_jax.data.rows import BrokenRowError
from hir_jax.data.segments import Encoded
from hir_jax.hir.methods import METHODS
from hir_jax.pathflags import expanded
from hir_jax.types import MIXTURE, InputError, Instruction

log = logging.getLogger(__name__)


class DataError(InputError):
    """The data cannot be trained on; the message says what to change."""


@dataclass(frozen=True)
class Dataset:
    """Training rows (for sft with tokenised responses, end token included), held-out rows, and counts of rows left out."""

    rows: list[Encoded]
    responses: list[list[int]]  # for sft only
    heldout: list[Encoded]
    shapes: PartShapes
    left_out: Counter  # reason -> rows
    order: grain.MapDataset  # step -> indices of the step's rows, i64[N]

    def indices(self, step: int) -> np.ndarray:
        """Indices of a step's rows: every row once an epoch, in a new order each epoch; a function of (config.seed, step)."""
        return np.asarray(self.order[step])


def other_rows(rows: int, own: np.ndarray, rounds: int, seed: Sequence[int]) -> np.ndarray:
    """i64[rounds, N]: further batches of N = len(own) of so many training rows, none of them twice and none of `own`; drawn from
    `seed`. There must be `rounds` times N of them."""
    others = np.setdiff1d(np.arange(rows), own)
    return np.random.default_rng(seed).permutation(others)[: rounds * len(own)].reshape(rounds, len(own))


def _published(found: tuple[list[Instruction], list[BrokenRowError]], left_out: Counter) -> list[Pair]:
    """Rows of a published file; those that break its schema are counted by reason, and the first for each reason is logged."""
    instructions, errors = found
    for error in errors:
        if not left_out[reason := f"broken row, {error.reason}"]:
            log.warning("left out (broken row): %s", error)
        left_out[reason] += 1
    return unanswered(instructions)


def _witness_ids(data) -> tuple[str, ...]:
    """The constraint types of training and held-out rows: the config's, or all, without the unseen ones."""
    if unknown := [id for id in data.unseen_ids if id not in witness.IDS]:
        raise DataError(
            f"config.data.unseen_ids: the source witness knows no {', '.join(unknown)}; it knows {', '.join(witness.IDS)}"
        )
    named = tuple(data.constraint_ids) or (witness.IDS if data.unseen_ids else ())
    return tuple(id for id in named if id not in data.unseen_ids)


def _limits(data) -> dict:
    return {
        "min_constraints": data.min_constraints, "max_constraints": data.max_constraints, "templates": tuple(data.templates)
    }  # fmt: skip


def _pairs(config, split: str, left_out: Counter) -> list[Pair]:
    """(instruction, response or "") of a split of the config's source, "train" or "heldout". Only sft needs responses."""
    data, train = config.data, split == "train"
    answered = train and not METHODS[config.method].samples
    path, size = expanded(data.path if train else data.eval_path), data.size if train else data.eval_size
    match data.source:
        case "jsonl" if path:
            return native.read_pairs(path) if answered else unanswered(native.read(path))
        case "hir16k" if path:
            return _published(hir16k.read(path, template=data.template or None), left_out)
        case "if_rlvr" if path:
            return _published(if_rlvr.read(path), left_out)
        case "tfds" if train:
            return prepared.read_pairs(path, data.name, split)
        case "tfds":
            return unanswered(prepared.read_heldout(expanded(data.path), data.name))
        case "witness":
            how = _limits(data) | {"ids": _witness_ids(data), "label_noise": data.label_noise if answered else 0.0}
            return witness.generate(data.seed, size, split=split, **how)
        case "generated":
            how = _limits(data) | {"families": tuple(data.families), "without": tuple(data.unseen_ids)}
            return unanswered(synthesis.generate(data.seed, size, split=split, **how))
    return []


def _hold_out(data, pairs: list[Pair]) -> tuple[list[Pair], list[Instruction]]:
    """(pairs to train on, held-out instructions) of the pairs of one file. Tasks are held out with all their rows, in the order
    of their hashes, until there are `data.hold_out` rows or more. So the choice depends only on the file's tasks, and no task
    is both trained and evaluated on. Raises DataError if nothing would be left to train on."""
    count, tasks = Counter(q.task for q, _ in pairs), set()
    for task in sorted(count, key=lambda task: hashlib.sha256(task.encode("utf-8", "surrogatepass")).digest()):
        if sum(count[one] for one in tasks) < data.hold_out:
            tasks.add(task)
    kept = [pair for pair in pairs if pair[0].task not in tasks]
    if not kept:
        raise DataError(
            f"config.data.hold_out = {data.hold_out} leaves no task of {data.path} to train on ({len(count)} tasks in "
            f"{len(pairs)} rows): give fewer, or 0 and a config.data.eval_path"
        )
    return kept, [q for q, _ in pairs if q.task in tasks]


def _read(config, left_out: Counter) -> tuple[list[Pair], list[Instruction]]:
    """(pairs to train on, held-out instructions); a file that holds both is read once."""
    if config.data.source == "mixture":
        return _read_mixture(config, left_out)
    pairs = _pairs(config, "train", left_out)
    if not config.data.hold_out:
        return pairs, heldout(config, left_out)
    pairs, held = _hold_out(config.data, pairs)
    return pairs, held[: config.data.eval_size]


def _read_mixture(config, left_out: Counter) -> tuple[list[Pair], list[Instruction]]:
    """`_read` of each source of the mixture, with its name as label: the first rows up to its limit, and of its held-out
    instructions a share of `data.eval_size` by its weight."""
    pairs, held = [], []
    parts = parts_of(config.data.mixture)
    for part, share in zip(parts, shares(parts, config.data.eval_size), strict=True):
        own = config.copy_and_resolve_references()
        own.data.update({
            "source": part.source, "path": part.path, "eval_path": "", "eval_size": share, "size": part.rows or config.data.size,
            "hold_out": config.data.hold_out if part.source in FILES else 0,
        })  # fmt: skip
        mine, others = _read(own, left_out)
        pairs += [(_labelled(q, part), response) for q, response in mine[: part.rows or None]]
        held += [_labelled(q, part) for q in others]
    return pairs, held


def _labelled(instruction: Instruction, part: Part) -> Instruction:
    return replace(instruction, labels={**instruction.labels, MIXTURE: part.name})


def heldout(config, left_out: Counter | None = None) -> list[Instruction]:
    """The config's held-out instructions, `data.eval_size` at most."""
    left_out = Counter() if left_out is None else left_out
    if config.data.hold_out or config.data.source == "mixture":
        return _read(config, left_out)[1]
    return [instruction for instruction, _ in _pairs(config, "heldout", left_out)][: config.data.eval_size]


def unseen(config) -> list[Instruction]:
    """`data.eval_size` out-of-distribution instructions: their constraints are all of the types `data.unseen_ids`, which no
    training row holds. The most constraints of one is the config's maximum, or half the number of those types if that is less."""
    data = config.data
    if data.source not in ("witness", "generated") or not data.unseen_ids:
        raise DataError(
            "unseen constraint types need config.data.unseen_ids, and config.data.source witness or generated"
        )
    most = min(data.max_constraints, len(data.unseen_ids) // 2)
    if not most:
        raise DataError(f"config.data.unseen_ids = {tuple(data.unseen_ids)}: name two or more")
    how = _limits(data) | {"min_constraints": min(data.min_constraints, most), "max_constraints": most}
    how["split"] = "heldout"
    if data.source == "witness":
        return [q for q, _ in witness.generate(data.seed, data.eval_size, ids=tuple(data.unseen_ids), **how)]
    families = tuple(data.families)
    others = tuple(id for id in synthesis.draws_of(families) if id not in data.unseen_ids)
    return synthesis.generate(data.seed, data.eval_size, families=families, without=others, **how)


@dataclass(frozen=True)
class _Fit:
    """The conditions that a row must meet to be used."""

    frame: ChatFrame
    limit: int  # tokens of a prompt
    roles: bool  # whether it must be rewritable
    deciders: frozenset[str]  # the enabled ones
    cache: Path | None = None  # a directory for tokenised rows

    def encode(self, instructions: Sequence[Instruction]) -> Iterator[tuple[Encoded | None, str, str]]:
        """(the row or None, a short reason, the reason in detail) for each instruction."""
        missing = [registry.missing_decider(q.constraints, self.deciders) for q in instructions]
        wanted = [q for q, name in zip(instructions, missing, strict=True) if not name]
        encoded = iter(token_cache.encode_all(self.frame, wanted, roles=self.roles, directory=self.cache))
        for instruction, name in zip(instructions, missing, strict=True):
            if name:
                yield None, f"needs the decider {name!r}", f"{instruction.source}: config.constraints has it off"
            elif isinstance(row := next(encoded), EncodeError):
                yield None, row.reason, str(row)
            elif row.longest > self.limit:
                detail = f"{instruction.source}: {row.longest} tokens, max_prompt is {self.limit}"
                yield None, "longer than max_prompt", detail
            else:
                yield row, "", ""


def _encode_rows(fit: _Fit, instructions: Sequence[Instruction], left_out: Counter) -> Iterator[tuple[int, Encoded]]:
    """(index, Encoded) of the rows that can be used. The others are counted by reason; the first for each reason is logged."""
    for index, (row, reason, detail) in enumerate(fit.encode(instructions)):
        if row is not None:
            yield index, row
            continue
        if not left_out[reason]:
            log.warning("left out (%s): %s", reason, detail)
        left_out[reason] += 1


def _order(config, rows: Sequence[Encoded]) -> grain.MapDataset:
    """The endless stream of indices of rows; of a mixture's sources each has its own, and they are mixed by their weights."""
    if config.data.source != "mixture":
        return prepared.epochs(range(len(rows)), config.seed)
    parts = parts_of(config.data.mixture)
    of = {part.name: [] for part in parts}
    for index, row in enumerate(rows):
        of[row.instruction.labels[MIXTURE]].append(index)
    if empty := [name for name, indices in of.items() if not indices]:
        raise DataError(f"config.data.mixture: no training row is left of {', '.join(empty)}")
    streams = [prepared.epochs(of[part.name], config.seed) for part in parts]
    return grain.MapDataset.mix(streams, [part.weight for part in parts])


def load(config, frame: ChatFrame, end_id: int, deciders: frozenset[str] = frozenset()) -> Dataset:
    """Reads all data before the first step, so that a bad row is an error here and not in the middle of a run.

    end_id: the token that ends a response, for sft. deciders: rows that need another decider (`registry.declare`) are left
    out. Raises RowError (file:line) for rows that break the format, DataError if nothing is left to train on.
    """
    left_out: Counter = Counter()
    pairs, held = _read(config, left_out)
    # Methods without replay rewrite nothing, but must see the same rows as HiR to be compared with it.
    cache = paths.at(expanded(config.compilation_cache)) if config.compilation_cache else None
    fit = _Fit(frame, config.data.max_prompt, METHODS[config.method].samples, deciders, cache)
    kept = list(_encode_rows(fit, [instruction for instruction, _ in pairs], left_out))
    rows, responses = [row for _, row in kept], []
    if not METHODS[config.method].samples:
        texts = [pairs[i][1] for i, _ in kept]
        if not all(texts):
            raise DataError(f"config.data.source = {config.data.source!r} has rows without a response, which sft fits")
        encoded = frame.tokenizer(texts, add_special_tokens=False)["input_ids"]
        responses = [[*ids, end_id] for ids in encoded]
        short = [i for i, ids in enumerate(responses) if len(ids) <= config.rollout.max_response]
        left_out["longer than max_response"] += len(responses) - len(short)
        rows, responses = [rows[i] for i in short], [responses[i] for i in short]
    heldout_rows = [row for _, row in _encode_rows(fit, held, left_out)]
    left_out = +left_out
    if left_out:
        log.warning("left out: %s; %d rows are left", dict(left_out), len(rows) + len(heldout_rows))
    if not rows:
        raise DataError(f"no training row is left of {len(pairs)}; left out: {dict(left_out) or 'none'}")
    rounds, batch = config.rollout.dynamic_rounds, config.data.batch_prompts
    if rounds and len(rows) < (1 + rounds) * batch:
        raise DataError(
            f"config.rollout.dynamic_rounds = {rounds} may draw {(1 + rounds) * batch} different rows in a step, and there are "
            f"{len(rows)}: make it {max(0, len(rows) // batch - 1)} or less, or give more training rows"
        )
    constraints = max(len(r.segments) for r in [*rows, *heldout_rows])
    order = _order(config, rows).batch(config.data.batch_prompts)
    return Dataset(rows, responses, heldout_rows, PartShapes.of([*rows, *heldout_rows], constraints), left_out, order)
