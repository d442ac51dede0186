"""Samples a step's responses and verifies them on the host, with further rounds if there are too few failures to replay, or too
few prompts whose rewards differ (dynamic sampling)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from hir_jax.checks.verifier import Row, Verifier
from hir_jax.data.segments import Encoded
from hir_jax.data.templates import render
from hir_jax.engine import SAMPLE, Engine
from hir_jax.hir import dapo, select
from hir_jax.parallel import processes
from hir_jax.step import StepSettings, empty_slots, put_slots, sample_rewards
from hir_jax.types import PromptBatch, Rollout, Verdicts


class Clock:
    """Seconds per phase of a step, under metric keys that contain `seconds`."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds/{phase}"] = self.seconds.get(f"seconds/{phase}", 0.0) + now - self._last
        self._last = now


def no_verdicts(*shape: int) -> Verdicts:
    """Verdicts bool[*shape] (NumPy) without any constraint, to be filled in."""
    return Verdicts(*(np.zeros(shape, bool) for _ in Verdicts._fields))


def verify(
    engine: Engine, verifier: Verifier, rows: list[Encoded], rollout: Rollout, wanted, width: int, step: int, conditions
) -> Verdicts:
    """Verdicts bool[B, width] on the constraints `wanted`, bool[B, C] or bool[B, 1]; row b belongs to prompt b // (B / N).

    conditions: the N prompts' constraints that the device decides first, or None. Each process decides its share of what is left,
    so that only `processes.union` of the results is complete.
    """
    per_prompt = len(rollout.filled) // len(rows)
    found = no_verdicts(len(rollout.filled), width)
    if conditions is not None:
        found = Verdicts(*map(np.array, engine.check(conditions, rollout)))
    for b, present in enumerate(found.present):
        present[: len(rows[b // per_prompt].instruction.constraints)] = True
    left = found.present & ~found.known & wanted
    open_rows = processes.share(np.flatnonzero(left.any(-1)))  # only these have to become text
    if not len(open_rows):
        return found
    checks = []
    for b, text in zip(open_rows, engine.backbone.answers(jax.tree.map(lambda x: x[open_rows], rollout)), strict=True):
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
    """A Verifier that shares out its rows: each process is asked for all of them, checks its share, and gets all verdicts."""

    def __init__(self, verifier: Verifier):
        self._verifier = verifier

    def verify(self, rows: Sequence[Row], width: int, *, loose: bool = False) -> Verdicts:
        found = no_verdicts(len(rows), width)
        mine = processes.share(np.arange(len(rows)))
        for whole, part in zip(found, self._verifier.verify([rows[i] for i in mine], width, loose=loose), strict=True):
            whole[mine] = part
        return processes.union(found)


def sample_and_verify(
    engine: Engine, verifier: Verifier, params, rows, prompts: PromptBatch, ids, step: int, clock: Clock, conditions
) -> tuple[Rollout, Verdicts]:
    """Responses with ids i32[N, S] and their verdicts. Responses that end early are verified while the others are still
    being decoded, unless the device, which is busy then, takes part in the checks."""
    width = prompts.parts.present.shape[1]
    how = params, prompts, ids, engine.key(SAMPLE, step), engine.settings.rollout_sampling
    if conditions is not None:
        whole = engine.sample(*how)
        clock.lap("sample")
        found = processes.union(verify(engine, verifier, rows, whole, whole.filled[:, None], width, step, conditions))
        clock.lap("verify")
        return whole, found
    verdicts = no_verdicts(ids.size, width)
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
    """Samples m responses a prompt (m + k without replay), verifies them, and samples more if there are too few failures.

    Returns (Rollout, Verdicts) of N * (m + k) slots and the number e of further rounds.
    """
    config, n, slots = engine.config, len(rows), engine.settings.samples
    first = engine.settings.first_samples
    ids = np.arange(n * slots).reshape(n, slots)  # a row's noise follows its slot, in whichever round it is drawn
    width = prompts.parts.present.shape[1]
    found = empty_slots(n * slots, config.rollout.max_response, width, engine.settings.pad_id)
    begin, end, rounds = 0, first, 0
    params = jax.block_until_ready(engine.for_sampling(params))
    clock.lap("reshard")
    while begin < end:
        count = first if begin == 0 else 1
        now = ids[:, begin : begin + count]
        part = sample_and_verify(engine, verifier, params, rows, prompts, now, step, clock, conditions)
        found = put_slots(found, part, n, begin)
        begin += count
        if begin == first and engine.settings.replays and config.replay.fill == "resample":
            mask_truncated = config.learner.mask_truncated
            usable = select.candidates(*found, config.replay, mask_truncated=mask_truncated)
            rounds = select.missing_rounds(int(usable.sum()), n, config.replay.k)
            end = first + rounds
    return *found, rounds


class Sampled(NamedTuple):
    """The N prompts that a step with dynamic sampling trains on, with S samples each, and all that was sampled for it."""

    indices: np.ndarray  # i64[N], training rows
    rollout: Rollout  # N * S rows
    verdicts: Verdicts  # N * S rows
    drawn: list[tuple[PromptBatch, Rollout]]  # of the first batch and of each further one, discarded samples included


def differing_groups(rollout: Rollout, verdicts: Verdicts, settings: StepSettings) -> np.ndarray:
    """bool[N]: the prompts whose samples' rewards differ, by the method's rewards (`dapo.differing`)."""
    return dapo.differing(*sample_rewards(rollout, verdicts, settings=settings), settings.samples)


def roll_out_dynamic(
    engine: Engine, verifier: Verifier, params, batches: Sequence[np.ndarray], given: Callable, step: int, clock: Clock
) -> Sampled:
    """Dynamic sampling, for methods without replay: samples and verifies `batches[0]`, and further batches while there are
    groups whose rewards do not differ; each batch's groups whose rewards differ take their places (`dapo.replacements`).

    Surplus groups are discarded. Groups left over after the last batch keep their first samples. batches: i64[N] each, indices
    of training rows; given: indices -> (rows, PromptBatch, conditions or None).
    """
    n, slots, drawn = len(batches[0]), engine.settings.samples, []
    params = jax.block_until_ready(engine.for_sampling(params))
    clock.lap("reshard")
    for number, indices in enumerate(batches):
        rows, prompts, conditions = given(indices)
        clock.lap("data")
        ids = np.arange(n * slots).reshape(n, slots) + number * n * slots  # noise of its own for each batch
        fresh = sample_and_verify(engine, verifier, params, rows, prompts, ids, step, clock, conditions)
        drawn.append((prompts, fresh[0]))
        differ, fresh = differing_groups(*fresh, engine.settings), (indices, *fresh)
        if number == 0:
            kept, done = fresh, differ
        else:
            places, sources = dapo.replacements(done, differ)
            kept = dapo.with_groups(kept, fresh, places, sources)
            done[places] = True
        if done.all():
            break
    return Sampled(*kept, drawn)
