"""A response that meets constraints of IFEval's, MulDimIF's and our training types, put together from them alone.

Independent of `compatibility`: it looks at ids, arguments and wordings only, and the real checks say whether the text holds.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from witness import FILLER, arguments_of, fillers, own_lines, wanted_items

from hir_jax.checks import registry
from hir_jax.types import Constraint

_SIMPLIFIED, _TRADITIONAL = "我们学习汉语", "我們學習漢語"
_STARTERS = (
    "So",
    "Then",
    "Oh",
    "Ah",
    "Still",
    "Also",
    "Thus",
    "Here",
    "Hence",
    "Less",
    "Eh",
    "As",
    "On",
    "At",
    "Is",
    "No",
)
_COMPOUNDS = ("on-site", "no-one", "so-so")
_LONG = ("consideration", "demonstration", "determination", "administration", "concentration")


class Parts:
    """What the constraints ask for, by our own reading of them."""

    def __init__(self, constraints: Sequence[Constraint]):
        self.all = constraints
        self.wordings = {
            c.id.removeprefix("muldimif:"): c.arguments["wording"] for c in constraints if "muldimif" in c.id
        }
        self.trained = {c.id.removeprefix("training:"): c.arguments for c in constraints if "training" in c.id}
        chinese = self.wordings.get("language_chinese")
        self.chinese = chinese and (_SIMPLIFIED if "Simplified" in chinese else _TRADITIONAL)

    def numbers(self, family: str) -> list[int]:
        return [int(n) for n in re.findall(r"\d+", self.wordings.get(family, ""))]

    def quotes(self, family: str) -> list[str]:
        return re.findall(r"'([^']+)'", self.wordings.get(family, ""))

    @property
    def sentence_bound(self) -> bool:
        return bool({"sentence_letter", "varied_starts", "sentence_length"} & set(self.trained))


def _wanted(parts: Parts) -> list[str]:
    """Words that have to stand somewhere."""
    items = wanted_items(parts.all)
    keywords = parts.wordings.get("content_keywords", "")
    if "avoid" not in keywords.lower():
        times = int(n[1]) if (n := re.search(r"(\d+) times", keywords)) else 1
        items += parts.quotes("content_keywords") * times
    trained = parts.trained
    if "word_times" in trained:
        items += [trained["word_times"]["word"]] * trained["word_times"]["times"]
    if "copy_span" in trained:
        items += [trained["copy_span"]["span"]] * trained["copy_span"]["times"]
    items += _COMPOUNDS[: trained.get("hyphenated", {}).get("number", 0)]
    items += _LONG[: trained.get("long_words", {}).get("number", 0)]
    if "start with the letter" in parts.wordings.get("content_identifiers", ""):
        items.append(parts.quotes("content_identifiers")[0])
    return items


def _sentences(parts: Parts, count: int, padding: int) -> list[str]:
    """Sentences without marks."""
    if parts.chinese:
        return [parts.chinese] * max(count, 1)
    most = parts.trained.get("sentence_length", {}).get("most", 10**6) - 2
    filler = itertools.cycle(s for s in fillers(parts.all) or FILLER["en"] if len(s.split()) <= most)
    sentences = [next(filler) for _ in range(count)]
    padded = list(itertools.islice((w.lower() for s in filler for w in s.split()), padding))
    chunk: list[str] = []
    for item in [*padded, *_wanted(parts)]:
        if len(" ".join([*chunk, item]).split()) > most:
            sentences.append(" ".join(chunk))
            chunk = []
        chunk.append(item)
    if chunk:
        # A line that begins with a highlight would count as a bullet.
        sentences.append(("so " if chunk[0].startswith("*") else "") + " ".join(chunk))
    if "varied_starts" in parts.trained:
        sentences = [f"{start} {_lowered(s)}" for start, s in zip(_starters(), sentences, strict=False)]
    if "sentence_letter" in parts.trained:
        letter = parts.trained["sentence_letter"]["letter"]
        sentences = [f"{letter}o {_lowered(s)}" for s in sentences]
    return sentences


def _lowered(sentence: str) -> str:
    return sentence if sentence[:2].isupper() else sentence[0].lower() + sentence[1:]


def _starters():
    return itertools.chain(_STARTERS, (f"{a}{b.lower()}" for a in _STARTERS for b in _STARTERS))


def _structures(parts: Parts) -> list[str]:
    """Lines of their own: those of IFEval, numbered items, a table."""
    stub = parts.chinese or "so it is"
    lines = [line.replace("a note", stub) for line in own_lines(parts.all)]
    lines += [f"{i + 1}. {stub}" for i in range(parts.trained.get("numbered_list", {}).get("items", 0))]
    if "format_table" in parts.wordings:
        wording, numbers, names = (
            parts.wordings["format_table"],
            parts.numbers("format_table"),
            parts.quotes("format_table"),
        )
        columns = numbers[0] if "columns" in wording and numbers else 2
        rows = numbers[0] if "rows" in wording else 2
        names = names or ["no"] * columns if not parts.chinese else [stub] * columns
        lines += ["|" + "|".join(names) + "|", "|" + "---|" * len(names)]
        lines += ["|" + "|".join([stub if parts.chinese else "no"] * len(names)) + "|"] * rows
    return lines


def _headings(parts: Parts) -> list[str]:
    wording, numbers = parts.wordings.get("format_markdown"), parts.numbers("format_markdown")
    if not wording:
        return []
    name = parts.chinese or "So"
    if "levels of" in wording or ("heading levels" in wording and len(numbers) == 1):
        levels = list(range(1, numbers[0] + 1))
    else:
        levels = [1] if "exceed" in wording else numbers or [1]
    return [f"{'#' * level} {name}" for level in levels] + ([f"> {name}"] if "block" in wording else [])


def _paragraph_count(parts: Parts) -> int:
    asked = [
        parts.trained[name]["paragraphs"] for name in ("paragraph_keyword", "paragraph_end") if name in parts.trained
    ]
    asked += [a["num_paragraphs"] for a in arguments_of(parts.all, "nth_paragraph_first_word")]
    at_most = re.search("at most|no more than", parts.wordings.get("length_paragraphs", ""))
    return (asked + ([] if at_most else parts.numbers("length_paragraphs")) + [1])[0]


def _first(parts: Parts, text: str) -> str:
    start = parts.trained.get("first_word", {}).get("word")
    quotes = parts.quotes("content_identifiers")
    start = start or (quotes[0] if quotes else "")
    return f"{start} {text}" if start else text


def _closed(parts: Parts, text: str) -> str:
    """The text with the last word and mark that are asked for."""
    if "last_word" in parts.trained:
        text = f"{text.rstrip('.?!')} {parts.trained['last_word']['word']}."
    if "same_ends" in parts.trained:
        first = (re.findall(r"\w+", text) or ["so"])[0]
        text = f"{text.rstrip('.?!')} {first}."
    wording = parts.wordings.get("content_punctuation", "")
    marks = {"period": ".", "question": "?", "exclamation": "!"}
    named = next((mark for name, mark in marks.items() if name in wording), "")
    if "not" in wording:
        return text.rstrip(".?!")
    return text.rstrip(".?!") + named if named else text


def _pieces(parts: Parts, count: int, padding: int) -> list[str]:
    """Paragraphs (or lines) of marked sentences; each but the first has one."""
    questions = parts.trained.get("questions", {}).get("number", 0)
    more = _paragraph_count(parts) * parts.trained.get("line_count", {}).get("lines", 1) - 1
    if "line_count" in parts.trained:
        more -= sum(
            len(arguments_of(parts.all, name)) for name in ("repeat_prompt", "constrained_response", "end_checker")
        )
    stub = parts.chinese or "So it is"
    if parts.sentence_bound:
        all_of_them = _sentences(parts, max(count, questions) + more, padding)
        groups = [all_of_them[more:], *([one] for one in all_of_them[:more])]
    else:
        groups = [_sentences(parts, count, padding), *[[stub]] * more]
        groups[0] += [stub] * max(0, questions - sum(map(len, groups)))
    if more and not groups[0]:
        groups[0] = [stub]
    flat = iter(range(10**6))
    mark = "。" if parts.chinese and "length_sentences" not in parts.wordings else "."
    texts = [" ".join(s + ("?" if next(flat) < questions else mark) for s in group) for group in groups]
    if "paragraph_keyword" in parts.trained:
        n, word = parts.trained["paragraph_keyword"]["number"] - 1, parts.trained["paragraph_keyword"]["word"]
        texts[n] = f"{texts[n].rstrip('.')} {word}." if texts[n] else f"So {word}."
    return texts


def _assemble(constraints: Sequence[Constraint], count: int, padding: int) -> str:
    parts = Parts(constraints)
    if arguments_of(constraints, "json_format") or "format_json" in parts.wordings:
        marks = "?" * parts.trained.get("questions", {}).get("number", 0)
        body = '"' + " ".join([*(s + "." for s in _sentences(parts, count, padding)), marks]).strip() + '"'
        for _ in range(max(parts.numbers("format_json"), default=1)):
            body = '{"so": ' + body + "}"
        return _cased(parts, body)
    texts = _pieces(parts, count, padding)
    stub = parts.chinese or "So it is"
    head = [*_headings(parts), *(a["prompt_to_repeat"] for a in arguments_of(constraints, "repeat_prompt"))]
    texts[0] = "\n".join(filter(None, [*head, texts[0], *_structures(parts)]))
    if "paragraph_end" in parts.trained:
        texts = [f"{text}\n{stub}" if text.endswith("My answer is no.") else text.rstrip(".") for text in texts]
        texts = [text + parts.trained["paragraph_end"]["ending"] for text in texts]
    divider = "\n" if "line_count" in parts.trained else "\n\n"
    for a in arguments_of(constraints, "nth_paragraph_first_word"):
        n = a["nth_paragraph"] - 1
        texts[n] = f"{a['first_word']} {texts[n]}"
    for a in arguments_of(constraints, "number_paragraphs"):
        divider, texts = "\n***\n", [*texts, *[f"{stub}."] * (a["num_paragraphs"] - 1)]
    if arguments_of(constraints, "two_responses"):
        divider, texts = "\n******\n", [*texts, f"{stub}."]
    if (
        _structures(parts) and {"last_word", "same_ends"} & set(parts.trained)
    ) or "content_punctuation" in parts.wordings:
        texts[-1] = texts[-1] or f"{stub}."
        if _structures(parts) and len(texts) == 1:
            texts[-1] += f"\n{stub}."
    for a in arguments_of(constraints, "postscript"):
        texts[-1] += f"\n{a['postscript_marker']} {stub.lower()}"
    for a in arguments_of(constraints, "end_checker"):
        texts[-1] += "\n" + a["end_phrase"]
    text = _closed(parts, _first(parts, divider.join(texts)))
    if "format_xml" in parts.wordings:
        text = (
            "<so " + " ".join(f'{name}="so"' for name in "aehinost"[: parts.numbers("format_xml")[0]]) + f">{text}</so>"
        )
    return _cased(parts, f'"{text}"' if arguments_of(constraints, "quotation") else text)


def _cased(parts: Parts, text: str) -> str:
    wording = parts.wordings.get("language_english", "")
    if "capitalized" in wording:
        return re.sub(r"(^|\s)([a-z])", lambda found: found[1] + found[2].upper(), text)
    if arguments_of(parts.all, "english_capital") or "uppercase" in wording:
        return text.upper()
    return text.lower() if arguments_of(parts.all, "english_lowercase") or "lowercase" in wording else text


def _cost(constraint: Constraint) -> bool:
    return constraint.id.startswith(("language:", "change_case:"))


def build(constraints: Sequence[Constraint]) -> str | None:
    """A text that passes every check, or None where none of the sizes tried does."""
    cheap_first = sorted(constraints, key=_cost)
    for count, padding in itertools.product((*range(14), 18, 24), (0, 6, 12, 20, 30, 45, 60, 90, 130)):
        text = _assemble(constraints, count, padding)
        if text.strip() and all(registry.check(c, text) for c in cheap_first):
            return text
    return None
