"""IFEval's types on letter case, and those that combine the response with another text. See `ifeval`."""

from __future__ import annotations

import random

from hir_jax.checks import english
from hir_jax.checks.compatibility import Demands, literal
from hir_jax.checks.generation import Arguments, Task
from hir_jax.checks.ifeval.common import RELATION, amount, bound, divided, draw_relation, generated, holds, is_language
from hir_jax.checks.registry import register


def _draw_capital_words(task: Task, rng: random.Random) -> Arguments:
    relation = draw_relation(rng)
    number = rng.randint(2, 6) if relation == "at least" else rng.randint(3, 8)
    return {"capital_frequency": number, "capital_relation": relation}


@register(
    "change_case:capital_word_frequency",
    lambda capital_frequency, capital_relation: (
        f"Write {amount(capital_relation, capital_frequency, 'word')} entirely in capital letters."
    ),
    generated=generated(
        lambda capital_frequency, capital_relation: Demands(
            uses="latin capitals", bounds=(bound("capital words", capital_frequency, capital_relation),)
        ),
        "Put {amount} words in all capital letters.",
        "Words in all capital letters should appear {amount} times.",
        "The text should contain {amount} words written fully in capitals.",
        draw=_draw_capital_words,
        repeatable=True,
    ),
    needs=(english.sentence_tokenizer,),
    capital_relation=RELATION,
)
def capital_word_frequency(response: str, capital_frequency: int, capital_relation: str) -> bool:
    return holds(english.capital_tokens(response), capital_relation, capital_frequency)  # also "A" and "I"


_ONE_CASE = {"owns": "case language", "uses": "english", "bars": "verbatim capitals"}


@register(
    "change_case:english_capital",
    lambda: "Write the whole answer in English and in capital letters only.",
    generated=generated(
        lambda: Demands(**_ONE_CASE, case=str.upper),
        "Write in English and use capital letters only.",
        "Your entire reply should be in English, in all capital letters.",
        "Use no lowercase letters at all, and write in English.",
    ),
)
def english_capital(response: str) -> bool:
    return response.isupper() and is_language(response, "en")


@register(
    "change_case:english_lowercase",
    lambda: "Write the whole answer in English and in lowercase letters only, without any capital letter.",
    generated=generated(
        lambda: Demands(**_ONE_CASE, case=str.lower),
        "Write in English and use lowercase letters only.",
        "Your entire reply should be in English, in all lowercase letters.",
        "Use no capital letters at all, and write in English.",
    ),
)
def english_lowercase(response: str) -> bool:
    return response.islower() and is_language(response, "en")


@register(
    "combination:repeat_prompt",
    lambda prompt_to_repeat: (
        "Begin by repeating the following request word for word, with nothing before it, and only then answer it: "
        f'"{prompt_to_repeat.strip()}".'
    ),
    generated=generated(
        lambda prompt_to_repeat: Demands(
            shares="start", uses="verbatim english once", bars="quotation first-word", **literal(prompt_to_repeat)
        ),
        'First repeat the request "{prompt_to_repeat}" word for word without change, then give your answer.',
        'Before the answer, copy "{prompt_to_repeat}" exactly as it stands to the very start of the reply.',
        'The reply must open with the exact text "{prompt_to_repeat}" and go on with the answer to it.',
        draw=lambda task, rng: {"prompt_to_repeat": task.task},
    ),
)
def repeat_prompt(response: str, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


@register(
    "combination:two_responses",
    lambda: "Give two different answers, divided by a line that holds only six asterisks: ******.",
    generated=generated(
        lambda: Demands(owns="dividers", shares="layout", uses="lines two stars", bars="once", frame_words=20),
        "Give exactly two different responses, separated by six asterisks: ******.",
        "Provide two distinct answers with ****** between them.",
        "Write two versions of the answer that differ, and put ****** between the two.",
    ),
)
def two_responses(response: str) -> bool:
    pieces = divided(response, r"\*{6}")
    return pieces is not None and len(pieces) == 2 and pieces[0].strip() != pieces[1].strip()
