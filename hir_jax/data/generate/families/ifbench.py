"""IFBench's test types, for those who ask for them: see `synthesis` for why they are off by default.

Of the 58 types those are drawn that can be joined to a task. The others replace the task (custom:*, repeat:*,
format:options), or bind every word of the response so that nothing else fits beside them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from hir_jax.checks import registry
from hir_jax.data.generate import conflicts as c
from hir_jax.data.generate.claims import Claims, things
from hir_jax.data.generate.tasks import BaseTask
from hir_jax.types import Constraint


def _times(base: BaseTask, rng: random.Random) -> dict[str, Any] | None:
    # Counted anywhere in a text, so no keyword may be part of another one.
    apart = [word for word in base.keywords if not any(word in other for other in base.keywords if other != word)]
    if len(apart) < 5:
        return None
    return {f"keyword{i}": word for i, word in enumerate(rng.sample(apart, 5), start=1)}


def _range(base: BaseTask, rng: random.Random) -> dict[str, Any]:
    low = rng.randrange(40, 130, 10)
    return {"min_words": low, "max_words": low + rng.randrange(20, 80, 10)}


ARGUMENTS: dict[str, Callable[[BaseTask, random.Random], dict[str, Any] | None]] = {
    "count:word_count_range": _range,
    "count:unique_word_count": lambda base, rng: {"N": rng.randrange(20, 70, 10)},
    "count:conjunctions": lambda base, rng: {"small_n": rng.randint(2, 4)},
    "count:numbers": lambda base, rng: {"N": rng.randint(2, 5)},
    "count:pronouns": lambda base, rng: {"N": rng.randint(3, 8)},
    "count:person_names": lambda base, rng: {"N": rng.randint(2, 4)},
    "count:punctuation": lambda base, rng: {},
    "count:keywords_multiple": _times,
    "words:start_verb": lambda base, rng: {},
    "words:words_position": lambda base, rng: {"keyword": rng.choice(base.keywords)},
    "sentence:keyword": lambda base, rng: {"word": rng.choice(base.keywords), "N": rng.randint(2, 4)},
    "words:keywords_specific_position": lambda base, rng: {
        "keyword": rng.choice(base.keywords), "n": rng.randint(1, 3), "m": rng.randint(2, 5),
    },
    "format:emoji": lambda base, rng: {},
    "format:title_case": lambda base, rng: {},
    "format:list": lambda base, rng: {"sep": rng.choice(("~>", "=>", "->", "§"))},
    "format:output_template": lambda base, rng: {},
    "format:sub-bullets": lambda base, rng: {},
    "format:parentheses": lambda base, rng: {},
    "format:quotes": lambda base, rng: {},
}  # fmt: skip


def _draw(id: str) -> Callable[[BaseTask, random.Random], Constraint | None]:
    def draw(base: BaseTask, rng: random.Random) -> Constraint | None:
        arguments = ARGUMENTS[id](base, rng)
        return None if arguments is None else Constraint(id, arguments, registry.describe(id, arguments))

    return draw


# Registry id -> a constraint of it, with its text, or None where the task does not suit it.
DRAWS = {id: _draw(id) for id in ARGUMENTS}

_ENGLISH = things("english")
_SENTENCES = things("english", "sentences")
_LINES = things("lines")


def _bounds(arguments: Mapping[str, Any]) -> Claims:
    low = Constraint(c.WORDS, {"num_words": arguments["min_words"], "relation": "at least"})
    high = Constraint(c.WORDS, {"num_words": arguments["max_words"] + 1, "relation": "less than"})
    return Claims(uses=things("latin"), same=(low, high))


def _times_claims(arguments: Mapping[str, Any]) -> Claims:
    words = [arguments[f"keyword{i}"] for i in range(1, 6)]
    shows = " ".join(word for word, times in zip(words, (1, 2, 3, 5, 7), strict=True) for _ in range(times))
    held = re.compile("|".join(words), re.IGNORECASE)
    return Claims(uses=_ENGLISH, shows=shows, refuses=lambda text: held.search(text) is not None, words=25)


CLAIMS: dict[str, Callable[[Mapping[str, Any]], Claims]] = {
    "count:word_count_range": _bounds,
    "count:unique_word_count": lambda a: Claims(uses=_ENGLISH, words=3 * a["N"] // 2),
    "count:conjunctions": lambda a: Claims(uses=_ENGLISH, words=4 * a["small_n"]),
    "count:numbers": lambda a: Claims(
        uses=things("latin"), shows=" 7" * a["N"], refuses=lambda text: re.search(r"\d", text) is not None
    ),
    "count:pronouns": lambda a: Claims(uses=_ENGLISH, words=4 * a["N"]),
    "count:person_names": lambda a: Claims(uses=things("english", "verbatim"), words=3 * a["N"]),
    "count:punctuation": lambda a: Claims(uses=_ENGLISH, shows=". , ! ? ; : ?!", words=20, sentences=3),
    "count:keywords_multiple": _times_claims,
    "words:start_verb": lambda a: Claims(things("start"), _ENGLISH),
    "words:words_position": lambda a: Claims(
        things("start", "end"), _ENGLISH, shows=f"{a['keyword']} {a['keyword']}", words=4
    ),
    "sentence:keyword": lambda a: Claims(uses=_SENTENCES, bars=_LINES, shows=a["word"], sentences=a["N"]),
    "words:keywords_specific_position": lambda a: Claims(
        things("start"), _SENTENCES, _LINES, shows=a["keyword"], sentences=a["n"]
    ),
    "format:emoji": lambda a: Claims(things("end"), _SENTENCES, _LINES),
    "format:title_case": lambda a: Claims(things("case"), _ENGLISH, things("verbatim", "whole")),
    "format:list": lambda a: Claims(things("list"), _LINES, shows=f"{a['sep']} {a['sep']}", words=8),
    "format:output_template": lambda a: Claims(
        things("start", "end", "layout"), things("lines", "verbatim", "english"), bars=things("whole"),
        shows="My Answer: My Conclusion: Future Outlook:", words=15,
    ),
    "format:sub-bullets": lambda a: Claims(things("list"), _LINES, things("stars"), shows="* -", words=10),
    "format:parentheses": lambda a: Claims(uses=things("latin"), shows="([{([", words=3),
    "format:quotes": lambda a: Claims(things("start", "end"), _ENGLISH, shows="\"'", words=6),
}  # fmt: skip


def claims(constraint: Constraint) -> Claims:
    """The claims of a constraint that `DRAWS` made."""
    return CLAIMS[constraint.id](constraint.arguments)
