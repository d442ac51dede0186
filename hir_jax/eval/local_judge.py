"""A judge on this machine: a model of `hir_jax.model` that says yes or no by log-prob, in batches of fixed shapes.

A case is met if P(yes) / (P(yes) + P(no)) of the first word of the answer is above the threshold of the settings. P(yes) sums
the probabilities of the tokens of "Yes", "yes", "YES", with and without a space before, as far as each is one token
(`answer_tokens`), and P(no) likewise. If the chat template opens the model's reasoning, it is closed again at once, so that
the next word is the answer's.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hir_jax.checks.judge import soft
from hir_jax.checks.judge.replies import leaves_reasoning_open
from hir_jax.checks.judge.soft import Case, JudgeError, JudgeSettings, Keep, Unanswered, Usage
from hir_jax.data.chat_frame import chat_frame
from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.model.files.checkpoint import open_checkpoint
from hir_jax.parallel import mesh as meshes

SHORTEST = 128  # columns of the smallest bucket; each further one is twice as wide
REASONING_END = "\n</think>\n\n"
WORDING = """\
Here is a request that somebody made, a response to it, and one requirement that the response has to meet.

Request:
{prompt}

Response:
{response}

Requirement: {constraint}

Does the response meet this requirement? Say Yes if it does in full, and No if it does not. Answer with one word."""


def answer_tokens(tokenizer, word: str) -> tuple[set[int], set[int]]:
    """The ids of those forms of `word` that are one token, and the first ids of all forms. Forms: as it is, in lower and in
    upper case, each with and without a space before."""
    forms = [space + form for form in (word, word.lower(), word.upper()) for space in ("", " ")]
    encoded = [tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms]
    return {ids[0] for ids in encoded if len(ids) == 1}, {ids[0] for ids in encoded if ids}


def yes_no_tokens(tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The token ids that mean yes, and those that mean no, without ids that both words have. If no form of a word is one
    token, the first tokens of both words count. JudgeError for a vocabulary in which yes and no begin alike."""
    (yes, yes_first), (no, no_first) = (answer_tokens(tokenizer, word) for word in ("Yes", "No"))
    if not (yes - no and no - yes):
        yes, no = yes_first, no_first
    if not (yes - no and no - yes):
        raise JudgeError("the judge's tokenizer cannot tell Yes from No by the first token; use another model")
    return tuple(sorted(yes - no)), tuple(sorted(no - yes))


def yes_probability(
    params: decoder.Params, tokens: jax.Array, length: jax.Array, *, model: ModelConfig, yes: Sequence[int],
    no: Sequence[int], shard: decoder.Shard = decoder.no_shard,
) -> jax.Array:  # fmt: skip
    """f32[B]: P(yes) / (P(yes) + P(no)) of the next token. tokens: i32[B, T], right-aligned; length: i32[B]."""
    start = tokens.shape[1] - length[:, None]
    index = jnp.arange(tokens.shape[1])
    hidden = decoder.hidden_states(model, params, tokens, jnp.maximum(index - start, 0), index >= start, shard)
    found = decoder.logits(model, params, hidden[:, -1])  # f32[B, V]
    # fixed arrays of ids: a tuple would be taken for one index per axis
    of_yes, of_no = (jax.nn.logsumexp(found[:, np.asarray(ids)], axis=-1) for ids in (yes, no))
    return jax.nn.sigmoid(of_yes - of_no)


def _stamp(path: str) -> list[list[object]]:
    """Name, size and time of change of each of a checkpoint's files, since weights that are written anew judge differently."""
    where = Path(path)
    files = sorted(where.iterdir()) if where.is_dir() else [where]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]


def _buckets(longest: int) -> list[int]:
    powers = itertools.takewhile(lambda columns: columns < longest, (SHORTEST << i for i in itertools.count()))
    return [*powers, longest]


class LocalModel:
    """A `soft.Backend`. JudgeError, CheckpointError, or EncodeError (no chat template) if it cannot be set up.

    Parameters are split over the devices of this process, which also share the rows of a batch. There is at most one
    compilation per bucket: columns are the powers of two from 128 on that are below `max_length`, and `max_length`.
    """

    def __init__(self, settings: JudgeSettings):
        checkpoint = open_checkpoint(settings.model)
        self._settings, self._tokenizer = settings, checkpoint.tokenizer
        frame = chat_frame(self._tokenizer)
        closing = REASONING_END if leaves_reasoning_open(frame.after) else ""
        self._frame = dataclasses.replace(frame, after=frame.after + closing)
        yes, no = yes_no_tokens(self._tokenizer)
        model = dataclasses.replace(checkpoint.config, compute_dtype=settings.dtype, remat="none")
        self._longest = min(settings.max_length, model.max_position)
        self._mesh = meshes.make_mesh(data=1, fsdp=-1, devices=jax.local_devices())
        shapes = decoder.abstract_params(model, settings.dtype)
        shardings = meshes.parameter_shardings(self._mesh, decoder.param_axes(model), shapes)
        self._params = checkpoint.load_params(jnp.dtype(settings.dtype), shardings)
        shard = meshes.ActivationShard(self._mesh)
        of_rows = partial(yes_probability, model=model, yes=yes, no=no, shard=shard)
        self._yes_probability = jax.jit(of_rows, out_shardings=meshes.rows(self._mesh))
        self.usage = Usage()
        self.identity: Mapping[str, object] = {
            "kind": "local",
            "model": checkpoint.origin,
            "files": _stamp(checkpoint.source.path),
            "dtype": settings.dtype,
            "frame": [self._frame.before, self._frame.after],
            "answers": [yes, no],
            "wording": WORDING,
        }

    def close(self) -> None:
        """Frees the memory of the parameters."""
        self._params = None

    def _encode(self, case: Case) -> list[int]:
        """The tokens of the chat prompt. Text that looks like a special token stays text, so no response can end its turn."""
        shown = {name: text.encode("utf-8", "replace").decode("utf-8") for name, text in case._asdict().items()}
        before, after = self._frame.ids([self._frame.before, self._frame.after])
        body = self._tokenizer(WORDING.format(**shown), add_special_tokens=False, split_special_tokens=True)
        return [*before, *body["input_ids"], *after]

    def _batches(self, encoded: Mapping[Case, list[int]]) -> Iterator[tuple[int, list[Case]]]:
        """(columns, cases) of each forward pass, short ones first."""
        left = sorted(encoded, key=lambda case: len(encoded[case]))
        for columns in _buckets(self._longest):
            fitting = [case for case in left if len(encoded[case]) <= columns]
            left = left[len(fitting) :]
            size = self._rows(columns)
            yield from ((columns, fitting[start : start + size]) for start in range(0, len(fitting), size))

    def _rows(self, columns: int) -> int:
        """The number of rows of a forward pass, a multiple of the devices that share them."""
        ways = meshes.row_devices(self._mesh)
        return max(1, self._settings.batch_tokens // columns // ways) * ways

    def ask(self, cases: Sequence[Case], keep: Keep) -> dict[Case, Unanswered]:
        """Judges all cases that fit, short ones first, until the deadline, which is checked between forward passes."""
        end = time.monotonic() + self._settings.deadline_seconds
        encoded = {case: self._encode(case) for case in cases}
        failures = {}
        for case in [case for case, ids in encoded.items() if len(ids) > self._longest]:
            tokens = len(encoded.pop(case))
            too_long = f"{tokens} tokens with the question, and judge.max_length is {self._longest}"
            failures[case] = Unanswered(soft.TOO_LONG, too_long)
        for columns, batch in self._batches(encoded):
            if time.monotonic() > end:
                late = f"not answered within the {self._settings.deadline_seconds:g} s of a batch"
                failures |= {case: Unanswered(soft.UNANSWERED, late) for case in batch}
                continue
            for case, probability in zip(batch, self._forward([encoded[case] for case in batch], columns)):
                if np.isfinite(probability):
                    keep(case, float(probability))
                else:
                    failures[case] = Unanswered(soft.UNREADABLE, "the model's log-probs are not finite")
        return failures

    def _forward(self, encoded: Sequence[list[int]], columns: int) -> np.ndarray:
        """f32: P(yes) of each list of tokens. Rows of one token fill the batch up to the bucket's fixed number of rows."""
        rows = self._rows(columns)
        tokens, length = np.zeros((rows, columns), np.int32), np.ones(rows, np.int32)
        for row, ids in enumerate(encoded):
            tokens[row, columns - len(ids) :] = ids
            length[row] = len(ids)
        self.usage.requests += len(encoded)
        self.usage.prompt_tokens += sum(map(len, encoded))
        with jax.set_mesh(self._mesh):
            return np.asarray(self._yes_probability(self._params, *meshes.put_rows(self._mesh, (tokens, length))))
