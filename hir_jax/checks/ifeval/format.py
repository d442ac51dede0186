"""IFEval's types on detectable content and detectable format. See `ifeval`."""

from __future__ import annotations

import json
import re

from hir_jax.checks import registry
from hir_jax.checks.arguments import pattern, plural
from hir_jax.checks.compatibility import NO_DOCUMENT, WHOLE, Demands, between, literal
from hir_jax.checks.ifeval.common import generated
from hir_jax.checks.registry import register


@register(
    "detectable_content:number_placeholders",
    lambda num_placeholders: (
        f"Leave at least {plural(num_placeholders, 'placeholder')} in square brackets, such as [name]."
    ),
    generated=generated(
        lambda num_placeholders: Demands(uses="free-text", marks="[a]", frame_words=3 * num_placeholders),
        "Include at least {num_placeholders} placeholders in square brackets, such as [address].",
        "Use {num_placeholders} or more placeholders written in square brackets, for example [date].",
        "There should be at least {num_placeholders} square-bracketed placeholders like [name].",
        draw=lambda task, rng: {"num_placeholders": rng.randint(2, 4)},
    ),
)
def number_placeholders(response: str, num_placeholders: int) -> bool:
    return sum(map(_bracketed, response.split("\n"))) >= num_placeholders


def _bracketed(line: str) -> int:
    r"""The number of matches of \[.*?\] in the line, in time linear in its length."""
    count = end = 0
    while (start := line.find("[", end)) >= 0 and (close := line.find("]", start)) >= 0:
        count, end = count + 1, close + 1
    return count


POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}


def _postscript(marker: str) -> str:
    # Quirk: any other marker is a regular expression, so that the dots of "P.S" are any character.
    return r"\s*" + POSTSCRIPTS.get(marker.strip(), marker.strip().lower())


@register(
    "detectable_content:postscript",
    lambda postscript_marker: f'End the answer with a postscript that begins with "{postscript_marker.strip()}".',
    generated=generated(
        lambda postscript_marker: Demands(owns="end", uses="lines abbreviation quoted", **literal(postscript_marker)),
        "Add a postscript starting with {postscript_marker} at the end of the reply.",
        'Add a postscript that starts with "{postscript_marker}" at the end of the reply.',
        'Close with a postscript marked "{postscript_marker}" and some words after the mark.',
        draw=lambda task, rng: {"postscript_marker": rng.choice(("P.S.", "P.S.", "P.P.S", "PS:", "p.s."))},
    ),
    postscript_marker=pattern(_postscript),
)
def postscript(response: str, postscript_marker: str) -> bool:
    return re.search(_postscript(postscript_marker), response.lower(), re.MULTILINE) is not None


ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_CHINESE_ANSWERS = tuple("我的答案是" + answer for answer in ("肯定的", "否定的", "可能", "也许", "不确定"))


@register(
    "detectable_format:constrained_response",
    lambda: f"The answer must contain one of these sentences, word for word: {' / '.join(ANSWERS)}",
    generated=generated(
        lambda: Demands(uses="verbatim english once free-text", **literal("My answer is no.")),
        'Include one of "My answer is yes.", "My answer is no." and "My answer is maybe." in exactly this form.',
        'State your verdict as "My answer is yes.", "My answer is no." or "My answer is maybe." and not otherwise.',
        'The reply has to contain "My answer is yes." or "My answer is no." or "My answer is maybe." word for word.',
        genre="verdict",
    ),
)
def constrained_response(response: str) -> bool:
    return any(answer in response for answer in ANSWERS + _CHINESE_ANSWERS)


@register(
    "detectable_format:json_format",
    lambda: "The whole answer must be one valid JSON value; a Markdown code fence around it is allowed.",
    generated=generated(
        lambda: Demands(owns=WHOLE, bars=f"{NO_DOCUMENT} free-text", marks='{"a": "b", "c": "d"}'),
        "Wrap the entire output in JSON format.",
        "Give the whole reply as valid JSON and nothing else.",
        "The output must be a single valid JSON object.",
    ),
)
def json_format(response: str) -> bool:
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    text = text.removesuffix("```").strip()
    if _nesting(text) > _MOST_LEVELS:
        raise registry.ScorerStopsError
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


_MOST_LEVELS = 800  # The scorer ends with a RecursionError near 1,000; the exact depth depends on the interpreter.
_JSON_MARK = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def _nesting(text: str) -> int:
    """The deepest level of brackets and braces outside JSON strings, which need not match."""
    level = deepest = 0
    for mark in _JSON_MARK.findall(text):
        if mark in ("[", "{"):
            level += 1
            deepest = max(deepest, level)
        elif mark in ("]", "}"):
            level -= 1
    return deepest


def _section_head(splitter: str) -> str:
    return rf"\s?{splitter.strip()}\s?\d+\s?"


def _demand_sections(section_spliter: str, num_sections: int) -> Demands:
    return Demands(
        shares="start layout", uses="lines quoted", bounds=between("sections", num_sections, None),
        frame_words=6 * num_sections, frame_sentences=num_sections,
        **literal(" ".join(f"{section_spliter} {i + 1}" for i in range(num_sections))),
    )  # fmt: skip


@register(
    "detectable_format:multiple_sections",
    lambda section_spliter, num_sections: (
        f"Divide the answer into at least {plural(num_sections, 'section')} and head each with "
        f'"{section_spliter.strip()}" and its number, as in "{section_spliter.strip()} 1".'
    ),
    generated=generated(
        _demand_sections,
        "Use at least {num_sections} sections and begin each with {section_spliter} X, where X is its number.",
        'Split the text into {num_sections} or more parts, headed "{section_spliter} 1" and so on.',
        'There must be at least {num_sections} sections, each starting with "{section_spliter}" and its number.',
        draw=lambda task, rng: {
            "section_spliter": rng.choice(("SECTION", "Section", "PART", "Part", "Chapter", "section")),
            "num_sections": rng.randint(2, 4),
        },
    ),
    section_spliter=pattern(_section_head),  # spelt so in the data
)
def multiple_sections(response: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(_section_head(section_spliter), response)) - 1 >= num_sections


@register(
    "detectable_format:number_bullet_lists",
    lambda num_bullets: (
        f'Include exactly {plural(num_bullets, "bullet point")}, each on a line of its own that begins with "* ".'
    ),
    generated=generated(
        lambda num_bullets: Demands(owns="list", uses="lines stars once", frame_words=3 * num_bullets),
        "Use exactly {num_bullets} bullet points, each on its own line starting with an asterisk and a space.",
        "Your reply must contain exactly {num_bullets} bullets in markdown, such as: * This is a point.",
        "Include a markdown list with exactly {num_bullets} items that start with * and no other bullet points.",
        draw=lambda task, rng: {"num_bullets": rng.randint(2, 6)},
    ),
)
def number_bullet_lists(response: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^*].*$", response, re.MULTILINE)
    dashes = [line for line in response.split("\n") if line.lstrip().startswith("-")]  # quirk: also "---"
    return len(stars) + len(dashes) == num_bullets


@register(
    "detectable_format:number_highlighted_sections",
    lambda num_highlights: (
        f"Highlight at least {plural(num_highlights, 'passage')} in Markdown, by an asterisk on either side, "
        "*like this*."
    ),
    generated=generated(
        lambda num_highlights: Demands(uses="markup stars", marks="*a*", frame_words=3 * num_highlights),
        "Highlight at least {num_highlights} phrases with markdown, i.e. *highlighted phrase*.",
        "Put asterisks around {num_highlights} or more passages to highlight them, like *this one*.",
        "At least {num_highlights} parts of the text should be highlighted in markdown, such as *an important part*.",
        draw=lambda task, rng: {"num_highlights": rng.randint(2, 4)},
    ),
)
def number_highlighted_sections(response: str, num_highlights: int) -> bool:
    # Quirk: both patterns run over the whole text, so that ***x*** counts twice.
    single = [match for match in re.findall(r"\*[^\n*]*\*", response) if match.strip("*").strip()]
    double = [match for match in re.findall(r"\*\*[^\n*]*\*\*", response) if match[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


@register(
    "detectable_format:title",
    lambda: "Give the answer a title enclosed in double angle brackets, such as <<title>>.",
    generated=generated(
        lambda: Demands(shares="start", uses="lines", bars="first-word", marks="<<a>>"),
        "Include a title wrapped in double angular brackets, such as <<my title>>.",
        "Give the reply a title in double angle brackets, i.e. <<title>>.",
        "The text needs a title, and the title has to stand between << and >>.",
    ),
)
def title(response: str) -> bool:
    return any(match.lstrip("<").rstrip(">").strip() for match in re.findall(r"<<[^\n]+>>", response))
