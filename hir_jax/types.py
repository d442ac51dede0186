"""The data types of a training step, in the order in which a batch passes through them.

Types that hold text are frozen dataclasses. Types that hold arrays are NamedTuples, which are pytrees without importing jax
(verifier workers import this module and must not import jax).

Letters in shapes: N prompts, B rows, C constraints of a row (padded), P prompt tokens, R response tokens, V words, M rows of the
buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import jax
    import numpy as np

    Array = jax.Array | np.ndarray
else:
    Array = Any


class InputError(ValueError):
    """Bad input: a config key, row, checkpoint, file or device count. The message names it, says where it is and what to do.
    Programs end with that message alone and status 1."""


MIXTURE = "mixture"  # the label of an instruction that comes from one of several sources


@dataclass(frozen=True)
class Constraint:
    """One atomic constraint c: its `id` in the registry, the `arguments` of its check, its `text` in the instruction."""

    id: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class Instruction:
    """q = (x, C): a task and its constraints, rendered with one of the templates of `data.templates`.

    `source` is the row's origin for messages ("file.jsonl:12"). `labels` are the values by which a benchmark's accuracy is
    broken down ("level" -> "Level 3"), and under MIXTURE the name of the row's source in a mixture.
    """

    task: str
    constraints: tuple[Constraint, ...]
    template: str = "type1"
    key: str | int = ""
    source: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


class PromptParts(NamedTuple):
    """Tokens from which any rewriting of a prompt is gathered (`hir.relabel`).

    A prompt is head + the kept constraints, each in its role, + tail. A role is 2 * ordinal class + (is the last one);
    the ordinal class is min(ordinal, Q - 1), where `Q = roles / 2` is 2 for plain templates and C for numbered ones.
    """

    head: Array  # i32[N, A], left-aligned
    head_length: Array  # i32[N]
    segments: Array  # i32[N, C, 2Q, S], left-aligned
    segment_length: Array  # i32[N, C, 2Q]
    tail: Array  # i32[N, Z], left-aligned
    tail_length: Array  # i32[N]
    ordinals: Array  # i32[N]: number of ordinal classes of the row's template, 2 or C
    present: Array  # bool[N, C]: the row has a c-th constraint


class PromptBatch(NamedTuple):
    """N prompts, right-aligned (padding on the left), so that every response starts in column P."""

    tokens: Array  # i32[N, P]
    length: Array  # i32[N]
    parts: PromptParts


class Rollout(NamedTuple):
    """Sampled responses. Log-probs and entropies are of the policy at the training temperature, over the full vocabulary."""

    tokens: Array  # i32[B, R], padded on the right
    mask: Array  # bool[B, R]: True for tokens of the response, including the end token
    sampler_logp: Array  # f32[B, R], 0 outside the mask
    entropy: Array  # f32[B, R], nats, 0 outside the mask
    ended: Array  # bool[B]: a stop token was sampled (False: cut at the maximum length)
    filled: Array  # bool[B]: the slot holds a sample


class Verdicts(NamedTuple):
    """The verdict on each constraint. `known` is False if its check raised an error, timed out or was not answered."""

    satisfied: Array  # bool[B, C]
    known: Array  # bool[B, C]
    present: Array  # bool[B, C]


class Replays(NamedTuple):
    """Selected failures, best first. Rows past the number selected have `valid` False."""

    row: Array  # i32[K]: index into the rollout's rows
    score: Array  # f32[K]: F(y) = F_div + lambda_s * F_int
    valid: Array  # bool[K]


class TrainBatch(NamedTuple):
    """Samples to train on, each replay directly after its source row. Columns: P prompt tokens, then R response tokens."""

    tokens: Array  # i32[B, P + R], prompt right-aligned, response left-aligned
    prompt_length: Array  # i32[B]
    response_mask: Array  # bool[B, R]
    behaviour_logp: Array  # f32[B, R]
    ref_logp: Array  # f32[B, R]
    importance: Array  # f32[B, R]: weight of a token in the loss, truncated pi_old / pi_sampler (`losses`), or 1
    reward: Array  # f32[B]
    weight: Array  # f32[B]: 0 removes the row from the loss and from every statistic
    group: Array  # i32[B]: index of the prompt the row comes from
    is_replay: Array  # bool[B]: no sample of this step for its own instruction, but a replay or a row of the buffer


class Buffer(NamedTuple):
    """Successes of earlier steps (`hir.buffer`), replicated on all devices: choosing rows and finding duplicates then needs no
    exchange, and M need not be a multiple of the devices. Columns: P = `data.max_prompt`, then R."""

    tokens: Array  # i32[M, P + R], prompt right-aligned, response left-aligned
    prompt_length: Array  # i32[M]
    response_mask: Array  # bool[M, R]
    behaviour_logp: Array  # f32[M, R]: of the policy that sampled the row
    ref_logp: Array  # f32[M, R]: of the reference policy; 0 without one
    born: Array  # i32[M]: the step that sampled the row, -1 for an empty place


class TrainState(NamedTuple):
    """Everything that a step changes. `params` is a dict of float32 (or param_dtype) arrays; with LoRA only the adapters."""

    step: Array  # i32[]
    params: Any
    opt_state: Any
    skipped: Array  # i32[]: updates skipped so far because of a non-finite gradient
    buffer: Buffer | None = None  # None without `buffer.rows`
