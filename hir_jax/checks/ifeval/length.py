"""IFEval's types on length, punctuation, and the start and end of the response. See `ifeval`."""

from __future__ import annotations

import random
import re

from hir_jax.checks import english
from hir_jax.checks.arguments import plural
from hir_jax.checks.compatibility import Demands, between, literal
from hir_jax.checks.generation import Arguments, Task
from hir_jax.checks.ifeval.common import RELATION, amount, bound, divided, draw_relation, generated, holds
from hir_jax.checks.registry import register


def _nth_fits(num_paragraphs: int, nth_paragraph: int, first_word: str) -> str | None:
    if 1 <= nth_paragraph <= num_paragraphs:
        return None
    return f"nth_paragraph must be from 1 to num_paragraphs = {num_paragraphs}, not {nth_paragraph}"


_FIRST_WORDS = ("today", "imagine", "perhaps", "once", "however", "remember", "finally", "when", "every", "although")


def _draw_nth(task: Task, rng: random.Random) -> Arguments:
    paragraphs = rng.randint(2, 4)
    word = rng.choice((*_FIRST_WORDS, *task.keywords))
    return {"num_paragraphs": paragraphs, "nth_paragraph": rng.randint(1, paragraphs), "first_word": word}


def _demand_nth(num_paragraphs: int, nth_paragraph: int, first_word: str) -> Demands:
    first = nth_paragraph == 1
    return Demands(
        owns="layout", shares="start" if first else "", uses="english starts" + " first-word" * first,
        bars="headings table", frame_words=6 * num_paragraphs, frame_sentences=num_paragraphs, **literal(first_word),
    )  # fmt: skip


@register(
    "length_constraints:nth_paragraph_first_word",
    lambda num_paragraphs, nth_paragraph, first_word: (
        f"Write exactly {plural(num_paragraphs, 'paragraph')}, with one blank line between paragraphs, "
        f'and begin paragraph {nth_paragraph} with the word "{first_word}".'
    ),
    together=_nth_fits,
    generated=generated(
        _demand_nth,
        'Separate {num_paragraphs} paragraphs by blank lines and start paragraph {nth_paragraph} with "{first_word}".',
        'Write {num_paragraphs} paragraphs, a blank line apart. Paragraph {nth_paragraph} starts with "{first_word}".',
        draw=_draw_nth,
    ),
)
def nth_paragraph_first_word(response: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    pieces = response.split("\n\n")
    count = sum(1 for piece in pieces if piece.strip())
    # Quirk: blank pieces do not count, but they do shift which piece is the nth.
    if nth_paragraph > count or not pieces[nth_paragraph - 1].strip():
        return False
    word = re.split(r"[.,?!'\"]", pieces[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"'))[0]
    # Letter by letter, as there: a capital sigma at the end of a word would become another letter otherwise.
    return count == num_paragraphs and "".join(map(str.lower, word)) == first_word.lower()


def _demand_paragraphs(num_paragraphs: int) -> Demands:
    return Demands(
        owns="dividers", shares="layout", uses="lines stars", bounds=between("sections", None, num_paragraphs),
        frame_words=6 * num_paragraphs, frame_sentences=num_paragraphs,
    )  # fmt: skip


@register(
    "length_constraints:number_paragraphs",
    lambda num_paragraphs: (
        f"Write exactly {plural(num_paragraphs, 'paragraph')}, dividing paragraphs by a line that holds only ***."
    ),
    generated=generated(
        _demand_paragraphs,
        "Write exactly {num_paragraphs} paragraphs separated by the markdown divider: ***.",
        "There should be {num_paragraphs} paragraphs. Put *** between one paragraph and the next.",
        "Use the divider *** to split the reply into exactly {num_paragraphs} paragraphs.",
        draw=lambda task, rng: {"num_paragraphs": rng.randint(2, 5)},
    ),
)
def number_paragraphs(response: str, num_paragraphs: int) -> bool:
    pieces = divided(response, r"\s?\*{3}\s?")
    return pieces is not None and len(pieces) == num_paragraphs


def _draw_sentences(task: Task, rng: random.Random) -> Arguments:
    relation = draw_relation(rng)
    number = rng.randint(3, 8) if relation == "at least" else rng.randint(4, 12)
    return {"num_sentences": number, "relation": relation}


def _demand_sentences(num_sentences: int, relation: str) -> Demands:
    number = bound("sentences", num_sentences, relation)
    few = {"uses": "latin brief", "bars": "item-dots"} if number.upper else {"uses": "latin"}
    return Demands(**few, bounds=(number,))


@register(
    "length_constraints:number_sentences",
    lambda num_sentences, relation: f"Write {amount(relation, num_sentences, 'sentence')}.",
    generated=generated(
        _demand_sentences,
        "Your reply should contain {amount} sentences.",
        "Use {amount} sentences.",
        "Answer with {amount} sentences.",
        draw=_draw_sentences,
        repeatable=True,
    ),
    needs=(english.sentence_tokenizer,),
    relation=RELATION,
)
def number_sentences(response: str, num_sentences: int, relation: str) -> bool:
    return holds(len(english.sentences(response)), relation, num_sentences)


def _draw_words(task: Task, rng: random.Random) -> Arguments:
    relation = draw_relation(rng)
    number = rng.randrange(30, 130, 10) if relation == "at least" else rng.randrange(40, 210, 10)
    return {"num_words": number, "relation": relation}


@register(
    "length_constraints:number_words",
    lambda num_words, relation: f"Use {amount(relation, num_words, 'word')}.",
    generated=generated(
        lambda num_words, relation: Demands(uses="latin", bounds=(bound("words", num_words, relation),)),
        "Answer with {amount} words.",
        "Your reply should contain {amount} words.",
        "Write {amount} words.",
        draw=_draw_words,
        repeatable=True,
    ),
    relation=RELATION,
)
def number_words(response: str, num_words: int, relation: str) -> bool:
    return holds(len(english.word_runs(response)), relation, num_words)


@register(
    "punctuation:no_comma",
    lambda: "Do not use any commas.",
    generated=generated(
        lambda: Demands(uses="latin", refuses=lambda text: "," in text),
        "Do not use any commas in your reply.",
        "Avoid commas altogether.",
        "Refrain from the use of commas.",
    ),
)
def no_comma(response: str) -> bool:
    return "," not in response


_END_PHRASES = (
    "That is all I have to say.",
    "Is there anything else you would like to know?",
    "Let me know what you think.",
    "I hope this helps.",
    "And that is the whole story.",
    "Thank you for your time.",
    "The rest is up to you.",
    "Now it is your turn!",
    "Take care and good luck.",
    "What would you do?",
    "and that was that.",
    "see you next time.",
    "so it goes.",
    "THE END",
    "END OF MESSAGE.",
)


@register(
    "startend:end_checker",
    lambda end_phrase: f'End the answer with exactly this phrase and nothing after it: "{end_phrase.strip()}".',
    generated=generated(
        lambda end_phrase: Demands(owns="end", uses="quoted english", **literal(end_phrase)),
        'Finish your reply with the exact phrase "{end_phrase}" and no other words after it.',
        'Let "{end_phrase}" be the very last words of the reply.',
        'End with the exact phrase "{end_phrase}" and add nothing behind it.',
        draw=lambda task, rng: {"end_phrase": rng.choice(_END_PHRASES)},
    ),
)
def end_checker(response: str, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@register(
    "startend:quotation",
    lambda: 'Begin and end the whole answer with a straight double quotation mark (").',
    generated=generated(
        lambda: Demands(owns="end", shares="start", uses="quotation", marks='"'),
        "Wrap your entire reply in double quotation marks.",
        "Put double quotation marks around the whole reply.",
        "The whole reply should stand between double quotation marks.",
    ),
)
def quotation(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'
