"""Computes what a run logs about a step's samples and replays: metrics, histograms, rows of replays.jsonl and kept.jsonl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

from hir_jax.data.segments import Encoded
from hir_jax.data.templates import render
from hir_jax.engine import Engine
from hir_jax.hir import select
from hir_jax.hir.following import distinct
from hir_jax.rollouts import differing_groups
from hir_jax.sampler.continuous import decode_steps
from hir_jax.types import PromptBatch, Replays, Rollout, Verdicts


def rollout_metrics(engine, rollout: Rollout, verdicts: Verdicts, replays: Replays, rounds: int) -> dict[str, float]:
    """Metrics of the samples that a step trains on and of its selection. The update returns those of the learner.

    `groups_equal`: the share of prompts whose original samples have all the same reward (`dapo.differing`).
    """
    replay, limit = engine.config.replay, engine.config.rollout.max_response
    wanted = (replay.k - rounds) * len(rollout.filled) // engine.settings.samples if len(replays.row) else 0
    filled = rollout.filled
    ila, decided = (np.asarray(x) for x in select.ila(verdicts))
    lengths, valid = rollout.mask.sum(-1), replays.valid
    integrity = np.asarray(select.cla(verdicts))
    tokens = max(1, int(rollout.mask.sum()))
    some = filled & (verdicts.present & verdicts.known).any(-1)
    responses = zip(rollout.tokens[filled], rollout.mask[filled], strict=True)
    metrics = {
        "ila": float(ila[filled & decided].mean()) if (filled & decided).any() else 0.0,
        "cla": float(integrity[some].mean()) if some.any() else 0.0,
        "distinct": float(distinct([row[mask].tobytes() for row, mask in responses]).mean()),
        "samples": int(filled.sum()),
        "undecided": int((filled & ~decided).sum()),
        "unknown_constraints": int((verdicts.present & ~verdicts.known).sum()),
        "response_tokens": float(lengths[filled].mean()),
        "truncated": float((lengths[filled & ~rollout.ended] >= limit).sum() / filled.sum()),
        "policy_entropy": float(rollout.entropy.sum() / tokens),
        "replays": int(valid.sum()),
        "replays_lacking": wanted - int(valid.sum()),
        "resample_rounds": rounds,
    }
    if engine.settings.method.loss == "policy":
        metrics["groups_equal"] = float(1 - differing_groups(rollout, verdicts, engine.settings).mean())
    if valid.any():
        kept = (verdicts.satisfied & verdicts.present)[replays.row[valid]].sum(-1)
        metrics |= {
            "replay_integrity": float(integrity[replays.row[valid]].mean()),
            "replay_kept_constraints": float(kept.mean()),
        }
    return metrics


def sampling_metrics(engine: Engine, drawn: Sequence[tuple[PromptBatch, Rollout]]) -> dict[str, float]:
    """Metrics of all samples of a step, the discarded ones of dynamic sampling included. drawn: its batches of prompts.

    `generated`: their number. `decode_busy`: the share of slots in the decoding loops, over all their steps, that were not idle;
    a long tail of lengths makes it low, and `rollout.slots` raises it.
    """
    metrics = {"generated": sum(int(rollout.filled.sum()) for _, rollout in drawn)}
    if engine.config.rollout.dynamic_rounds:
        metrics["dynamic_rounds"] = len(drawn) - 1
    busy, places = np.sum([_busy_places(engine, *one) for one in drawn], axis=0)
    return metrics | {"decode_busy": float(busy / places) if places else 1.0}


def _busy_places(engine: Engine, prompts: PromptBatch, rollout: Rollout) -> tuple[int, int]:
    """How many slots, over all steps of the decoding loops, decoded a token, and how many there were."""
    n, columns = prompts.tokens.shape
    lengths, first = rollout.mask.sum(-1).reshape(n, -1), engine.settings.first_samples
    calls = [lengths[:, :first]] + [one[:, None] for one in lengths[:, first:].T if one.any()]
    busy = places = 0
    for part in calls:
        slots = engine.settings.slots(n, columns, part.shape[1], engine.config.rollout.max_response) or part.size
        slots = min(slots, part.size)
        busy += int(np.maximum(part - 1, 0).sum())  # the prefill gives the first token
        places += slots * decode_steps(part.reshape(engine.settings.queues, -1), slots)
    return busy, places


def distributions(rollout: Rollout, verdicts: Verdicts, replays: Replays) -> dict[str, np.ndarray]:
    """For histograms: the lengths, CLA and entropies of a step's samples, and the integrity of its replays."""
    filled = np.asarray(rollout.filled)
    integrity, lengths = np.asarray(select.cla(verdicts)), rollout.mask.sum(-1)
    return {
        "samples/response_tokens": lengths[filled],
        "samples/cla": integrity[filled],
        "samples/entropy": (rollout.entropy.sum(-1) / np.maximum(lengths, 1))[filled],
        "replays/integrity": integrity[replays.row[replays.valid]],
    }


def replay_rows(
    engine: Engine, rows: list[Encoded], rollout: Rollout, verdicts: Verdicts, replays: Replays, count: int
):
    """The `count` best replayed pairs as JSON objects for replays.jsonl."""
    picked = replays.row[replays.valid][:count]
    texts = engine.backbone.texts(jax.tree.map(lambda x: x[picked], rollout))
    for row, text, score in zip(picked, texts, replays.score[replays.valid], strict=False):
        instruction = rows[row // engine.settings.samples].instruction
        met = verdicts.satisfied[row][: len(instruction.constraints)]
        yield {
            "key": instruction.key,
            "task": instruction.task,
            "template": instruction.template,
            "constraints": [
                {"id": c.id, "text": c.text, "satisfied": bool(ok)}
                for c, ok in zip(instruction.constraints, met, strict=True)
            ],
            "original": render(instruction),
            "response": text,
            "rewritten": render(instruction, met),
            "score": float(score),
            "integrity": float(met.mean()),
        }


def kept_by_type(
    engine: Engine, rows: list[Encoded], verdicts: Verdicts, replays: Replays
) -> dict[str, tuple[int, int]]:
    """Counts over all replays of a step: constraint type -> (times kept, times asked for by the originals)."""
    kept, asked = Counter(), Counter()
    for row in replays.row[replays.valid]:
        constraints = rows[row // engine.settings.samples].instruction.constraints
        asked.update(c.id for c in constraints)
        kept.update(c.id for c, met in zip(constraints, verdicts.satisfied[row], strict=False) if met)
    return {name: (kept[name], asked[name]) for name in sorted(asked)}
