"""Segments of a prompt compared with rendering and tokenising, with real tokenizers of three families: texts not in normal
form, odd white space, every kept set; which rows are refused, and why; how much is tokenised."""

import copy
import functools
import itertools
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nasty_rows
import pytest
import real_tokenizers
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from hir_jax.data import native
from hir_jax.data.chat import EncodeError
from hir_jax.data.chat_frame import chat_frame
from hir_jax.data.generate import synthesis
from hir_jax.data.generate.tiny import lexicon
from hir_jax.data.segments import encode, gather, tokenise_rendering
from hir_jax.data.templates import REWRITABLE, render
from hir_jax.eval import benchmarks
from hir_jax.model.files.checkpoint import open_checkpoint
from hir_jax.types import Constraint, Instruction

SHARED = Path(__file__).parents[3] / "shared"
WORDS = (
    "use",
    "the",
    "calm",
    "river",
    "words",
    "never",
    "more",
    "than",
    "twelve",
    "lines",
    "and",
    "end",
    "with",
    "stanza",
)


def row(task, template, *texts):
    return Instruction(task, tuple(Constraint("x", {}, text) for text in texts), template, "k", "rows.jsonl:7")


def masks(count):
    return [keep for keep in itertools.product((False, True), repeat=count) if any(keep)]


def wrong_masks(frame, instruction, encoded):
    """The kept sets whose joined segments are not the tokens of the given row, rendered and put into the chat template."""
    kept = masks(len(instruction.constraints))
    return [keep for keep in kept if gather(encoded, keep) != tokenise_rendering(frame, instruction, keep)]


def refusals(frame, instructions):
    """Counts refused rows by reason; checks for the others that every kept set is right and that the shown text is tokenised."""
    found = Counter()
    for instruction in instructions:
        try:
            encoded = encode(frame, instruction)
        except EncodeError as error:
            found[error.reason] += 1
            assert instruction.source in str(error)
            continue
        assert not wrong_masks(frame, instruction, encoded), instruction
        assert encoded.tokens == tokenise_rendering(frame, encoded.instruction)
    return found


def fuzz(name, rows):
    found = refusals(chat_frame(real_tokenizers.load(name)), (nasty_rows.row(seed) for seed in range(rows)))
    print(f"{name}: {found.total()} of {rows} nasty rows refused, {dict(found)}")
    assert found.total() < 0.05 * rows


@pytest.mark.parametrize("name", real_tokenizers.NAMES)
def test_nasty_rows(name):
    fuzz(name, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", real_tokenizers.NAMES)
def test_many_nasty_rows(name):
    fuzz(name, 2000)


@pytest.mark.parametrize("name", real_tokenizers.NAMES)
def test_no_generated_row_is_refused(name):
    generated = synthesis.generate(5, 18, min_constraints=1, max_constraints=6)
    rows = [replace(q, template=REWRITABLE[i % 6]) for i, q in enumerate(generated)]
    assert not refusals(chat_frame(real_tokenizers.load(name)), rows)


@pytest.mark.parametrize("name", ["llama3_1", "qwen3", "llama2"])
def test_no_benchmark_prompt_is_refused(name):
    directory = SHARED / "benchmarks"
    if not directory.is_dir():
        pytest.skip(f"no published prompts in {directory}")
    frame, count = chat_frame(real_tokenizers.load(name)), 0
    for benchmark in ("ifeval", "ifbench", "muldimif"):
        instructions, _ = benchmarks.BENCHMARKS[benchmark].read(directory / benchmark / "prompts.jsonl")
        for i, instruction in enumerate(instructions):
            if i % 10 == 0:  # as they are, and as a task with constraints of its own
                assert encode(frame, instruction).tokens == tokenise_rendering(frame, instruction)
                encode(
                    frame, row(render(instruction), REWRITABLE[i // 10 % 6], "Use no commas", "5 words.", "End well.")
                )
                count += 1
    assert count > 150


# ---- normal form

DECOMPOSED = "cafe\u0301"


@pytest.mark.parametrize("template", REWRITABLE)
def test_a_decomposed_text_keeps_the_end_of_the_turn(template):
    """Qwen normalises to NFC, which removes characters and so shifts offsets: no segment may begin with the end of the last."""
    tokenizer = real_tokenizers.load("qwen3")
    frame, end = chat_frame(tokenizer), tokenizer.convert_tokens_to_ids("<|im_end|>")
    instruction = row(
        f"Parle du {DECOMPOSED}", template, f"Say {DECOMPOSED}", "No commas.", f"Use the word {DECOMPOSED}"
    )
    encoded = encode(frame, instruction)
    assert not wrong_masks(frame, instruction, encoded)
    assert all(gather(encoded, keep).count(end) == 1 for keep in masks(3))
    assert DECOMPOSED not in render(encoded.instruction) and "Say café" in render(encoded.instruction)


NORMALIZERS = {
    "nfc": (normalizers.NFC(), "Café №"),
    "nfkc": (normalizers.NFKC(), "Café No"),
    "lower case": (normalizers.Lowercase(), "cafe\u0301 №"),
    "both": (normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), "café no"),
    "no accents": (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "Cafe №"),
    "spaces": (normalizers.Sequence([normalizers.Prepend("."), normalizers.Replace(" ", "_")]), "Cafe\u0301 №"),
}


@functools.cache
def _smollm2():
    return open_checkpoint("smollm2-135m-gguf").tokenizer


def smollm2():
    """A copy that a test may change without effect on other tests."""
    return copy.deepcopy(_smollm2())


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("template", REWRITABLE)
def test_every_kind_of_normalizer(name, template):
    tokenizer = smollm2()
    tokenizer.backend_tokenizer.normalizer, shown = NORMALIZERS[name]
    frame = chat_frame(tokenizer)
    instruction = row(
        "Say Cafe\u0301 №", template, "Ｗｉｄｅ Cafe\u0301 ﬁn", "No: \u1112\u1161\u11ab.", "Cafe\u0301", "И\u0306"
    )
    encoded = encode(frame, instruction)
    assert not wrong_masks(frame, instruction, encoded)
    assert encoded.instruction.task[4:] == shown


def test_a_text_whose_normal_form_renders_otherwise_is_refused_with_that_reason():
    """NFKC turns the full-width mark into an ASCII one, after which no full stop is added."""
    tokenizer = smollm2()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(EncodeError, match="normal form") as refused:
        encode(chat_frame(tokenizer), row("Ask.", "type1", "Why not？", "Be brief."))
    assert refused.value.reason == "normal form" and "white space" not in str(refused.value)


def test_texts_in_normal_form_stay_as_they_are():
    instruction = row("Say café.", "type3", "Use the word café")
    assert encode(chat_frame(real_tokenizers.load("qwen3")), instruction).instruction == instruction


# ---- white space, neighbours


OUTER = (
    ("A.", "B.", "C.", "\nD."),
    ("\n\nA", "B\n", " \n C ", "D\r\n"),
    ("  A", "\tB", "\u3000C", "\u2028D"),
    ("5 words", "  5", "\u0301x", "7"),
)


@pytest.mark.parametrize("name", ["llama3_1", "qwen3", "llama2"])
@pytest.mark.parametrize("template", REWRITABLE)
def test_white_space_at_the_ends_of_texts(name, template):
    frame = chat_frame(real_tokenizers.load(name))
    for texts, task in itertools.product(OUTER, ("Write.", "Write. ", "Write.  \n", "", "  Write")):
        instruction = row(task, template, *texts)
        assert not wrong_masks(frame, instruction, encode(frame, instruction))


def test_a_token_across_two_constraints_is_refused_with_the_tokens():
    """A vocabulary with a token "a\\nb" makes the same constraints differ by their neighbours."""
    from tokenizers import Tokenizer, models

    words = ["<u>", "<s>", "<e>", "a", "b", "c", "\n", "T", "a\n", "a\nb"]
    core = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("a", "\n"), ("a\n", "b")]))
    core.add_special_tokens(["<s>", "<e>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.chat_template = "{% for m in messages %}{{ '<s>' + m.content + '<e>' }}{% endfor %}"
    frame = chat_frame(tokenizer)
    with pytest.raises(EncodeError, match=r"rows.jsonl:7: template type6 .*joins .*a\\nb") as refused:
        encode(frame, row("T", "type6", "a", "b", "c"))
    assert refused.value.reason == "joined tokens" and "white space" not in str(refused.value)


def test_a_constraint_without_text_is_refused_where_it_makes_a_blank_line():
    frame = chat_frame(real_tokenizers.load("llama3_1"))
    with pytest.raises(EncodeError, match=r"rows.jsonl:7: .*constraint 2 has no text") as refused:
        encode(frame, row("T.", "type6", "a", " ", "c"))
    assert refused.value.reason == "blank constraint"
    encode(frame, row("T.", "type4", "a", " ", "c"))


# ---- chat templates

TURN = "{{ '<|im_start|>user\n' + messages[0].content + '<|im_end|>\n' }}"


def test_a_template_that_shows_the_request_twice_is_refused():
    tokenizer = smollm2()
    tokenizer.chat_template = TURN + TURN
    with pytest.raises(EncodeError, match="more than once"):
        chat_frame(tokenizer)


def test_a_template_with_another_date_than_before_is_refused_as_such():
    tokenizer = smollm2()
    tokenizer.chat_template = "Today is the 1st. " + TURN
    frame = chat_frame(tokenizer)
    tokenizer.chat_template = "Today is the 2nd. " + TURN
    with pytest.raises(EncodeError, match=r"rows.jsonl:7: .*time.*2nd.* was .*1st") as refused:
        encode(frame, row("T.", "type1", "a"))
    assert refused.value.reason == "chat template" and "white space" not in str(refused.value)


def test_a_template_that_changes_the_request_is_refused_as_such():
    tokenizer = smollm2()
    tokenizer.chat_template = TURN.replace("content", "content.replace('b', 'c')")
    with pytest.raises(EncodeError, match="changes the text of the request"):
        encode(chat_frame(tokenizer), row("T.", "type1", "a", "b"))


@pytest.mark.parametrize("change", ["{}", "{} | trim", "{}.lstrip()", "{}.rstrip()"])
@pytest.mark.parametrize("template", REWRITABLE)
def test_templates_that_strip_the_request(change, template):
    tokenizer = smollm2()
    tokenizer.chat_template = TURN.replace("messages[0].content", change.format("messages[0].content"))
    frame = chat_frame(tokenizer)
    for task in (" T. ", "", "T.\n"):
        instruction = row(task, template, "a ", "\nb", " c\n")
        assert not wrong_masks(frame, instruction, encode(frame, instruction))


# ---- how much is tokenised


class Counting:
    """A tokenizer that counts the texts it tokenises and the calls of its chat template."""

    def __init__(self, tokenizer):
        self._tokenizer, self.texts, self.rendered = tokenizer, 0, 0

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, texts, **how):
        self.texts += len(texts)
        return self._tokenizer(texts, **how)

    def apply_chat_template(self, *given, **how):
        self.rendered += 1
        return self._tokenizer.apply_chat_template(*given, **how)


@pytest.mark.parametrize("template", REWRITABLE)
def test_what_is_tokenised_grows_linearly_with_the_constraints(template):
    tokenizer = smollm2()
    draw = random.Random(0)
    texts = [" ".join(draw.sample(WORDS, 8)).capitalize() for _ in range(80)]
    counts = {}
    for count in (10, 20, 40, 80):
        counting = Counting(tokenizer)
        frame = chat_frame(counting)
        encoded = encode(frame, row("Write a poem.", template, *texts[:count]))
        for _ in range(5):
            keep = [draw.random() < 0.5 for _ in range(count)]
            assert gather(encoded, keep) == tokenise_rendering(chat_frame(tokenizer), encoded.instruction, keep)
        counts[count] = counting.texts, counting.rendered
    for count in (10, 20, 40):
        assert counts[2 * count][0] <= 2 * counts[count][0] and counts[2 * count][1] <= 2 * counts[count][1]
    assert counts[80][0] < 6 * 80


# ---- recorded inputs


def recorded():
    path = SHARED / "cases" / "wrong_results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [case for case in map(json.loads, lines) if case["what"].split()[0] in ("1", "2", "18")]


@pytest.mark.skipif(not recorded(), reason=f"no recorded inputs in {SHARED / 'cases'}")
def test_recorded_inputs(tmp_path):
    """Each row is accepted, and every kept set has the tokens of its rendering. The bench measures the speed."""
    seen = Counter()
    for case in recorded():
        seen[case["what"].split()[0]] += 1
        if isinstance(case["row"], str):
            continue
        if isinstance(case["row"]["constraints"][0], str):
            instruction = row(case["row"]["task"], case["row"]["template"], *case["row"]["constraints"])
        else:
            (tmp_path / "row.jsonl").write_text(json.dumps(case["row"]), encoding="utf-8")
            (instruction,) = native.read(tmp_path / "row.jsonl")
        named = case["tokenizer"]
        for name in [n for n in ("llama3_1", "qwen2_5", "qwen3", "llama2") if n.split("_")[0].rstrip("23") in named]:
            tokenizer = real_tokenizers.load(name)
            frame = chat_frame(tokenizer)
            encoded = encode(frame, instruction)
            assert not wrong_masks(frame, instruction, encoded), (case["what"], name)
            if "qwen" in name:
                end = tokenizer.convert_tokens_to_ids("<|im_end|>")
                assert all(
                    gather(encoded, keep).count(end) == 1
                    for keep in case.get("keep", masks(len(instruction.constraints)))
                )
    assert seen == {"1": 2, "2": 2, "18": 1}


def test_qwen2_5_has_no_token_for_thinking():
    with_token, without = real_tokenizers.load("qwen3"), real_tokenizers.load("qwen2_5")
    assert len(with_token("<think>")["input_ids"]) == 1 < len(without("<think>")["input_ids"])
    assert len(with_token) == len(without) + 4


def test_a_word_level_tokenizer_with_numbers():
    frame = chat_frame(lexicon.build_tokenizer())
    instruction = row("Write a poem about the river.", "type3", *(f"Use at least {n} words." for n in range(2, 14)))
    encoded, draw = encode(frame, instruction), random.Random(1)
    for _ in range(40):
        keep = [draw.random() < 0.5 for _ in range(12)]
        assert gather(encoded, keep) == tokenise_rendering(frame, instruction, keep)
