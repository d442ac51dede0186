"""Relabelling on device against rendering and tokenising on the host, and the layout of a TrainBatch."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hir_jax.data.batches import PartShapes, prompt_batch
from hir_jax.data.chat_frame import chat_frame
from hir_jax.data.generate import synthesis
from hir_jax.data.generate.tiny import lexicon, witness
from hir_jax.data.segments import encode, tokenise_rendering
from hir_jax.data.templates import REWRITABLE
from hir_jax.hir.relabel import assemble, dealt, relabel
from hir_jax.model.files.checkpoint import open_checkpoint
from hir_jax.types import Replays, Rollout, Verdicts

# The splitting patterns of the Llama 3 and Qwen 2 tokenizers (published in their tokenizer.json).
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
LLAMA3_CHAT = (
    "{{ '<|begin|>' }}{% for m in messages %}{{ '<|start|>' + m.role + '<|stop|>\n\n' + m.content | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}"
)
QWEN_CHAT = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|eot|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def byte_level_tokenizer(pattern, chat_template, corpus):
    """A small BPE trained here, with the pre-tokenizer under test in front of it."""
    from tokenizers import trainers

    special = ["<|begin|>", "<|start|>", "<|stop|>", "<|eot|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Frequent merges across punctuation and newlines are what makes one segment a constraint not enough.
    core.train_from_iterator([*corpus, "ends.\n- starts\nends.\n2. starts.\n\n"] * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|eot|>", pad_token="<|eot|>")
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(scope="module")
def instructions():
    return synthesis.generate(3, 36, min_constraints=3, max_constraints=8)


@pytest.fixture(scope="module")
def frames(instructions):
    corpus = [c.text for q in instructions for c in q.constraints] + [q.task for q in instructions]
    return {
        "smollm2": chat_frame(open_checkpoint("smollm2-135m-gguf").tokenizer),
        "llama3": chat_frame(byte_level_tokenizer(LLAMA3, LLAMA3_CHAT, corpus)),
        "qwen": chat_frame(byte_level_tokenizer(QWEN, QWEN_CHAT, corpus)),
        "lexicon": chat_frame(lexicon.build_tokenizer()),
    }


@pytest.mark.parametrize("template", REWRITABLE)
@pytest.mark.parametrize("name", ["smollm2", "llama3", "qwen", "lexicon"])
def test_assemble_equals_render_and_tokenise(name, template, frames, instructions):
    """The law: relabel = render + tokenise, for every template and kind of pre-tokenizer, on random kept sets."""
    frame = frames[name]
    if name == "lexicon":
        instructions = [q for q, _ in witness.generate(1, 12, min_constraints=3, max_constraints=6)]
    rng = np.random.default_rng(0)
    rows = [encode(frame, q.__class__(q.task, q.constraints, template, q.key, q.source)) for q in instructions[:12]]
    shapes = PartShapes.of(rows, max(len(r.segments) for r in rows))
    columns = max(r.longest for r in rows) + 3
    batch = prompt_batch(rows, shapes, columns, pad_id=0)
    run = jax.jit(lambda parts, keep: assemble(parts, keep, columns, 0))
    for trial in range(12):
        keep = rng.random(batch.parts.present.shape) < (1.0 if trial == 0 else rng.random())
        keep[np.arange(len(rows)), rng.integers(0, 3, len(rows))] = True  # at least one that is present
        tokens, length = jax.device_get(run(batch.parts, keep))
        for i, row in enumerate(rows):
            expected = tokenise_rendering(frame, row.instruction, keep[i][: len(row.segments)])
            assert tokens[i, columns - length[i] :].tolist() == expected
            assert (tokens[i, : columns - length[i]] == 0).all()


@given(st.sampled_from([5, 12, 30]), st.data())
@settings(max_examples=50)
def test_empty_places_are_dealt_out_evenly(rows, data):
    """Every place once, the filled ones in their order, and as many empty ones in each part as in any other, but for one."""
    parts = data.draw(st.sampled_from([n for n in range(1, rows + 1) if rows % n == 0]))
    size, count = rows // parts, data.draw(st.integers(0, rows))
    order = np.asarray(dealt(np.int32(count), rows, parts))
    assert sorted(order) == list(range(rows))
    assert [place for place in order if place < count] == list(range(count))
    filled = (order < count).reshape(parts, size)
    assert np.ptp(filled.sum(-1)) <= 1
    assert all(part.tolist() == sorted(part.tolist(), reverse=True) for part in filled)  # empty ones at the end
    assert count < rows or order.tolist() == list(range(rows))


def test_places_dealt_worked_by_hand():
    assert np.asarray(dealt(np.int32(5), 8, 2)).tolist() == [0, 1, 2, 5, 3, 4, 6, 7]


compiled_relabel = jax.jit(relabel, static_argnames=("samples", "pad_id", "mini_batches"))


@given(st.integers(0, 10_000), st.sampled_from([(4, 4, 2, 2), (3, 2, 1, 1), (1, 3, 0, 1)]))
@settings(max_examples=25)
def test_train_batch_layout(seed, shape):
    """Each filled slot and each valid replay once, a replay behind its source; the rest at weight 0, at the end of each half."""
    rng = np.random.default_rng(seed)
    prompts, samples, k, mini_batches = shape
    slots = prompts * (samples + k)
    sampled = rng.integers(1, samples + 1, prompts)  # samples of each prompt; its other slots are empty
    filled = (np.arange(samples + k) < sampled[:, None]).ravel()
    sources = np.flatnonzero(filled)
    count = int(rng.integers(0, min(k * prompts, len(sources)) + 1))
    chosen = rng.choice(sources, count, replace=False)
    places = k * prompts
    replays = Replays(
        np.pad(chosen, (0, places - count)).astype(np.int32), np.zeros(places, np.float32), np.arange(places) < count
    )
    length = 4
    rollout = Rollout(
        tokens=np.arange(slots * length, dtype=np.int32).reshape(slots, length) + 100,
        mask=np.arange(length) < rng.integers(1, length + 1, slots)[:, None],
        sampler_logp=rng.normal(size=(slots, length)).astype(np.float32),
        entropy=np.zeros((slots, length), np.float32), ended=np.ones(slots, bool), filled=filled,
    )  # fmt: skip
    constraints = 3
    satisfied = rng.random((slots, constraints)) < 0.5
    satisfied[:, 0] = True
    verdicts = Verdicts(satisfied, np.ones_like(satisfied), np.ones_like(satisfied))
    frame_parts = _toy_parts(prompts, constraints)
    reward = rng.random(slots).astype(np.float32)
    weight = filled.astype(np.float32)
    batch = jax.device_get(
        compiled_relabel(
            np.arange(prompts * 8, dtype=np.int32).reshape(prompts, 8),
            np.full(prompts, 5, np.int32),
            frame_parts,
            rollout,
            rollout.sampler_logp - 1,
            rollout.sampler_logp + 2,
            reward,
            weight,
            verdicts,
            replays,
            samples=samples + k,
            pad_id=0,
            mini_batches=mini_batches,
        )
    )
    assert np.ptp(batch.weight.reshape(mini_batches, -1).sum(-1)) <= 1
    filled_first = np.argsort(batch.weight == 0, kind="stable")
    batch = jax.tree.map(lambda x: x[filled_first], batch)
    expected = []
    for b in range(slots):
        if filled[b]:
            expected.append((b, False))
        if b in chosen:
            expected.append((b, True))
    for i, (b, is_replay) in enumerate(expected):
        assert batch.is_replay[i] == is_replay and batch.weight[i] == 1
        assert batch.tokens[i, 8:].tolist() == rollout.tokens[b].tolist()
        assert batch.reward[i] == (1.0 if is_replay else reward[b])
        assert batch.group[i] == b // (samples + k)
        np.testing.assert_array_equal(batch.behaviour_logp[i], np.where(rollout.mask[b], rollout.sampler_logp[b], 0))
        np.testing.assert_array_equal(batch.ref_logp[i], np.where(rollout.mask[b], rollout.sampler_logp[b] - 1, 0))
        np.testing.assert_array_equal(batch.importance[i], rollout.sampler_logp[b] + 2)
        kept = [c for c in range(constraints) if satisfied[b, c]] if is_replay else None
        if is_replay:
            assert batch.tokens[i, 8 - batch.prompt_length[i] : 8].tolist() == [7, *(10 + c for c in kept), 9]
    assert (batch.weight[len(expected) :] == 0).all()
    assert not batch.response_mask[len(expected) :].any()


def _toy_parts(prompts, constraints):
    """Head 7, one token 10 + c a constraint in every role, tail 9."""
    from hir_jax.types import PromptParts

    segments = np.tile((10 + np.arange(constraints))[None, :, None, None], (prompts, 1, 4, 1)).astype(np.int32)
    ones = np.ones(prompts, np.int32)
    return PromptParts(
        np.full((prompts, 1), 7, np.int32), ones, segments, np.ones((prompts, constraints, 4), np.int32),
        np.full((prompts, 1), 9, np.int32), ones, ones * 2, np.ones((prompts, constraints), bool),
    )  # fmt: skip
