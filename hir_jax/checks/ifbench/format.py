"""IFBench's format group: rules for the form of the answer. See `ifbench`."""

from __future__ import annotations

import itertools
import re
import string

from hir_jax.checks import english
from hir_jax.checks.arguments import TEXT
from hir_jax.checks.compatibility import Demands
from hir_jax.checks.english import bare
from hir_jax.checks.ifbench.counts import generated
from hir_jax.checks.registry import ScorerStopsError, register


def _is_emoji(character: str) -> bool:
    import emoji  # on first use, like all data of checks

    return emoji.is_emoji(character)


@register(
    "format:emoji",
    lambda: "End every sentence with an emoji.",
    generated=generated(demands=lambda: Demands("end", uses="english sentences", bars="lines")),
)
def emoji(response: str) -> bool:
    sentences = [english.without_marks(sentence).strip() for sentence in english.rule_sentences(response)]
    # The last character but one, for an emoji with a modifier after it; the next sentence's first, for one
    # after the period. Quirk: an emoji of several code points, such as a flag, is not recognised by its characters.
    for sentence, after in zip(sentences, [*sentences[1:], None]):
        if not sentence:
            raise ScorerStopsError
        if not any(map(_is_emoji, sentence[-2:])):
            if after == "":
                raise ScorerStopsError
            if after is None or not _is_emoji(after[0]):
                return False
    return True


@register(
    "format:title_case",
    lambda: "Write the whole answer in title case: every major word begins with a capital.",
    generated=generated(demands=lambda: Demands("case", uses="english", bars="verbatim quoted whole")),
    needs=(english.sentence_tokenizer,),
)
def title_case(response: str) -> bool:
    # Quirk: a single letter passes ("a"), and so does one with capitals further on ("iPhone").
    return not any(
        token[0].islower() and (token[1:].islower() or token[1:].isupper())
        for token in english.first_word_tokens(response)
    )


@register(
    "format:list",
    lambda sep: f'Answer with a list and put "{sep}" in place of bullets.',
    generated=generated(
        demands=lambda sep: Demands("list", uses="lines", text=f"{sep} {sep}", words=8),
        draw=lambda task, rng: {"sep": rng.choice(("~>", "=>", "->", "§"))},
    ),
)
def list_items(response: str, sep: str) -> bool:
    return response.count(sep) >= 2  # quirk: anywhere in a line


_TEMPLATE = ("My Answer:", "My Conclusion:", "Future Outlook:")


@register(
    "format:output_template",
    lambda: "Follow this template: My Answer: [answer] My Conclusion: [conclusion] Future Outlook: [outlook].",
    generated=generated(
        demands=lambda: Demands(
            "start end layout", uses="lines verbatim english", bars="whole", text=" ".join(_TEMPLATE), words=15
        )
    ),
)
def output_template(response: str) -> bool:
    return all(part in response for part in _TEMPLATE)


@register(
    "format:sub-bullets",
    lambda: "Write bullet points with * and, under each, at least one sub-point with -.",
    generated=generated(demands=lambda: Demands("list", uses="lines", bars="stars", text="* -", words=10)),
)
def sub_bullets(response: str) -> bool:
    return all("-" in piece for piece in response.split("*")[1:])


_BRACKET = re.compile(r"[()\[\]{}]")
_QUOTE = re.compile("[\"']")
_CLOSED_BY = {"(": ")", "[": "]", "{": "}"}


@register(
    "format:parentheses",
    lambda: "Nest parentheses, brackets or braces at least five levels deep.",
    generated=generated(demands=lambda: Demands(uses="latin", text="([{([", words=3)),
)
def parentheses(response: str) -> bool:
    open_ones: list[str] = []
    deepest = 0
    for mark in _BRACKET.findall(response):
        if mark in _CLOSED_BY:
            open_ones.append(mark)
            deepest = max(deepest, len(open_ones))
        elif open_ones and _CLOSED_BY[open_ones[-1]] == mark:
            if deepest >= 5:
                return True
            open_ones.pop()
        else:
            open_ones.clear()
            deepest = 0
    return False


@register(
    "format:quotes",
    lambda: "Put a quotation inside a quotation inside a quotation, with double and single quotation marks in turn.",
    generated=generated(demands=lambda: Demands("start end", uses="english", text="\"'", words=6)),
)
def quotes(response: str) -> bool:
    open_ones: list[str] = []
    deepest = 0
    for mark in _QUOTE.findall(response):  # quirk: an apostrophe is one
        if open_ones and open_ones[-1] == mark:
            open_ones.pop()
            if deepest - len(open_ones) >= 3:
                return True
        else:
            open_ones.append(mark)
            deepest = max(deepest, len(open_ones))
    return False


_LETTERED = re.compile(r"\W*[aA]\W*[bB]\W*[cC]\W*")


def _options(options: str) -> list[str]:
    divider = next((divider for divider in ("/", "or") if divider in options), ",")  # quirk: "or" inside a word too
    return [option.strip() for option in options.split(divider)]


@register(
    "format:options", lambda options: f"Answer with one of these options and nothing else: {options}.", options=TEXT
)
def options(response: str, options: str) -> bool:
    if _LETTERED.match(options):
        return response in _options(options)
    return bare(response).lower() in [bare(option).lower() for option in _options(options)]


@register("format:newline", lambda: "Write each word on a line of its own.")
def newline(response: str) -> bool:
    text = english.without_marks(response).strip()
    return sum(line != "" for line in text.split("\n")) == len(text.split())


@register("format:line_indent", lambda: "Indent each line by more spaces than the line before.")
def line_indent(response: str) -> bool:
    lines = response.split("\n")
    index = 0
    while index < len(lines):  # quirk: the line after a removed one is not looked at, so half of a blank run stays
        if not lines[index].strip():
            lines.remove(lines[index])
        index += 1
    indents = [len(line) - len(line.lstrip(" ")) for line in lines]
    return all(before < after for before, after in itertools.pairwise(indents))


_EDGES = string.digits + english.MARKS.replace('"', "")


@register("format:quote_unquote", lambda: "Follow every quotation by an explanation that is not in quotation marks.")
def quote_unquote(response: str) -> bool:
    text = response.replace("“", '"').replace("”", '"').replace("'\"'", "")
    text = "".join(text.split())
    if '""' in text:
        return False
    text = text.strip(_EDGES)
    if not text:
        raise ScorerStopsError
    return text[-1] != '"'


def _found(text: str, *tags: str) -> int:
    """The index of the first of the tags that occurs in the text; -1 if none does."""
    return next((text.find(tag) for tag in tags if tag in text), -1)


@register(
    "format:thesis", lambda: "Begin each section with a thesis statement in italics, by HTML tags, then go on in plain."
)
def thesis(response: str) -> bool:
    start = _found(response, "<i>", "<em>")
    text = response[start:]
    end = _found(text, "</i>", "</em>")
    if start < 0 or end < 0:
        return False
    # Quirk: tags are cut off as if all were as short as <i>, so that the rest of an <em> counts as text.
    return bool(text[3:end].strip()) and bool(text[end + 4 :].strip())


@register(
    "format:no_bullets_bullets",
    lambda: "Write at least two sentences that end in a period, and after them at least two bullet points with *.",
)
def no_bullets_bullets(response: str) -> bool:
    sentences = bullets = 0
    text_goes_on = True
    for line in map(str.strip, response.split("\n")):
        if line.startswith("*"):
            if sentences < 2:
                return False
            text_goes_on = False
            bullets += 1
        elif text_goes_on:
            found = len(english.rule_sentences(line))
            sentences += found
            text_goes_on = found > 0  # quirk: a blank line ends the text, and only bullets may follow
        else:
            return False
    return bullets >= 2


@register("format:no_whitespace", lambda: "Do not use any white space.")
def no_whitespace(response: str) -> bool:
    return not any(map(str.isspace, response))
