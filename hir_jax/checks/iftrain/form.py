"""IF-RLVR's types on paragraphs, marks, wrapping and copying. See `iftrain`."""

from __future__ import annotations

import re

from hir_jax.checks import english
from hir_jax.checks.arguments import DRAWN_IF_0, pattern, plural
from hir_jax.checks.ifeval.common import divided
from hir_jax.checks.registry import register

_DIVIDER = r"\s?\*\*\*\s?"

# ---- paragraphs


@register("paragraphs:paragraphs", lambda: "Write 2 paragraphs, divided by the markdown divider ***.")
def paragraphs(response: str) -> bool:
    return len(divided(response, _DIVIDER) or ()) == 2


@register("paragraphs:paragraphs2", lambda: "Write 2 paragraphs, divided by a blank line, with no other blank line.")
def paragraphs2(response: str) -> bool:
    return len(divided(response, r"\n\n") or ()) == 2


@register(
    "count:counting_composition",
    lambda n_sent, n_words: (
        f"Write 3 paragraphs, divided by the markdown divider ***, of {plural(n_sent, 'sentence')} each, and "
        f"{plural(n_words, 'word')} in each sentence."
    ),
    n_sent=DRAWN_IF_0,
    n_words=DRAWN_IF_0,
    needs=(english.sentence_tokenizer,),
)
def counting_composition(response: str, n_sent: int, n_words: int) -> bool:
    """Quirk: the mark that ends a sentence is one of its words, and a divider before or after all fails."""
    parts = [english.rule_sentences(part) for part in re.split(_DIVIDER, response)]
    return len(parts) == 3 and all(
        len(part) == n_sent and all(len(english.word_tokens(sentence)) == n_words for sentence in part)
        for part in parts
    )


# ---- marks and wrapping


@register("punctuation:punctuation_dot", lambda: "Use no period, neither at the end of a sentence nor elsewhere.")
def punctuation_dot(response: str) -> bool:
    return "." not in response


@register("punctuation:punctuation_exclamation", lambda: "Use no exclamation mark.")
def punctuation_exclamation(response: str) -> bool:
    return "!" not in response


@register("detectable_format:square_brackets", lambda: "Put every word in square brackets.")
def square_brackets(response: str) -> bool:
    return all(word.startswith("[") and word.endswith("]") for word in response.split())


@register(
    "detectable_format:bigram_wrapping", lambda: "Put every two words in double angle brackets, as in <<like this>>."
)
def bigram_wrapping(response: str) -> bool:
    """Quirk: of an odd number of words the last is not looked at, so a single word passes."""
    words = response.split()
    return all(
        first.startswith("<<") and second.endswith(">>") for first, second in zip(words[::2], words[1::2], strict=False)
    )


@register("detectable_format:sentence_hyphens", lambda: "Join all sentences by hyphens, without spaces.")
def sentence_hyphens(response: str) -> bool:
    """Pieces between hyphens are compared with the sentences of the text with spaces for hyphens, as far as there are both.
    Quirk: a single sentence passes, unless white space is around it; a hyphen within a word fails."""
    sentences = english.rule_sentences(response.replace("-", " "))
    pairs = zip(response.split("-"), sentences, strict=False)
    return all(piece == sentence for piece, sentence in pairs)


# ---- copying


def _same(one: str, other: str) -> bool:
    return one.strip().lower() == other.strip().lower()


@register("copy:copy", lambda prompt_to_repeat: f'Write this text, and nothing else: "{prompt_to_repeat.strip()}".')
def copy(response: str, prompt_to_repeat: str) -> bool:
    """In any case."""
    return _same(response, prompt_to_repeat)


@register(
    "copy:copying_simple",
    lambda prompt_to_repeat: f'Repeat this request, and do not answer it: "{prompt_to_repeat.strip()}".',
)
def copying_simple(response: str, prompt_to_repeat: str) -> bool:
    """The same check as `copy:copy`."""
    return _same(response, prompt_to_repeat)


@register(
    "copy:copying_multiple",
    lambda prompt_to_repeat, N: (
        f"Repeat this request {plural(N, 'time')}, divided by ******, and do not answer it: "
        f'"{prompt_to_repeat.strip()}".'
    ),
    N=DRAWN_IF_0,
)
def copying_multiple(response: str, prompt_to_repeat: str, N: int) -> bool:
    copies = response.split("******")
    return len(copies) == N and all(_same(copy, prompt_to_repeat) for copy in copies)


@register(
    "new:copy_span_idx",
    lambda prompt_to_repeat, n_start, n_end: (
        f"Write nothing but the characters from number {n_start} up to but not including number {n_end}, counted from 0, of "
        f'this text: "{prompt_to_repeat}".'
    ),
    n_start=DRAWN_IF_0,
    n_end=DRAWN_IF_0,
)
def copy_span_idx(response: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    """Quirk: the published wording includes the character at `n_end`, and the check does not. White space around is ignored."""
    return _same(response, prompt_to_repeat[n_start:n_end])


def _ends(phrase: str) -> str:
    words = phrase.split()
    return f"{words[0]} .*? {words[-1]}"


@register(
    "copy:repeat_phrase",
    lambda phrase, small_n: (
        f'Repeat the phrase "{phrase.strip()}" {plural(small_n, "time")}, with one word in its middle replaced each time.'
    ),
    phrase=pattern(_ends),
    small_n=DRAWN_IF_0,
)
def repeat_phrase(response: str, phrase: str, small_n: int) -> bool:
    """Passages of one line from the phrase's first word to its last (as patterns), as many words long as the phrase. Quirk: only
    the last one must differ from it in exactly one word; the others may be equal to it."""
    words, found = phrase.split(), [passage.split() for passage in re.findall(_ends(phrase), response)]
    if len(found) != small_n or any(len(passage) != len(words) for passage in found):
        return False
    changed = [sum(a != b for a, b in zip(passage, words, strict=True)) for passage in found]
    return max(changed) <= 1 and changed[-1] == 1
