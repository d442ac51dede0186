"""IF-RLVR's types on keywords, letters, and the words at certain places. See `iftrain`."""

from __future__ import annotations

import itertools
import re
from typing import Any

from hir_jax.checks import english
from hir_jax.checks.arguments import DRAWN_IF_0, LETTER, Argument, ordinal, plural, require_pattern
from hir_jax.checks.ifeval import keywords as ifeval
from hir_jax.checks.ifeval.common import RELATION, amount, holds
from hir_jax.checks.registry import register


def _one(value: Any) -> str:
    """The text of a string, or of a list of one string, as many published rows have it."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def _one_pattern(value: Any) -> str:
    require_pattern(keyword := _one(value))
    return keyword


KEYWORD = Argument("a non-blank string", _one)
_PATTERN = Argument("a non-blank regular expression", _one_pattern)


def _found(keyword: str, response: str) -> int:
    """How often a keyword occurs: non-overlapping matches of it as a pattern, in any case, also within words."""
    return sum(1 for _ in re.finditer(keyword, response, re.IGNORECASE))


def _without_marks(word: str) -> str:
    return re.sub(r"[^\w\s]", "", word).lower()


# ---- how often


@register("keywords:word_once", lambda keyword: f'Use the word "{keyword}" exactly once.', keyword=_PATTERN)
def word_once(response: str, keyword: str) -> bool:
    return _found(keyword, response) == 1


@register(
    "keywords:word_count_different_numbers",
    lambda keyword, frequency, relation: f'Use the word "{keyword}" {amount(relation, frequency, "time")}.',
    keyword=_PATTERN,
    relation=RELATION,
)
def word_count_different_numbers(response: str, keyword: str, frequency: int, relation: str) -> bool:
    """Quirk: the published wording names the number alone, and the relation decides."""
    return holds(_found(keyword, response), relation, frequency)


@register(
    "count:count_increment_word",
    lambda keyword1, keyword2: f'Use the word "{keyword1}" exactly once and the word "{keyword2}" exactly twice.',
    keyword1=_PATTERN,
    keyword2=_PATTERN,
)
def count_increment_word(response: str, keyword1: str, keyword2: str) -> bool:
    return _found(keyword1, response) == 1 and _found(keyword2, response) == 2


@register(
    "keywords:exclude_word_harder",
    lambda keyword: f'Do not use the word "{keyword}".',
    keyword=KEYWORD,
)
def exclude_word_harder(response: str, keyword: str) -> bool:
    """Quirk: only the keyword between two spaces counts, in the same case; beside a mark or at an end it is allowed."""
    return f" {keyword} " not in response


@register(
    "letters:letter_counting",
    lambda N, relation: f"Write {amount(relation, N, 'letter')}.",
    N=DRAWN_IF_0,
    relation=RELATION,
)
def letter_counting(response: str, N: int, relation: str) -> bool:
    return holds(len(re.findall("[a-zA-Z]", response)), relation, N)


@register(
    "letters:letter_counting2",
    lambda letter, let_frequency, let_relation: (
        f'Use the letter "{letter}" {amount(let_relation, let_frequency, "time")}, in upper or lower case.'
    ),
    letter=LETTER,
    let_relation=RELATION,
)
def letter_counting2(response: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """The same check as `keywords:letter_frequency`."""
    return ifeval.letter_frequency(response, letter, let_frequency, let_relation)


@register(
    "count:lowercase_counting",
    lambda N: f"Write at most {plural(N, 'word')} in lower case alone.",
    N=DRAWN_IF_0,
)
def lowercase_counting(response: str, N: int) -> bool:
    r"""Words are matches of \b[a-z]+\b, so that "it's" is two of them."""
    return len(re.findall(r"\b[a-z]+\b", response)) <= N


@register("count:count_unique", lambda: "Use no word twice.", needs=(english.sentence_tokenizer,))
def count_unique(response: str) -> bool:
    """Quirk: a mark is a token, so two sentences that end in a period fail; cases differ."""
    tokens = english.word_tokens(response)
    return len(tokens) == len(set(tokens))


# ---- which words, and where


@register("keywords:palindrome", lambda: "Use a palindrome.")
def palindrome(response: str) -> bool:
    """Quirk: words are divided by white space alone and compared with their case, so "a" is one and "Anna" is not."""
    return any(word == word[::-1] for word in response.split())


@register(
    "keywords:no_adjacent_consecutive",
    lambda: "No word may begin with the letter that follows, in the alphabet, the first letter of the word before it.",
)
def no_adjacent_consecutive(response: str) -> bool:
    """First characters in lower case; one that is two characters then fails the response."""
    firsts = [word[0].lower() for word in response.split()]
    return all(
        len(first) == len(second) == 1 and ord(second) - ord(first) != 1 for first, second in itertools.pairwise(firsts)
    )


@register(
    "keywords:keyword_specific_position",
    lambda keyword, n, m: f'Make "{keyword}" the {ordinal(m)} word of the {ordinal(n)} sentence.',
    keyword=KEYWORD,
    n=DRAWN_IF_0,
    m=DRAWN_IF_0,
    needs=(english.sentence_tokenizer,),
)
def keyword_specific_position(response: str, keyword: str, n: int, m: int) -> bool:
    """In this case; marks are counted as words."""
    sentences = english.rule_sentences(response)
    return len(sentences) >= n and english.word_tokens(sentences[n - 1])[m - 1 : m] == (keyword,)


@register(
    "keywords:start_end",
    lambda: "Begin and end with the same word, and write nothing after it.",
    needs=(english.sentence_tokenizer,),
)
def start_end(response: str) -> bool:
    tokens = english.word_tokens(response)
    return len(tokens) > 1 and tokens[0].lower() == tokens[-1].lower()


@register(
    "first_word:first_word_sent",
    lambda first_word: f'Begin every sentence with the word "{first_word}".',
    first_word=KEYWORD,
)
def first_word_sent(response: str, first_word: str) -> bool:
    """Quirk: marks belong to the word, so "Now," is not "now"; a sentence of nothing but white space fails."""
    sentences = english.rule_sentences(response)
    return all(sentence and sentence.split()[0].lower() == first_word.lower() for sentence in sentences)


@register(
    "first_word:first_word_answer",
    lambda first_word: f'Make "{first_word}" the first word.',
    first_word=KEYWORD,
)
def first_word_answer(response: str, first_word: str) -> bool:
    """Quirk: marks belong to the word."""
    return response.split()[0].lower() == first_word.lower()


@register(
    "last_word:last_word_sent",
    lambda last_word: f'End every sentence, before its mark, with the word "{last_word}".',
    last_word=KEYWORD,
)
def last_word_sent(response: str, last_word: str) -> bool:
    """Marks within the last word are left out too: "it's" is "its"."""
    sentences = english.rule_sentences(response)
    return all(sentence and _without_marks(sentence.split()[-1]) == last_word.lower() for sentence in sentences)


@register(
    "last_word:last_word_answer",
    lambda last_word: f'Make "{last_word}" the last word.',
    last_word=KEYWORD,
)
def last_word_answer(response: str, last_word: str) -> bool:
    return _without_marks(response.split()[-1]) == last_word.lower()
