"""Wordings of the IFEval-type constraints in generated instructions, several for each id.

A wording is a `str.format` template over the constraint's arguments. Lists of words come quoted and joined ("a", "b"
and "c"); `{amount}` is "at least 3" or a form of "fewer than 3". No wording begins or ends with white space, holds a
newline, or speaks of its place among the others ("also", "finally"): a rewritten instruction may keep any subset.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from hir_jax.checks import ifeval, registry

PHRASINGS: dict[str, tuple[str, ...]] = {
    "change_case:capital_word_frequency": (
        "Put {amount} words in all capital letters.",
        "Words in all capital letters should appear {amount} times.",
        "The text should contain {amount} words written fully in capitals.",
    ),
    "change_case:english_capital": (
        "Write in English and use capital letters only.",
        "Your entire reply should be in English, in all capital letters.",
        "Use no lowercase letters at all, and write in English.",
    ),
    "change_case:english_lowercase": (
        "Write in English and use lowercase letters only.",
        "Your entire reply should be in English, in all lowercase letters.",
        "Use no capital letters at all, and write in English.",
    ),
    "combination:repeat_prompt": (
        'First repeat the request "{prompt_to_repeat}" word for word without change, then give your answer.',
        'Before the answer, copy "{prompt_to_repeat}" exactly as it stands to the very start of the reply.',
        'The reply must open with the exact text "{prompt_to_repeat}" and go on with the answer to it.',
    ),
    "combination:two_responses": (
        "Give exactly two different responses, separated by six asterisks: ******.",
        "Provide two distinct answers with ****** between them.",
        "Write two versions of the answer that differ, and put ****** between the two.",
    ),
    "detectable_content:number_placeholders": (
        "Include at least {num_placeholders} placeholders in square brackets, such as [address].",
        "Use {num_placeholders} or more placeholders written in square brackets, for example [date].",
        "There should be at least {num_placeholders} square-bracketed placeholders like [name].",
    ),
    "detectable_content:postscript": (
        "Add a postscript starting with {postscript_marker} at the end of the reply.",
        'Add a postscript that starts with "{postscript_marker}" at the end of the reply.',
        'Close with a postscript marked "{postscript_marker}" and some words after the mark.',
    ),
    "detectable_format:constrained_response": (
        'Include one of "My answer is yes.", "My answer is no." and "My answer is maybe." in exactly this form.',
        'State your verdict as "My answer is yes.", "My answer is no." or "My answer is maybe." and not otherwise.',
        'The reply has to contain "My answer is yes." or "My answer is no." or "My answer is maybe." word for word.',
    ),
    "detectable_format:json_format": (
        "Wrap the entire output in JSON format.",
        "Give the whole reply as valid JSON and nothing else.",
        "The output must be a single valid JSON object.",
    ),
    "detectable_format:multiple_sections": (
        "Use at least {num_sections} sections and begin each with {section_spliter} X, where X is its number.",
        'Split the text into {num_sections} or more parts, headed "{section_spliter} 1" and so on.',
        'There must be at least {num_sections} sections, each starting with "{section_spliter}" and its number.',
    ),
    "detectable_format:number_bullet_lists": (
        "Use exactly {num_bullets} bullet points, each on its own line starting with an asterisk and a space.",
        "Your reply must contain exactly {num_bullets} bullets in markdown, such as: * This is a point.",
        "Include a markdown list with exactly {num_bullets} items that start with * and no other bullet points.",
    ),
    "detectable_format:number_highlighted_sections": (
        "Highlight at least {num_highlights} phrases with markdown, i.e. *highlighted phrase*.",
        "Put asterisks around {num_highlights} or more passages to highlight them, like *this one*.",
        "At least {num_highlights} parts of the text should be highlighted in markdown, such as *an important part*.",
    ),
    "detectable_format:title": (
        "Include a title wrapped in double angular brackets, such as <<my title>>.",
        "Give the reply a title in double angle brackets, i.e. <<title>>.",
        "The text needs a title, and the title has to stand between << and >>.",
    ),
    "keywords:existence": (
        "Include the keywords {keywords}.",
        "Make sure that the words {keywords} appear in the text.",
        "Mention {keywords} in your reply.",
    ),
    "keywords:forbidden_words": (
        "Do not include the words {forbidden_words}.",
        "Avoid the words {forbidden_words}.",
        "The words {forbidden_words} must not appear anywhere in the reply.",
    ),
    "keywords:frequency": (
        'The word "{keyword}" should appear {amount} times.',
        'Mention the word "{keyword}" {amount} times.',
        'In your reply, "{keyword}" must occur {amount} times.',
    ),
    "keywords:letter_frequency": (
        "The letter {letter} should appear {amount} times.",
        'Use the letter "{letter}" {amount} times in the whole reply.',
        'Let the letter "{letter}" occur {amount} times.',
    ),
    "language:response_language": (
        "Write in {language} only.",
        "Your entire reply should be in {language}, no other language is allowed.",
        "Answer in {language} and use no other language.",
    ),
    "length_constraints:nth_paragraph_first_word": (
        'Separate {num_paragraphs} paragraphs by blank lines and start paragraph {nth_paragraph} with "{first_word}".',
        'Write {num_paragraphs} paragraphs, a blank line apart. Paragraph {nth_paragraph} starts with "{first_word}".',
    ),
    "length_constraints:number_paragraphs": (
        "Write exactly {num_paragraphs} paragraphs separated by the markdown divider: ***.",
        "There should be {num_paragraphs} paragraphs. Put *** between one paragraph and the next.",
        "Use the divider *** to split the reply into exactly {num_paragraphs} paragraphs.",
    ),
    "length_constraints:number_sentences": (
        "Your reply should contain {amount} sentences.",
        "Use {amount} sentences.",
        "Answer with {amount} sentences.",
    ),
    "length_constraints:number_words": (
        "Answer with {amount} words.",
        "Your reply should contain {amount} words.",
        "Write {amount} words.",
    ),
    "punctuation:no_comma": (
        "Do not use any commas in your reply.",
        "Avoid commas altogether.",
        "Refrain from the use of commas.",
    ),
    "startend:end_checker": (
        'Finish your reply with the exact phrase "{end_phrase}" and no other words after it.',
        'Let "{end_phrase}" be the very last words of the reply.',
        'End with the exact phrase "{end_phrase}" and add nothing behind it.',
    ),
    "startend:quotation": (
        "Wrap your entire reply in double quotation marks.",
        "Put double quotation marks around the whole reply.",
        "The whole reply should stand between double quotation marks.",
    ),
}

_AT_LEAST = ("at least {}", "{} or more", "no fewer than {}")
_LESS_THAN = ("fewer than {}", "less than {}", "under {}")


def _listed(words: tuple[str, ...] | list[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _fields(arguments: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: _listed(value) if isinstance(value, list | tuple) else value for name, value in arguments.items()
    }
    relation = next((value for name, value in arguments.items() if name.endswith("relation")), None)
    if relation is not None:
        numbers = [value for name, value in arguments.items() if isinstance(value, int)]
        fields["amount"] = rng.choice(_LESS_THAN if relation == "less than" else _AT_LEAST).format(numbers[0])
    if "language" in arguments:
        fields["language"] = ifeval.LANGUAGES[arguments["language"]]
    return fields


def phrase(id: str, arguments: Mapping[str, Any], rng: random.Random) -> str:
    """One wording of the constraint: the registry's own or one from `PHRASINGS`, drawn evenly."""
    choices = PHRASINGS[id]
    drawn = rng.randrange(len(choices) + 1)
    if drawn == len(choices):
        return registry.describe(id, arguments)
    return choices[drawn].format_map(_fields(arguments, rng))
