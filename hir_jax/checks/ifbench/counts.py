"""IFBench's count and ratio groups. See `ifbench`."""

from __future__ import annotations

import functools
import math
import random
import re
from functools import partial
from typing import Any

from hir_jax.checks import english
from hir_jax.checks.arguments import POSITION, Argument, ordinal, plural
from hir_jax.checks.compatibility import Demands, between
from hir_jax.checks.english import bare
from hir_jax.checks.generation import Arguments, Generated, Task
from hir_jax.checks.registry import ScorerStopsError, register

generated = partial(Generated, family="ifbench")

_NUMBER = re.compile(r"\d+")


def _percentage(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError
    return value


PERCENTAGE = Argument("a number >= 0", _percentage)


def _in_order(min_words: int, max_words: int) -> str | None:
    return f"min_words = {min_words} is more than max_words = {max_words}" if min_words > max_words else None


def _draw_range(task: Task, rng: random.Random) -> Arguments:
    low = rng.randrange(40, 130, 10)
    return {"min_words": low, "max_words": low + rng.randrange(20, 80, 10)}


@register(
    "count:word_count_range",
    lambda min_words, max_words: f"Write at least {min_words} and at most {plural(max_words, 'word')}.",
    together=_in_order,
    generated=generated(
        demands=lambda min_words, max_words: Demands(uses="latin", bounds=between("words", min_words, max_words)),
        draw=_draw_range,
    ),
)
def word_count_range(response: str, min_words: int, max_words: int) -> bool:
    return min_words <= len(english.word_runs(response)) <= max_words


@register(
    "count:unique_word_count",
    lambda N: f"Use at least {plural(N, 'different word')}.",
    generated=generated(
        demands=lambda N: Demands(uses="english", words=3 * N // 2),
        draw=lambda task, rng: {"N": rng.randrange(20, 70, 10)},
    ),
)
def unique_word_count(response: str, N: int) -> bool:
    return len(set(map(bare, response.lower().split()))) >= N  # quirk: a mark on its own counts once, as the empty word


_CONJUNCTIONS = frozenset(("and", "but", "for", "nor", "or", "so", "yet"))


@register(
    "count:conjunctions",
    lambda small_n: f"Use at least {plural(small_n, 'different coordinating conjunction')}, such as and, but or yet.",
    generated=generated(
        demands=lambda small_n: Demands(uses="english", words=4 * small_n),
        draw=lambda task, rng: {"small_n": rng.randint(2, 4)},
    ),
)
def conjunctions(response: str, small_n: int) -> bool:
    # Quirk: each way of writing one is another one, so that "and" and "And," are two.
    return len({word for word in response.split() if bare(word).lower() in _CONJUNCTIONS}) >= small_n


@register(
    "count:numbers",
    lambda N: f"Write exactly {plural(N, 'number')} in digits.",
    generated=generated(
        demands=lambda N: Demands(uses="latin", text=" 7" * N, refuses=lambda text: _NUMBER.search(text) is not None),
        draw=lambda task, rng: {"N": rng.randint(2, 5)},
    ),
)
def numbers(response: str, N: int) -> bool:
    return len(_NUMBER.findall(english.without_marks(response))) == N  # "2-3" is one, as "1,234" is


_PRONOUNS = frozenset((
    "i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves", "you", "your", "yours", "yourself",
    "yourselves", "he", "him", "his", "himself", "she", "her", "hers", "herself", "it", "its", "itself", "they", "them",
    "their", "theirs", "themselves",
))  # fmt: skip


@register(
    "count:pronouns",
    lambda N: f"Use at least {plural(N, 'personal pronoun')}, such as I, her or theirs.",
    generated=generated(
        demands=lambda N: Demands(uses="english", words=4 * N), draw=lambda task, rng: {"N": rng.randint(3, 8)}
    ),
)
def pronouns(response: str, N: int) -> bool:
    words = english.without_marks(response.replace("/", " ").lower()).split()
    return sum(word in _PRONOUNS for word in words) >= N


_NAMES = (
    "Emma", "Liam", "Sophia", "Jackson", "Olivia", "Noah", "Ava", "Lucas", "Isabella", "Mason", "Mia", "Ethan",
    "Charlotte", "Alexander", "Amelia", "Benjamin", "Harper", "Leo", "Zoe", "Daniel", "Chloe", "Samuel", "Lily",
    "Matthew", "Grace", "Owen", "Abigail", "Gabriel", "Ella", "Jacob", "Scarlett", "Nathan", "Victoria", "Elijah",
    "Layla", "Nicholas", "Audrey", "David", "Hannah", "Christopher", "Penelope", "Thomas", "Nora", "Andrew", "Aria",
    "Joseph", "Claire", "Ryan", "Stella", "Jonathan",
)  # fmt: skip


@register(
    "count:person_names",
    lambda N: f"Name at least {N} of these people: {', '.join(_NAMES)}.",
    generated=generated(
        demands=lambda N: Demands(uses="english verbatim", words=3 * N), draw=lambda task, rng: {"N": rng.randint(2, 4)}
    ),
)
def person_names(response: str, N: int) -> bool:
    return sum(name in response for name in _NAMES) >= N  # quirk: inside a word too, so that Miami has Mia


@register(
    "count:punctuation",
    lambda: (
        "Use each of these punctuation marks at least once: period, comma, exclamation mark, question mark, "
        "semicolon, colon, and the interrobang (?!)."
    ),
    generated=generated(demands=lambda: Demands(uses="english", text=". , ! ? ; : ?!", words=20, sentences=3)),
)
def punctuation(response: str) -> bool:
    if not any(interrobang in response for interrobang in ("?!", "!?", "‽")):
        return False
    written = next((two for two in ("?!", "!?") if two in response), "")
    return set(".,!?;:") <= set(response.replace(written, "", 1) if written else response)


_TIMES = {"keyword1": 1, "keyword2": 2, "keyword3": 3, "keyword4": 5, "keyword5": 7}


def _times_text(**keywords: str) -> str:
    parts = [f'"{keywords[name].strip()}" {plural(times, "time")}' for name, times in _TIMES.items()]
    return f"Use these words exactly so often: {', '.join(parts)}."


def _draw_times(task: Task, rng: random.Random) -> Arguments | None:
    # Counted anywhere in a text, so no keyword may be part of another one.
    apart = [word for word in task.keywords if not any(word in other for other in task.keywords if other != word)]
    return dict(zip(_TIMES, rng.sample(apart, len(_TIMES)), strict=True)) if len(apart) >= len(_TIMES) else None


def _demand_times(**keywords: str) -> Demands:
    text = " ".join(keywords[name] for name, times in _TIMES.items() for _ in range(times))
    held = re.compile("|".join(map(re.escape, keywords.values())), re.IGNORECASE)
    return Demands(uses="english", text=text, refuses=lambda text: held.search(text) is not None, words=25)


@register("count:keywords_multiple", _times_text, generated=generated(demands=_demand_times, draw=_draw_times))
def keywords_multiple(response: str, keyword1: str, keyword2: str, keyword3: str, keyword4: str, keyword5: str) -> bool:
    text = response.lower()
    keywords = (keyword1, keyword2, keyword3, keyword4, keyword5)
    return all(
        text.count(keyword.strip().lower()) == times for keyword, times in zip(keywords, _TIMES.values(), strict=True)
    )


_JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")  # kana, and what Japanese shares with Chinese


@register("count:words_japanese", lambda N: f"Write every {ordinal(N)} word in Japanese.", N=POSITION)
def words_japanese(response: str, N: int) -> bool:
    nth = map(bare, response.split()[N - 1 :: N])
    return all(_JAPANESE.search(word) for word in nth if word and not word.isdigit())


@register(
    "ratio:stop_words",
    lambda percentage: f"At most {percentage:g}% of all words may be stop words, such as the, of and is.",
    percentage=PERCENTAGE,
    needs=(english.stop_words,),
)
def stop_words(response: str, percentage: float) -> bool:
    words = english.word_runs(response)
    if not words:
        raise ScorerStopsError
    known = english.stop_words()
    stops = sum(word.lower() in known for word in words)
    return stops / len(words) * 100 <= percentage


@functools.lru_cache(maxsize=64)
def _trigrams(text: str) -> frozenset[tuple[str, ...]]:
    return frozenset(zip(text, text[1:], text[2:], strict=False))


@register(
    "ratio:overlap",
    lambda reference_text, percentage: (
        f"Of the runs of three characters in the answer, {percentage:g}% (give or take 2%) must occur in this text too: "
        f'"{reference_text.strip()}".'
    ),
    percentage=PERCENTAGE,
)
def overlap(response: str, reference_text: str, percentage: float) -> bool:
    trigrams = _trigrams(response)
    if not trigrams:
        raise ScorerStopsError
    share = len(trigrams & _trigrams(reference_text)) / len(trigrams)
    return percentage - 2 <= share * 100 <= percentage + 2


def _ends(response: str) -> list[str]:
    return [sentence[-1:] for sentence in english.rule_sentences(response)]


@register("ratio:sentence_type", lambda: "Write exactly two statements for every question.")
def sentence_type(response: str) -> bool:
    ends = _ends(response)
    return ends.count(".") == 2 * ends.count("?")  # none of either passes


@register("ratio:sentence_balance", lambda: "Write as many questions as exclamations, and as many statements.")
def sentence_balance(response: str) -> bool:
    ends = _ends(response)
    return ends.count(".") == ends.count("?") == ends.count("!")


@register(
    "ratio:sentence_words",
    lambda: "Write three sentences of the same number of characters, without using any word twice.",
)
def sentence_words(response: str) -> bool:
    sentences = english.rule_sentences(response)
    return len(sentences) == 3 and len(set(map(len, sentences))) == 1  # quirk: the words are not compared
