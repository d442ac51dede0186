"""Reads MulDimIF's wordings on JSON, tables and formats without a checker of their own as rules."""

from __future__ import annotations

import re
from typing import Any

from hir_jax.checks.muldimif.markdown import has_block_quote
from hir_jax.checks.muldimif.text import NUMBER, Limits, Rule, fenced, json_document, limits, number, quoted


def depth(document: Any) -> int:
    """Levels of objects and lists; empty ones add none."""
    if not isinstance(document, dict | list) or not document:
        return 0
    return 1 + max(map(depth, document.values() if isinstance(document, dict) else document))


def _nesting(low: str) -> Limits | None:
    if found := re.search(rf"at least {NUMBER} levels? of nesting", low):
        return Limits(number(found[1]), None)
    if found := re.search(rf"exactly {NUMBER} levels? of nesting|nesting level of {NUMBER}", low):
        return Limits(number(found[1] or found[2]), number(found[1] or found[2]))
    found = re.search(rf"not exceed(?:ing)? {NUMBER}", low)
    return Limits(None, number(found[1])) if found else None


def json_format(wording: str) -> Rule:
    """The first ```json block, else the whole response, is JSON nested as stated; a limit not understood is not met."""
    bounds = _nesting(wording.lower())

    def rule(response: str) -> bool:
        try:
            return bounds is not None and bounds.hold(depth(json_document(response)))
        except (ValueError, RecursionError):
            return False

    return rule


_TAG = re.compile(r"<[A-Za-z][^<>]*>")
_ATTRIBUTE = re.compile(r"(?<![\w:.-])[\w:.-]+\s*=\s*(?:\"[^\"]*\"|'[^']*')")


def _attributes(wording: str) -> Rule:
    """Limits on the number of attributes of every opening tag; a response without tags keeps them."""
    low = re.search(rf"(?:at least|minimum of|exactly) {NUMBER}", wording, re.IGNORECASE)
    high = re.search(rf"(?:at most|no more than|maximum of|not exceed|exactly) {NUMBER}", wording, re.IGNORECASE)
    bounds = Limits(low and number(low[1]), high and number(high[1]))

    def rule(response: str) -> bool:
        return all(bounds.hold(len(_ATTRIBUTE.findall(tag))) for tag in _TAG.findall(fenced(response, "xml")))

    return rule


def others(wording: str) -> Rule:
    """Constraints on the format that have no checker of their own; False where none of the rules below fits."""
    low = wording.lower()
    if "full sentences" in low:
        return lambda response: True
    if "attributes" in low:
        return _attributes(wording)
    if "block quote" in low:
        return has_block_quote
    if "no bullet points" in low:
        return lambda response: not re.search(r"^[ \t]*[-*•]", response, re.MULTILINE)
    if "blurb" in low:
        return lambda response: len(response.split()) <= 30  # recorded verdicts: 29 words are a blurb, 39 are not
    if rows := limits(wording, "rows?"):
        # Here the header counts as a row.
        return lambda response: "|" in response and rows.hold(sum("---" not in line for line in _table(response)))
    return lambda response: False


_IF_TABLE = re.compile(r"\b[Ii]f (?:you \w+ (?:to \w+ )?)?(?:a |any )?tables?\b")
_LISTED = re.compile(r"\bmust include the (?:words? )?([^.;:]+)")


def _table(response: str) -> list[str]:
    """The non-blank lines from the first bar to the last, including any text between two tables."""
    text = response[response.find("|") : response.rfind("|") + 1]
    return [line.strip() for line in text.split("\n") if line.strip()]


def _table_limits(wording: str, unit: str) -> Limits | None:
    stated = limits(wording, rf"{unit}s?\b")
    if stated:
        return stated
    found = re.search(
        rf"{unit} limit of {NUMBER}|\blimit (?:the|each|any) tables? to {NUMBER} {unit}"
        rf"|not have more than {NUMBER} {unit}",
        wording,
        re.IGNORECASE,
    )
    return Limits(None, number(next(filter(None, found.groups())))) if found else None


def _items(text: str) -> list[str]:
    return [item.strip(" '\"") for item in re.split(r",? and |, ", text.rstrip(".")) if item.strip(" '\"")]


def _column_names(wording: str) -> list[str]:
    found = re.search(r"columns?: (.*)", wording)
    return (quoted(found[1]) or _items(found[1])) if found else []


def table(wording: str) -> Rule:
    """Rows below the header, columns of the header, and the names of columns that follow "columns:".

    Without any bar the constraint is met if it has no "table" or says "if a table is used"; limits that are not
    understood are met.
    """
    rows, columns = _table_limits(wording, "row"), _table_limits(wording, "column")
    optional = "table" not in wording or _IF_TABLE.search(wording) is not None
    names = _column_names(wording)
    listed = _LISTED.search(wording)
    contents = _items(listed[1].lower()) if listed else []

    def rule(response: str) -> bool:
        if "|" not in response:
            return optional
        lines = _table(response)
        below = len(lines) - (2 if len(lines) > 1 and "---" in lines[1] else 1)
        header = lines[0].split("|")
        if rows is not None and not rows.hold(below):
            return False
        if columns is not None and not (any(header) and columns.hold(len(header) - 2)):
            return False
        text = "\n".join(lines).lower()
        return all(any(name in cell for cell in header) for name in names) and all(item in text for item in contents)

    return rule
