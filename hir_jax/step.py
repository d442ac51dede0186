"""The stages of one training step on the host: roll out, verify, select, relabel. `train.py` strings them together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

from hir_jax.constraints.verifier import Row, Verifier
from hir_jax.engine import Engine
from hir_jax.functions import SAMPLE
from hir_jax.instructions.dataset import Dataset
from hir_jax.instructions.roles import Encoded
from hir_jax.instructions.templates import render
from hir_jax.learner.losses import truncated_importance
from hir_jax.parallel import processes
from hir_jax.replay import select
from hir_jax.replay.following import distinct
from hir_jax.rollout.continuous import decode_steps
from hir_jax.types import PromptBatch, Replays, Rollout, TrainBatch, Verdicts


class Clock:
    """Seconds per phase of a step, under metric keys that contain `seconds`."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds/{phase}"] = self.seconds.get(f"seconds/{phase}", 0.0) + now - self._last
        self._last = now


def empty_rollout(rows: int, columns: int, pad_id: int) -> Rollout:
    """Slots without a sample."""
    zeros = np.zeros((rows, columns), np.float32)
    return Rollout(
        np.full((rows, columns), pad_id, np.int32), zeros.astype(bool), zeros, zeros,
        ended=np.zeros(rows, bool), filled=np.zeros(rows, bool),
    )  # fmt: skip


def put_slots(whole, part, prompts: int, first: int):
    """A copy of `whole` (trees of [prompts * slots, ...] arrays) with `part` in the slots from `first` of every prompt."""

    def one(a, b):
        a = a.reshape(prompts, -1, *a.shape[1:]).copy()
        b = b.reshape(prompts, -1, *b.shape[1:])
        a[:, first : first + b.shape[1]] = b
        return a.reshape(-1, *a.shape[2:])

    return jax.tree.map(one, whole, part)


def verify(
    engine: Engine, verifier: Verifier, rows: list[Encoded], rollout: Rollout, wanted, width: int, step: int, conditions
) -> Verdicts:
    """The constraints `wanted`, bool[B, C] or bool[B, 1]; row b belongs to prompt b // (B / N). `conditions`: of the N
    prompts, for the device to decide first, or None; of what is left each process decides its share, and `processes.union` of
    them is whole."""
    samples, per_prompt = len(rollout.filled), len(rollout.filled) // len(rows)
    found = Verdicts(*(np.zeros((samples, width), bool) for _ in Verdicts._fields))
    if conditions is not None:
        found = Verdicts(*map(np.array, engine.verify(conditions, rollout)))
    for b, present in enumerate(found.present):
        present[: len(rows[b // per_prompt].instruction.constraints)] = True
    left = found.present & ~found.known & wanted
    open_rows = processes.share(np.flatnonzero(left.any(-1)))  # only these have to become text
    if not len(open_rows):
        return found
    checks = []
    for b, text in zip(open_rows, engine.answers(jax.tree.map(lambda x: x[open_rows], rollout)), strict=True):
        instruction = rows[b // per_prompt].instruction
        label = f"step {step}, row {b} ({instruction.source})"
        open_constraints = [instruction.constraints[c] for c in np.flatnonzero(left[b])]
        checks.append(Row(open_constraints, text, render(instruction), label))
    host = verifier.verify(checks, width)
    for i, b in enumerate(open_rows):
        found.satisfied[b, left[b]] = host.satisfied[i, : len(checks[i].constraints)]
        found.known[b, left[b]] = host.known[i, : len(checks[i].constraints)]
    return found


class SharedVerifier:
    """A Verifier whose rows are shared out: each process, asked for all of them, checks its share, and gets all verdicts."""

    def __init__(self, verifier: Verifier):
        self._verifier = verifier

    def verify(self, rows: Sequence[Row], width: int, *, loose: bool = False) -> Verdicts:
        found = Verdicts(*(np.zeros((len(rows), width), bool) for _ in Verdicts._fields))
        mine = processes.share(np.arange(len(rows)))
        for whole, part in zip(found, self._verifier.verify([rows[i] for i in mine], width, loose=loose), strict=True):
            whole[mine] = part
        return processes.union(found)


def sample_and_verify(
    engine: Engine, verifier: Verifier, params, rows, prompts: PromptBatch, ids, step: int, clock: Clock, conditions
) -> tuple[Rollout, Verdicts]:
    """Responses with ids i32[N, S] and their verdicts. Responses that end early are verified while the others are still
    being decoded, except where the device has a say, which is busy then."""
    width = prompts.parts.present.shape[1]
    how = params, prompts, ids, engine.key(SAMPLE, step), engine.rollout_sampling
    if conditions is not None:
        whole = engine.sample(*how)
        clock.lap("sample")
        found = processes.union(verify(engine, verifier, rows, whole, whole.filled[:, None], width, step, conditions))
        clock.lap("verify")
        return whole, found
    verdicts = Verdicts(*(np.zeros((ids.size, width), bool) for _ in Verdicts._fields))
    for rollout, complete in engine.sample_in_parts(*how):
        clock.lap("sample")
        if complete.any():
            part = verify(engine, verifier, rows, rollout, complete[:, None], width, step, None)
            verdicts = jax.tree.map(lambda new, old, w=complete: np.where(w[:, None], new, old), part, verdicts)
        clock.lap("verify")
    verdicts = processes.union(verdicts)  # not sooner: it would wait for the decoding
    clock.lap("verify")
    return rollout, verdicts


def roll_out(
    engine: Engine, verifier: Verifier, params, rows, prompts: PromptBatch, step: int, clock: Clock, conditions=None
):
    """Samples m responses a prompt (m + k without replay), verifies them, and samples more where failures to replay lack.

    Returns (Rollout, Verdicts) of N * (m + k) slots and the number e of further rounds.
    """
    config, n, slots = engine.config, len(rows), engine.samples
    first = engine.first_samples
    ids = np.arange(n * slots).reshape(n, slots)  # a row's noise follows its slot, in whichever round it is drawn
    rollout = empty_rollout(n * slots, config.rollout.max_response, engine.pad_id)
    width = prompts.parts.present.shape[1]
    verdicts = Verdicts(*(np.zeros((n * slots, width), bool) for _ in Verdicts._fields))
    begin, end, rounds = 0, first, 0
    params = jax.block_until_ready(engine.for_sampling(params))
    clock.lap("reshard")
    while begin < end:
        count = first if begin == 0 else 1
        now = ids[:, begin : begin + count]
        found = sample_and_verify(engine, verifier, params, rows, prompts, now, step, clock, conditions)
        rollout, verdicts = put_slots((rollout, verdicts), found, n, begin)
        begin += count
        if begin == first and engine.replays and config.replay.fill == "resample":
            mask_truncated = config.learner.mask_truncated
            usable = select.candidates(rollout, verdicts, config.replay, mask_truncated=mask_truncated)
            rounds = select.missing_rounds(int(usable.sum()), n, config.replay.k)
            end = first + rounds
    return rollout, verdicts, rounds


def select_replays(engine: Engine, rollout: Rollout, verdicts: Verdicts, rounds: int, step: int) -> Replays:
    """(k - e) * N failures with the largest F(y); no place at all where nothing is replayed or paired with itself."""
    if not (engine.replays or engine.pairs_instructions):
        return Replays(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, bool))
    return engine.select(rollout, verdicts, step, rounds)


def build_pairs(engine, ref_params, prompts, rollout, verdicts, replays) -> TrainBatch:
    """The preference pairs of a step, for DPO, with the reference's log-prob of each row as it stands."""
    batch = engine.pairs(prompts, rollout, verdicts, replays)
    return batch._replace(ref_logp=engine.score(ref_params, batch.tokens, batch.prompt_length, batch.response_mask))


def build_batch(engine, ref_params, params, prompts, rollout, verdicts, replays) -> tuple[TrainBatch, dict[str, float]]:
    """Reference log-probs, rewards, and the relabelling: the TrainBatch of a step. With `rollout.old_logp` "trainer" (as the
    released code) the trainer's log-probs take the place of the sampler's; their ratio corrects the loss if there is a
    `learner.importance_cap`, and metrics say how far the two are apart. With `replay.behaviour` "rewritten" a replay's pi_old
    and pi_ref are given q', so that the ratio starts at 1 and the KL is that of one conditional; as released, both are given
    q, under which y was sampled."""
    reward, weight = select.rewards(rollout, verdicts, **engine.reward_settings)
    ref_logp, importance = np.zeros_like(rollout.sampler_logp), np.ones_like(rollout.sampler_logp)
    whole = np.concatenate([np.repeat(prompts.tokens, engine.samples, 0), rollout.tokens], axis=1)
    given = whole, np.repeat(prompts.length, engine.samples), rollout.mask
    if ref_params is not None:
        ref_logp = engine.score(ref_params, *given)
    metrics = {}
    if engine.settings.scores_old:
        trainer = engine.score(params, *given)
        cap = engine.settings.importance_cap
        importance, metrics = jax.device_get(truncated_importance(trainer, rollout.sampler_logp, rollout.mask, cap))
        rollout = rollout._replace(sampler_logp=trainer)
    batch = engine.relabel(prompts, rollout, ref_logp, importance, reward, weight, verdicts, replays)
    if engine.config.replay.behaviour == "rewritten" and replays.valid.any():
        given, is_replay = (batch.tokens, batch.prompt_length, batch.response_mask), engine.fetch(batch.is_replay)
        for name, weights in {"behaviour_logp": params, "ref_logp": ref_params}.items():
            if weights is not None:
                fresh, old = engine.score(weights, *given), engine.fetch(getattr(batch, name))
                batch = batch._replace(**{name: np.where(is_replay[:, None], fresh, old)})
    return batch, {name: float(value) for name, value in metrics.items()}


def rollout_metrics(engine, rollout: Rollout, verdicts: Verdicts, replays: Replays, rounds: int) -> dict[str, float]:
    """What a step's samples and selection looked like (learner metrics come from the update)."""
    replay, limit = engine.config.replay, engine.config.rollout.max_response
    wanted = (replay.k - rounds) * len(rollout.filled) // engine.samples if len(replays.row) else 0
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
    if valid.any():
        kept = (verdicts.satisfied & verdicts.present)[replays.row[valid]].sum(-1)
        metrics |= {
            "replay_integrity": float(integrity[replays.row[valid]].mean()),
            "replay_kept_constraints": float(kept.mean()),
        }
    return metrics


def decode_busy(engine: Engine, prompts: PromptBatch, rollout: Rollout) -> float:
    """The share of the rows that the decoding loops had room for, over all their steps, that were still running: 1 less the idle
    share. What keeps it low is a long tail of lengths; `rollout.slots` is against that."""
    n, columns = prompts.tokens.shape
    lengths, first = rollout.mask.sum(-1).reshape(n, -1), engine.first_samples
    calls = [lengths[:, :first]] + [one[:, None] for one in lengths[:, first:].T if one.any()]
    busy = places = 0
    for part in calls:
        slots = engine.slots(n, columns, part.shape[1], engine.config.rollout.max_response) or part.size
        slots = min(slots, part.size)
        busy += int(np.maximum(part - 1, 0).sum())  # the first token is the prefill's
        places += slots * decode_steps(part.reshape(engine.queues, -1), slots)
    return busy / places if places else 1.0


def distributions(rollout: Rollout, verdicts: Verdicts, replays: Replays) -> dict[str, np.ndarray]:
    """Of a step's samples: response lengths, shares of constraints met, entropies; and the integrity of what is replayed."""
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
    texts = engine.texts(jax.tree.map(lambda x: x[picked], rollout))
    for row, text, score in zip(picked, texts, replays.score[replays.valid], strict=False):
        instruction = rows[row // engine.samples].instruction
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
    """Over all replays of a step: constraint type -> (how often it was kept, how often the originals asked for it)."""
    kept, asked = Counter(), Counter()
    for row in replays.row[replays.valid]:
        constraints = rows[row // engine.samples].instruction.constraints
        asked.update(c.id for c in constraints)
        kept.update(c.id for c, met in zip(constraints, verdicts.satisfied[row], strict=False) if met)
    return {name: (kept[name], asked[name]) for name in sorted(asked)}


def sft_batch(engine: Engine, data: Dataset, indices: np.ndarray) -> TrainBatch:
    """Instruction/response pairs as a NumPy TrainBatch; the response's end token is trained on."""
    rows = [data.rows[i] for i in indices]
    prompts = engine.prompts(rows, data.shapes)
    columns = engine.config.rollout.max_response
    responses = np.full((len(rows), columns), engine.pad_id, np.int32)
    mask = np.zeros((len(rows), columns), bool)
    for b, i in enumerate(indices):
        responses[b, : len(data.responses[i])] = data.responses[i]
        mask[b, : len(data.responses[i])] = True
    zeros = np.zeros(mask.shape, np.float32)
    ones = np.ones(len(rows), np.float32)
    return TrainBatch(
        np.concatenate([prompts.tokens, responses], axis=1), prompts.length, mask, zeros, zeros, np.ones_like(zeros), ones, ones,
        group=np.arange(len(rows), dtype=np.int32), is_replay=np.zeros(len(rows), bool),
    )  # fmt: skip
