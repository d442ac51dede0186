"""Verdicts on the device against the host's checks: recorded, crafted, every short text, random texts, tokens, a mesh."""

import itertools
import json
import random
import subprocess
import sys

import jax
import numpy as np
import on_mesh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import ROOT, environment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hir_jax.checks import registry
from hir_jax.checks.device import verify as device
from hir_jax.checks.device.conditions import IDS, decides, encode
from hir_jax.data.generate.tiny import lexicon
from hir_jax.types import Constraint, InputError

IFEVAL = ROOT / "../shared/benchmarks/ifeval"
recorded = pytest.mark.skipif(not IFEVAL.is_dir(), reason="the benchmark fixtures (../shared/benchmarks) are absent")

verify_bytes = jax.jit(device.verify_bytes)
verify = jax.jit(device.verify, static_argnames="width")


def device_verdicts(constraints, texts, columns, length):
    """NumPy Verdicts of texts; `constraints` are one list for all of them or a list each."""
    return verdicts_of(encode(constraints, columns), texts, length)


def verdicts_of(conditions, texts, length):
    encoded = [text.encode() for text in texts]
    cut = b"".join(text[:length].ljust(length, b"?") for text in encoded)  # what is behind the end must not matter
    sizes = np.array([len(text) for text in encoded])
    arrays = np.frombuffer(cut, np.uint8).reshape(-1, length), np.minimum(sizes, length).astype(np.int32)
    return jax.device_get(verify_bytes(conditions, *arrays, sizes <= length))


def in_one_shape(constraints, columns=24, patterns=64, symbols=24):
    """Conditions of one prompt, padded so that all tests of this kind share a program."""
    c = encode([constraints], columns)
    more, longer = patterns - c.mask.shape[1], symbols - c.mask.shape[2]
    return c._replace(
        owner=np.pad(c.owner, ((0, 0), (0, more)), constant_values=-1),
        doubt=np.pad(c.doubt, ((0, 0), (0, more))),
        mask=np.pad(c.mask, ((0, 0), (0, more), (0, longer))),
        wanted=np.pad(c.wanted, ((0, 0), (0, more), (0, longer))),
    )


def expect_equal(verdicts, b, constraints, text):
    for c, constraint in enumerate(constraints):
        if verdicts.known[b, c]:
            expected = registry.check(constraint, text)
            assert verdicts.satisfied[b, c] == expected, (constraint, text, expected)
    assert not (verdicts.satisfied[b] & ~verdicts.known[b]).any()


def rows(name):
    with (IFEVAL / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# ---- recorded and crafted responses ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts():
    return {
        row["key"]: [Constraint(*pair) for pair in zip(row["instruction_id_list"], row["kwargs"], strict=True)]
        for row in rows("prompts.jsonl")
    }


@recorded
def test_recorded_responses_with_their_own_and_other_constraints(prompts):
    responses = [row for model in ("llama_3b", "qwen25_7b") for row in rows(f"responses.{model}.jsonl")]
    pool = [c for constraints in prompts.values() for c in constraints if c.id in IDS]
    draw = random.Random(0)
    constraints = [prompts[row["key"]] + draw.sample(pool, 6) for row in responses]
    texts = [row["response"] for row in responses]
    verdicts = device_verdicts(constraints, texts, max(map(len, constraints)), 4096)
    for b, row in enumerate(responses):
        own = len(row["strict"])
        decided = verdicts.known[b, :own]
        assert (verdicts.satisfied[b, :own] == np.array(row["strict"]))[decided].all(), row["key"]
        expect_equal(verdicts, b, constraints[b], texts[b])
        plain = texts[b].isascii() and len(texts[b]) <= 4096
        expected = [plain and decides(c) for c in constraints[b]]
        assert verdicts.known[b, : len(expected)].tolist() == expected, row["key"]
    assert sum(text.isascii() for text in texts) == 910
    assert verdicts.known.sum() > 6000


@recorded
def test_constraints_of_the_recorded_prompts_that_are_left_to_the_host(prompts):
    ours = [c for constraints in prompts.values() for c in constraints if c.id in IDS]
    refused = [c for c in ours if not decides(c)]
    assert len(ours) == 592
    assert sorted(c.arguments["letter"] for c in refused) == ["!", "#"]  # unusable for the host, too


@recorded
def test_crafted_responses():
    crafted = [row for row in rows("crafted.jsonl") if row["instruction_id"] in IDS]
    texts, constraints = ([row["response"] for row in crafted], [
        [Constraint(row["instruction_id"], row["kwargs"])] for row in crafted
    ])  # fmt: skip
    verdicts = device_verdicts(constraints, texts, 1, 2048)
    known = verdicts.known[:, 0]
    assert [row for b, row in enumerate(crafted) if known[b] and verdicts.satisfied[b, 0] != row["strict"]] == []
    ours = {id for id in IDS if id.startswith(("tiny:", "training:"))}
    assert {row["instruction_id"] for row in itertools.compress(crafted, known)} == set(IDS) - ours


# ---- short and random texts --------------------------------------------------------------------------------------


def counted(id, name, numbers, **more):
    return [Constraint(id, {name: number, **more}) for number in numbers]


def existence(*keywords):
    return Constraint("keywords:existence", {"keywords": list(keywords)})


def forbidden(*words):
    return Constraint("keywords:forbidden_words", {"forbidden_words": list(words)})


def frequency(keyword, numbers, relation="at least"):
    return counted("keywords:frequency", "frequency", numbers, keyword=keyword, relation=relation)


def sections(splitter, numbers):
    return counted("detectable_format:multiple_sections", "num_sections", numbers, section_spliter=splitter)


def postscript(marker):
    return Constraint("detectable_content:postscript", {"postscript_marker": marker})


def ends(phrase):
    return Constraint("startend:end_checker", {"end_phrase": phrase})


def begins(phrase):
    return Constraint("tiny:begins_with", {"phrase": phrase})


def one_of(word, *others):
    return Constraint("tiny:one_of", {"word": word, "others": list(others)})


def word_times(word, numbers):
    return counted("training:word_times", "times", numbers, word=word)


PARAGRAPHS = counted("length_constraints:number_paragraphs", "num_paragraphs", range(5))
BULLETS = counted("detectable_format:number_bullet_lists", "num_bullets", range(5))
HIGHLIGHTS = counted("detectable_format:number_highlighted_sections", "num_highlights", range(1, 6))
PLACEHOLDERS = counted("detectable_content:number_placeholders", "num_placeholders", range(1, 4))
WORDS = counted("length_constraints:number_words", "num_words", range(1, 5), relation="less than")
LETTERS = counted("keywords:letter_frequency", "let_frequency", range(1, 4), letter="K", let_relation="at least")
QUESTIONS = counted("training:questions", "number", range(4))
NO_POSTSCRIPT = Constraint("tiny:no_postscript")
TWO, TITLE, QUOTATION, NO_COMMA, ANSWER = map(
    Constraint,
    ("combination:two_responses", "detectable_format:title", "startend:quotation", "punctuation:no_comma",
     "detectable_format:constrained_response"),
)  # fmt: skip

# Pieces of which every text of so many is made, and what is asked of them.
EVERY = {
    "highlights": ("*x \n", 7, HIGHLIGHTS),
    "long runs": (["*x", "**x", "***x", "**** ", "*****\n"], 6, HIGHLIGHTS),
    "bullets": ("*-x \n", 6, BULLETS),
    "bullets across lines": (["*", "*\n", "\n", " ", "* x", "-"], 6, BULLETS),
    "paragraphs": (["*", "**", "***", " ", "x", "\n"], 5, [*PARAGRAPHS, TWO]),
    "two responses": (["*", "******", " ", "x", "y"], 5, [TWO, *PARAGRAPHS]),
    "titles": ("<>x \n", 6, [TITLE]),
    "placeholders": ("[]x\n", 7, PLACEHOLDERS),
    "quotations": ('"x \x1d', 6, [QUOTATION, ends("x"), ends('"x'), ends("x x"), ends('x"')]),
    "words": ("aK_ ,9", 5, [*WORDS, *LETTERS, NO_COMMA]),
    "keywords": ("aB- \n", 6, [
        existence("ab", "-"), existence("a.b"), existence("a b"), forbidden("ab"), forbidden("a-b", "b."), forbidden("-"),
        forbidden("b", "ba"), *frequency("ab", (1, 2, 3)), *frequency("aba", (1, 2)), *frequency("bb", (1, 2)),
        *frequency("A.", (1, 2, 3)), *frequency(r"\bab", (1, 2)), *frequency(r"a\s?b", (1, 2), "less than"),
    ]),
    "postscripts": (["p.", "S.", "P", "s", " ", "\t", "."], 5, [
        postscript("P.S."), postscript("P.P.S"), postscript("P.S"), NO_POSTSCRIPT
    ]),
    "beginnings": ('"aB ._', 6, [begins("a"), begins("ab"), begins("a b"), begins('"a'), begins("b."), begins(" B_")]),
    "one of several": (["a", "B", "ab", " ", ".", "9"], 6, [
        one_of("a", "b"), one_of("B", "a", "ab"), *word_times("a", range(4))
    ]),
    "questions": ("? x", 6, QUESTIONS),
    "sections": (["Ab", "ab", "1", " ", "\n", "c"], 5, [*sections("Ab", (1, 2, 3)), *sections("b c ", (1, 2))]),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_every_short_text(name):
    pieces, size, constraints = EVERY[name]
    texts = ["".join(text) for n in range(size + 1) for text in itertools.product(pieces, repeat=n)]
    assert all(map(decides, constraints))
    overlapping = {i for i, c in enumerate(constraints) if "keyword" in c.arguments}
    for start in range(0, len(texts), 4096):
        part = texts[start : start + 4096]
        verdicts = verdicts_of(in_one_shape(constraints), [*part, *[""] * (4096 - len(part))], 48)
        satisfied, known = (x[: len(part), : len(constraints)] for x in (verdicts.satisfied, verdicts.known))
        expected = np.array([[registry.check(c, text) for c in constraints] for text in part])
        assert [(constraints[c], part[b]) for b, c in np.argwhere((satisfied != expected) & known)[:5]] == []
        assert set(np.argwhere(~known)[:, 1]) <= overlapping


MIXED = [
    *PARAGRAPHS[1:3], TWO, *BULLETS[:3], *HIGHLIGHTS[:3], *PLACEHOLDERS[:2], TITLE, QUOTATION, ANSWER, NO_COMMA, *WORDS,
    *LETTERS, existence("river", "It is"), forbidden("river", "p.s"), *frequency("river", (1, 2)), *sections("Day", (1, 2)),
    postscript("P.S."), postscript("P.P.S"), ends("Good night."), ends('say "yes"'), NO_POSTSCRIPT, *QUESTIONS[:2],
    begins("It is"), one_of("river", "rivers", "it"), *word_times("river", (0, 2)),
]  # fmt: skip
PIECES = [
    *'*-<>[]"., \n\t\x0b\x1c\x00aK9_', "***", "******", "<<", ">>", "\n* ", "\n- ", "river", "RIVER", "rivers", "It is",
    "My answer is yes.", "My answer is no.", "my answer is maybe.", "Good night.", 'say "yes"', "P.S.", "p. s.", "p.p.s",
    "P. P.\nS", "?", "Day 1", "Day2", "day 3",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES) | st.characters(max_codepoint=127), max_size=25).map("".join)


@settings(max_examples=60)
@given(st.lists(TEXT, min_size=8, max_size=8))
def test_random_texts_with_mixed_constraints(texts):
    verdicts = device_verdicts([MIXED], texts, len(MIXED), 256)
    for b, text in enumerate(texts):
        assert verdicts.known[b].all() == (len(text) <= 256)
        expect_equal(verdicts, b, MIXED, text)


WORD = st.text(st.sampled_from("abB. -9\\*"), min_size=1, max_size=5)


@settings(max_examples=60)
@given(WORD, st.lists(st.text(st.sampled_from("abB. -9\n"), max_size=20), min_size=32, max_size=32))
def test_random_keywords(word, texts):
    constraints = [
        existence(word),
        forbidden(word),
        *frequency(word, (1, 2)),
        *sections(word, (1, 2)),
        postscript(word),
    ]
    constraints += [ends(word), begins(word)]
    if word.isalnum():
        constraints += [*word_times(word, (0, 1)), one_of(word, "a" + word, "b" + word)]
    conditions = in_one_shape(constraints)
    assert conditions.decidable[0, : len(constraints)].tolist() == [decides(c) for c in constraints]
    verdicts = verdicts_of(conditions, texts, 20)
    for b, text in enumerate(texts):
        expect_equal(verdicts, b, constraints, text)


# ---- what is left to the host ------------------------------------------------------------------------------------


def test_text_that_is_not_ascii_or_too_long_is_unknown():
    verdicts = device_verdicts([[NO_COMMA, QUOTATION]], ["caf\u00e9", "x" * 40, "x" * 32, " "], 3, 32)
    assert verdicts.known.tolist() == [[False] * 3, [False] * 3, [True, True, False], [True, True, False]]
    assert verdicts.satisfied.tolist() == [[False] * 3, [False] * 3, [True, False, False], [False] * 3]
    assert verdicts.present.tolist() == [[True, True, False]] * 4


@pytest.mark.parametrize(
    "constraint",
    [
        existence("C++"), existence("a|b"), existence("caf\u00e9"), existence("C**"), existence("x" * 200), forbidden("(a)"),
        *frequency("[ab]", (1,)), *frequency("a", (-1,)), *sections("3", (1,)), postscript("P.*"), ends("\u2019s"),
        Constraint("keywords:existence"), Constraint("no:such"), Constraint("length_constraints:number_sentences"),
    ],
    ids=lambda constraint: str(constraint.arguments)[:40],
)  # fmt: skip
def test_constraints_that_are_left_to_the_host(constraint):
    assert not decides(constraint)
    conditions = encode([[constraint, NO_COMMA]], 2)
    assert conditions.present.tolist() == [[True, True]]
    assert conditions.decidable.tolist() == [[False, True]]


def test_more_constraints_than_columns():
    with pytest.raises(ValueError, match="prompt 1 has 3 constraints, more than the 2 columns"):
        encode([[TWO], [TWO, TITLE, ANSWER]], 2)


# ---- tokens ------------------------------------------------------------------------------------------------------


def byte_level_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<end>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the river runs, caf\u00e9s and \u4f60\u597d ** [name] <<title>>\n\n* the\n"] * 9, trainer
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.add_tokens(["<tool call>"])
    return fast


@pytest.fixture(scope="module", params=["lexicon", "byte_level"])
def tokenizer(request):
    return lexicon.build_tokenizer() if request.param == "lexicon" else byte_level_tokenizer()


def test_bytes_of_tokens_are_those_of_the_decoded_text(tokenizer):
    table = device.token_bytes(tokenizer, len(tokenizer) + 7)
    assert len(table.start) == len(tokenizer) + 8
    ascii_ids = [i for i in range(len(tokenizer)) if tokenizer.decode([i]).isascii()]
    rng = np.random.default_rng(1)
    tokens = rng.choice([*ascii_ids, len(tokenizer) + 3], (200, 12)).astype(np.int32)
    tokens[:50] = rng.integers(0, len(tokenizer), (50, 12))  # any bytes
    mask = np.arange(12) < rng.integers(0, 13, 200)[:, None]
    width = 12 * table.longest
    text, length, fits = jax.device_get(device.to_bytes(jax.tree.map(jax.numpy.asarray, table), tokens, mask, width))
    assert fits.all()
    narrow = jax.device_get(device.to_bytes(jax.tree.map(jax.numpy.asarray, table), tokens, mask, 20))
    plain = 0
    for b in range(200):
        expected = tokenizer.decode(tokens[b][mask[b]], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        found = bytes(text[b, : length[b]])
        assert found.isascii() == expected.isascii()
        if expected.isascii():
            assert found.decode() == expected
            assert not text[b, length[b] :].any()
            assert bytes(narrow[0][b]) == expected.encode()[:20].ljust(20, b"\0")
            assert (narrow[1][b], narrow[2][b]) == (min(len(expected), 20), len(expected) <= 20)
            plain += 1
    assert plain >= 150


def test_a_tokenizer_whose_decoder_handles_spaces_is_refused():
    vocabulary = {"<unk>": 0, "\u2581the": 1, "\u2581river": 2, "s": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    with pytest.raises(InputError, match="one by one"):
        device.token_bytes(fast, 4)


def test_batches_of_any_prompts_share_one_program(tokenizer):
    table = device.token_bytes(tokenizer, len(tokenizer))
    decided = [c for c in MIXED if c.id != "startend:end_checker"]
    rng = np.random.default_rng(2)
    prompts = [[decided[i] for i in rng.choice(len(decided), rng.integers(1, 7), replace=False)] for _ in range(24)]
    conditions = encode(prompts, 6)
    compiled = verify._cache_size()
    for n in range(0, 24, 4):
        tokens = rng.integers(0, len(tokenizer), (12, 20)).astype(np.int32)
        mask = np.arange(20) < rng.integers(0, 21, 12)[:, None]
        batch = jax.tree.map(lambda x: x[n : n + 4], conditions)  # noqa: B023
        verdicts = jax.device_get(verify(table, batch, tokens, mask, width=400))
        ids = [row[m] for row, m in zip(tokens, mask, strict=True)]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for b, text in enumerate(texts):
            own = prompts[n + b // 3]
            assert verdicts.known[b, : len(own)].all() == text.isascii()
            expect_equal(verdicts, b, own, text)
    assert verify._cache_size() == compiled + 1


def test_eight_devices(tmp_path):
    """A mesh of (2, 2, 2) gives the verdicts of one device, and no device waits for another."""
    out = tmp_path / "out.npz"
    done = subprocess.run(
        [sys.executable, on_mesh.__file__, str(out)],
        env=environment(8),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, _ = on_mesh.run((1, 1, 1), jax.devices()[:1])
    with np.load(out) as eight:
        for name, found in one.items():
            np.testing.assert_array_equal(eight[name], found)
        program = str(eight["program"])
    assert [word for word in ("all-gather", "all-reduce", "all-to-all", "collective") if word in program] == []
    assert one["satisfied"].any()
    assert (one["known"] & ~one["satisfied"]).any()
