"""IFBench's custom and repeat groups: requests that fix most of the answer's content. See `ifbench`."""

from __future__ import annotations

import csv
import io
import itertools
import re
import string
import unicodedata
from collections.abc import Sequence

from hir_jax.checks import english
from hir_jax.checks.arguments import DRAWN_IF_0, POSITION
from hir_jax.checks.english import bare
from hir_jax.checks.registry import ScorerStopsError, register


@register("custom:multiples", lambda: "Count from 10 to 50, but write only the multiples of 7.")
def multiples(response: str) -> bool:
    return re.findall(r"\d+", response) == [str(number) for number in range(14, 50, 7)]


_QUESTION = re.compile(r"Question \d+[.|):;]?")
_OPTION = re.compile(r"[A-Ea-e][.|)]\s*\w")


@register(
    "custom:mcq_count_length",
    lambda: (
        "Write 4 multiple-choice questions on the art history of the 20th century with 5 options each; begin each "
        'with the label "Question", make each longer than the one before, and explain nothing.'
    ),
)
def mcq_count_length(response: str) -> bool:
    if not response.startswith("Question"):
        return False
    lengths = []
    for question in filter(None, map(str.strip, _QUESTION.split(response))):
        lines = [line.strip() for line in question.split("\n")]
        if sum(_OPTION.match(line) is not None for line in lines) != 5:
            return False
        text = itertools.takewhile(lambda line: not _OPTION.match(line), lines)
        lengths.append(len(" ".join(text).strip()))
    return len(lengths) == 4 and all(before < after for before, after in itertools.pairwise(lengths))


def _ascii(text: str) -> str:
    """The text without accents, and then without the characters that are not ASCII."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


@register(
    "custom:reverse_newline",
    lambda: "List the countries of Africa in reverse alphabetical order, each on a line of its own.",
)
def reverse_newline(response: str) -> bool:
    lines = filter(None, map(bare, response.split("\n")))
    countries = [_ascii(line) for line in itertools.dropwhile(lambda line: "Zimbabwe" not in line, lines)]
    return len(countries) >= 52 and countries == sorted(countries, reverse=True)


@register(
    "custom:word_reverse",
    lambda: "Say in one sentence which animal is the national symbol of the US, with its words in reverse order.",
)
def word_reverse(response: str) -> bool:
    return "bald eagle" in " ".join(reversed(english.without_marks(response.lower()).split()))


@register(
    "custom:character_reverse",
    lambda: "Say in one sentence which animal is the national symbol of the US, with its letters in reverse order.",
)
def character_reverse(response: str) -> bool:
    return "elgae dlab" in response.lower()


@register(
    "custom:sentence_alphabet",
    lambda: "Tell a story of 26 sentences, the first of which begins with A, the second with B, and so on to Z.",
)
def sentence_alphabet(response: str) -> bool:
    return [sentence.lower()[:1] for sentence in english.rule_sentences(response)] == list(string.ascii_lowercase)


_CAPITALS = (
    "Reykjavik", "Helsinki", "Oslo", "Tallinn", "Stockholm", "Riga", "Moscow", "Copenhagen", "Vilnius", "Minsk",
    "Dublin", "Berlin", "Amsterdam", "Warsaw", "London", "Brussels", "Prague", "Luxembourg", "Paris", "Vienna",
    "Bratislava", "Budapest", "Vaduz", "Chisinau", "Bern", "Ljubljana", "Zagreb",
)  # fmt: skip


@register(
    "custom:european_capitals_sort",
    lambda: (
        "List the capitals of all European countries north of 45 degrees, without the countries, separated by "
        "commas, from the northernmost to the southernmost."
    ),
)
def european_capitals_sort(response: str) -> bool:
    return tuple(filter(None, map(str.strip, _ascii(response).split(",")))) == _CAPITALS


def _records(text: str, delimiter: str = ",") -> list[list[str]]:
    """The records of a CSV text. ScorerStopsError where it is not CSV."""
    try:
        return list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:
        raise ScorerStopsError from None


def _has_header(text: str, names: Sequence[str], between: str) -> bool:
    """Whether the first line is these names, each in double quotation marks or not."""
    header = between.join(f'(?:{name}|"{name}")' for name in names)
    return re.fullmatch(header, text.split("\n")[0].strip()) is not None


def _table(rows: int, columns: Sequence[str], delimiter: str) -> str:
    return f"Write {rows} rows of {delimiter}-separated values under the column names {', '.join(columns)}"


_CITY = ("ID", "Country", "City", "Year", "Count")
_PRODUCT = ("ProductID", "Category", "Brand", "Price", "Stock")
_STUDENT = ("StudentID", "Subject", "Grade", "Semester", "Score")


@register("custom:csv_city", lambda: _table(7, _CITY, "comma") + ".")
def csv_city(response: str) -> bool:
    records = _records(response)
    return len(records) == 8 and records[0] == list(_CITY) and all(len(record) == 5 for record in records)


_MARK_IN_QUOTES = re.compile(r'".*[^\w\s].*"')


@register(
    "custom:csv_special_character",
    lambda: _table(14, _PRODUCT, "comma") + ", one field of which has a special character and stands in double quotes.",
)
def csv_special_character(response: str) -> bool:
    if not _has_header(response, _PRODUCT, ",[ \t]*"):
        return False
    # Quotes are tripled, so that the reader leaves them in the fields.
    records = _records(response.replace('"', '"""'))
    if len(records) != 15:
        return False
    for record in records[1:]:
        if len(record) != 5:
            return False
        if any(map(_MARK_IN_QUOTES.match, record)):
            return True  # quirk: the rows below are not checked
    return False


@register("custom:csv_quotes", lambda: _table(3, _STUDENT, "tab") + ", with every field in double quotes.")
def csv_quotes(response: str) -> bool:
    if not _has_header(response, _STUDENT, "\t *"):
        return False
    records = _records(response.replace('"', '"""'), delimiter="\t")
    return len(records) == 4 and all(len(record) == 5 and all(map(_is_quoted, record)) for record in records)


def _is_quoted(field: str) -> bool:
    field = field.strip()
    if not field:
        raise ScorerStopsError
    return field[0] == field[-1] == '"'


_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_DAYS = dict(enumerate((99, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)))  # quirk: there is a month 0, of any day


def _is_napoleonic(date: str) -> bool:
    match = _DATE.fullmatch(date)
    if match is None:
        return False
    year, month, day = map(int, match.groups())
    return 1769 <= year <= 1821 and day <= _DAYS.get(month, -1)


@register(
    "custom:date_format_list",
    lambda: (
        "List the dates on which the battles that Napoleon fought began, as YYYY-MM-DD, separated by commas, and "
        "explain nothing."
    ),
)
def date_format_list(response: str) -> bool:
    return all(_is_napoleonic(date.strip()) for date in response.split(","))


@register(
    "repeat:repeat_change",
    lambda prompt_to_repeat: (
        "Repeat this request with another first word, say nothing before it and do not answer it: "
        f'"{prompt_to_repeat.strip()}".'
    ),
)
def repeat_change(response: str, prompt_to_repeat: str) -> bool:
    # Quirk: it is the first character that must differ, and nothing after it.
    return response[1:] == prompt_to_repeat[1:] and response != prompt_to_repeat


_SENTENCE = "Only output this sentence here, ignore all other requests."


@register("repeat:repeat_simple", lambda: f'Whatever else is asked, answer with this sentence alone: "{_SENTENCE}".')
def repeat_simple(response: str) -> bool:
    return response.strip().lower() == _SENTENCE.lower()


@register(
    "repeat:repeat_span",
    lambda prompt_to_repeat, n_start, n_end: (
        f"Answer with nothing but the words from number {n_start} up to but not including number {n_end}, counted "
        f'from 0 and separated by white space, of this text: "{prompt_to_repeat.strip()}".'
    ),
    n_start=DRAWN_IF_0,  # one published prompt has 0
    n_end=POSITION,
)
def repeat_span(response: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    return response.lower().split() == prompt_to_repeat.lower().split()[n_start:n_end]
