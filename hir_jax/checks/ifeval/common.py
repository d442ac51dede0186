"""Shared by IFEval's types: relations to a number, the language of a response, and how constraints are generated."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from typing import Any

from hir_jax.checks import english
from hir_jax.checks.arguments import one_of, plural
from hir_jax.checks.compatibility import Bound, Demands
from hir_jax.checks.generation import Arguments, Generated
from hir_jax.checks.registry import before_checks

before_checks(english.warm_up)

_LESS_THAN, _AT_LEAST = "less than", "at least"
RELATION = one_of(_LESS_THAN, _AT_LEAST)


def holds(number: int, relation: str, threshold: int) -> bool:
    """Whether a number is in the relation to the threshold."""
    return number < threshold if relation == _LESS_THAN else number >= threshold


def amount(relation: str, threshold: int, noun: str) -> str:
    """ "at least 3 words", "fewer than 1 word"."""
    return ("fewer than " if relation == _LESS_THAN else "at least ") + plural(threshold, noun)


def quoted(items: Iterable[str]) -> str:
    """The items in double quotation marks, separated by commas."""
    return ", ".join(f'"{item}"' for item in items)


def divided(response: str, divider: str) -> list[str] | None:
    """Non-blank pieces between matches of `divider`; a blank one is allowed at either end only, else None."""
    pieces = re.split(divider, response)
    if not all(piece.strip() for piece in pieces[1:-1]):
        return None
    return [piece for piece in pieces if piece.strip()]


def is_language(response: str, code: str) -> bool:
    """Whether langdetect names the language of this code, or none at all: undetectable text counts as met."""
    found = english.language(response)
    return found is None or ("zh" if found == "zh-cn" else found) == code


# Generated constraints.

_WAYS = {
    _AT_LEAST: ("at least {}", "{} or more", "no fewer than {}"),
    _LESS_THAN: ("fewer than {}", "less than {}", "under {}"),
}


def draw_relation(rng: random.Random) -> str:
    return rng.choice((_AT_LEAST, _LESS_THAN))


def bound(quantity: str, number: int, relation: str, of: str = "") -> Bound:
    """The bound of a number and a relation."""
    return Bound(quantity, number, relation == _LESS_THAN, of)


def _listed(words: list[str] | tuple[str, ...]) -> str:
    """ "a", "b" and "c"."""
    return " and ".join([quoted(words[:-1]), quoted(words[-1:])] if len(words) > 1 else [quoted(words)])


def _filled(wording: str, arguments: Arguments, rng: random.Random) -> str:
    """Lists of words come quoted and joined; `{amount}` is "at least 3" or a form of "fewer than 3"."""
    fields: dict[str, Any] = {
        name: _listed(value) if isinstance(value, list | tuple) else value for name, value in arguments.items()
    }
    relation = next((value for name, value in arguments.items() if name.endswith("relation")), None)
    if relation is not None:
        number = next(value for value in arguments.values() if isinstance(value, int))
        fields["amount"] = rng.choice(_WAYS[relation]).format(number)
    return wording.format_map(fields)


def generated(demands: Callable[..., Demands], *wordings: str, **options: Any) -> Generated:
    """One of IFEval's types in these wordings or the registered one; options are those of `Generated`."""
    options = {"fill": _filled, "worded_last": True} | options
    return Generated(family="ifeval", demands=demands, wordings=(*wordings, ""), **options)
