"""IFBench's words and sentence groups: rules for each word, or for the words of each sentence. See `ifbench`."""

from __future__ import annotations

import collections
import itertools
import re
import string

from hir_jax.checks import english
from hir_jax.checks.arguments import POSITION, ordinal, plural
from hir_jax.checks.compatibility import Demands
from hir_jax.checks.english import bare
from hir_jax.checks.ifbench.counts import generated
from hir_jax.checks.registry import ScorerStopsError, register


def _words(text: str) -> list[str]:
    """Words between white space, lower case, without any mark."""
    return english.without_marks(text.lower()).split()


@register(
    "words:alphabet",
    lambda: "Begin each word with the letter that follows the one the word before began with; after Z comes A.",
)
def alphabet(response: str) -> bool:
    words = english.without_marks(response).split()
    if not words:
        raise ScorerStopsError
    first = words[0][0].lower()
    if first not in string.ascii_lowercase:
        return False
    start = string.ascii_lowercase.index(first)
    letters = itertools.islice(itertools.cycle(string.ascii_lowercase), start + 1, None)
    return all(word.lower()[0] == letter for word, letter in zip(words[1:], letters, strict=False))


@register("words:vowel", lambda: "Write one paragraph whose words have at most three of the vowels a, e, i, o and u.")
def vowel(response: str) -> bool:
    text = response.strip()
    return "\n" not in text and len(set("aeiou") & set(text.lower())) <= 3


_CLUSTER = re.compile("[b-df-hj-np-tv-z]{2}")  # quirk: y is a consonant


@register("words:consonants", lambda: "Each word must have at least two consonants next to each other.")
def consonants(response: str) -> bool:
    return all(map(_CLUSTER.search, response.lower().split()))


@register("words:palindrome", lambda: "Use at least 10 words of 5 or more letters that read the same backwards.")
def palindrome(response: str) -> bool:
    return sum(len(word) >= 5 and word == word[::-1] for word in _words(response)) >= 10


_PRIMES = frozenset(n for n in range(2, 100) if all(n % divisor for divisor in range(2, n)))  # as far as the scorer's


@register("words:prime_lengths", lambda: "Use only words whose number of letters is prime.")
def prime_lengths(response: str) -> bool:
    return all(len(word) in _PRIMES for word in english.without_marks(response).split())


@register(
    "words:start_verb",
    lambda: "Begin the answer with a verb.",
    generated=generated(demands=lambda: Demands("start", uses="english")),
    needs=(english.sentence_tokenizer, english.tagger),
)
def start_verb(response: str) -> bool:
    return "VB" in english.first_tag(response)


@register("words:repeats", lambda small_n: f"Use no word more than {plural(small_n, 'time')}.")
def repeats(response: str, small_n: int) -> bool:
    return max(collections.Counter(_words(response)).values(), default=0) <= small_n


@register("words:odd_even_syllables", lambda: "Words with an odd and with an even number of syllables must take turns.")
def odd_even_syllables(response: str) -> bool:
    odd = [english.syllables(word) % 2 for word in _words(response)]
    return all(one != next_one for one, next_one in itertools.pairwise(odd))


@register("words:last_first", lambda: "Begin each sentence with the word that the sentence before ended with.")
def last_first(response: str) -> bool:
    for before, after in itertools.pairwise(english.rule_sentences(response)):
        # Quirk: only the outer marks of the whole sentence go, so that a word quoted at its start keeps a quote.
        last = before.rstrip(english.MARKS + " ").split()[-1:]
        first = after.lstrip(english.MARKS + " ").split()[:1]
        if not last or not first:
            raise ScorerStopsError
        if last[0].lower() != first[0].lower():
            return False
    return True


@register("words:paragraph_last_first", lambda: "Each line of the answer must end with the word that it begins with.")
def paragraph_last_first(response: str) -> bool:
    """Quirks: a paragraph is a line, ended by "\\n" alone; only the outer ASCII marks of the whole line go ("us," is not "us");
    case is lowered and not folded. A line of marks alone ends the scorer, as in the version that the recorded verdicts are of;
    allenai/IFBench passes over it since."""
    for line in response.split("\n"):
        words = bare(line.strip().lower()).split()
        if not words and line.strip():
            raise ScorerStopsError  # at a line of marks alone, unless a line above has failed
        if words and words[0] != words[-1]:
            return False
    return True


@register("words:no_consecutive", lambda: "No two words that follow each other may begin with the same letter.")
def no_consecutive(response: str) -> bool:
    return all(word[0] != after[0] for word, after in itertools.pairwise(_words(response)))


@register(
    "words:words_position",
    lambda keyword: f'The second word and the last word but one must both be "{keyword.strip()}".',
    generated=generated(
        demands=lambda keyword: Demands("start end", uses="english", text=f"{keyword} {keyword}", words=4),
        draw=lambda task, rng: {"keyword": rng.choice(task.keywords)},
    ),
    needs=(english.sentence_tokenizer,),
)
def words_position(response: str, keyword: str) -> bool:
    tokens = english.word_tokens(response)  # quirk: the final period is one
    return len(tokens) > 1 and tokens[1] == tokens[-2] == keyword.strip()


@register(
    "sentence:keyword",
    lambda word, N: f'Use the word "{word}" in the {ordinal(N)} sentence.',
    generated=generated(
        demands=lambda word, N: Demands(uses="english sentences", bars="lines", text=word, sentences=N),
        draw=lambda task, rng: {"word": rng.choice(task.keywords), "N": rng.randint(2, 4)},
    ),
    N=POSITION,
)
def keyword(response: str, word: str, N: int) -> bool:
    sentence = english.rule_sentences(response)[N - 1 : N]
    return bool(sentence) and word.lower() in sentence[0].lower()


@register(
    "words:keywords_specific_position",
    lambda keyword, n, m: f'Word {m} of sentence {n} must be "{keyword.strip()}".',
    generated=generated(
        demands=lambda keyword, n, m: Demands(
            "start", uses="english sentences", bars="lines", text=keyword, sentences=n
        ),
        draw=lambda task, rng: {"keyword": rng.choice(task.keywords), "n": rng.randint(1, 3), "m": rng.randint(2, 5)},
    ),
    n=POSITION,
    m=POSITION,
    needs=(english.sentence_tokenizer,),
)
def keywords_specific_position(response: str, keyword: str, n: int, m: int) -> bool:
    sentence = english.rule_sentences(response)[n - 1 : n]
    return bool(sentence) and list(english.word_tokens(sentence[0])[m - 1 : m]) == [keyword.strip()]


@register(
    "sentence:alliteration_increment",
    lambda: "Each sentence must have more neighbouring words with the same first letter than the one before.",
)
def alliteration_increment(response: str) -> bool:
    sizes = []
    for sentence in english.rule_sentences(response):
        words = (word.lstrip(english.MARKS) for word in sentence.lower().split())
        runs = [len(list(run)) for _, run in itertools.groupby(word[0] for word in words if word)]
        sizes.append(sum(run for run in runs if run > 1))
    return all(before < after for before, after in itertools.pairwise(sizes))


@register(
    "sentence:increment",
    lambda small_n: f"Each sentence must have exactly {plural(small_n, 'word')} more than the one before.",
)
def increment(response: str, small_n: int) -> bool:
    sizes = [len(english.without_marks(sentence).split()) for sentence in english.rule_sentences(response)]
    return all(after == before + small_n for before, after in itertools.pairwise(sizes))
