r"""MulDimIF (arXiv 2505.07591): 12 families of constraints that are given as text, from which a rule is read.

The published scorer (github.com/Junjie-Ye/MulDimIF, Apache-2.0) looks for certain wordings, mostly English, and has its
own idea of each unit. The rules here follow its verdicts, the odd ones included, so that accuracies can be compared.
A constraint there is [first level, second level, text]; here `name` is "First_Second" and `wording` the text, which
is also the constraint's text in an instruction. Every response is checked unchanged, a blank one too; there is no loose mode.

Engines: the patterns of these modules, for wordings and responses alike, are for Python's `re`, as the scorer's own are:
\w is a letter, a digit or the underscore and no combining mark. Only its sentences (Content_Punctuation) are Punkt's, cut
by NLTK with the `regex` package (see `english`). Words are those of `str.split`, or Chinese characters.
"""

from __future__ import annotations

import functools

from hir_jax.checks import english, registry
from hir_jax.checks.muldimif import content as muldimif_content
from hir_jax.checks.muldimif.content import chinese, identifiers, keywords, punctuation
from hir_jax.checks.muldimif.content import english as english_case
from hir_jax.checks.muldimif.counts import paragraphs, sentences, words
from hir_jax.checks.muldimif.format import json_format, others, table
from hir_jax.checks.muldimif.markdown import markdown
from hir_jax.checks.muldimif.text import Rule
from hir_jax.checks.muldimif.wordings import generated
from hir_jax.types import Constraint

_READERS = {
    "Length_Words": words,
    "Length_Sentences": sentences,
    "Length_Paragraphs": paragraphs,
    "Content_Keywords": keywords,
    "Content_Punctuation": punctuation,
    "Content_Identifiers": identifiers,
    "Format_Json": json_format,
    "Format_Markdown": markdown,
    "Format_Table": table,
    "Format_XML": others,
    "Language_Chinese": chinese,
    "Language_English": english_case,
}

# A constraint's name is its family, possibly followed by a colon and a detail, or one of these.
_OTHER_NAMES = {
    "Format_Blurb": "Length_Words",
    "Format_Text": "Content_Identifiers",
    "Json_Object nesting levels": "Format_Json",
    "Markdown_Block quotes": "Format_Markdown",
    "Markdown_Heading levels": "Format_Markdown",
    "Punctuation_Ending punctuation": "Content_Punctuation",
    "Table_Column limit": "Format_Table",
    "Table_Row limit": "Format_Table",
    "Table_Table": "Format_Table",
    "XML_Number of attributes": "Format_XML",
}
# Names that are counted in another family, but are checked by `others`.
_OTHERS = {"Format_Blurb", "Format_Text", "Format_Markdown: Block quotes", "Markdown_Block quotes", "Table_Table"}


def _family(name: str) -> str | None:
    """The family of a name ("Length_Words: At most" is of Length_Words); None where the scorer has no checker for it."""
    family = _OTHER_NAMES.get(name, name.split(":")[0])
    return family if family in _READERS else None


@functools.lru_cache(maxsize=1 << 14)
def _rule(family: str, name: str, wording: str) -> Rule:
    return others(wording) if name in _OTHERS else _READERS[family](wording)


def constraint(first: str, second: str, text: str) -> Constraint:
    """The constraint that a row of MulDimIF or HIR-16K gives as [first level, second level, text].

    Raises UnknownConstraintError for levels that no checker is known for, ConstraintError for a blank text.
    """
    name = f"{first}_{second}"
    family = _family(name)
    if family is None:
        raise registry.UnknownConstraintError(f"MulDimIF has no constraint of the levels {first!r} and {second!r}")
    made = Constraint(f"muldimif:{family.lower()}", {"name": name, "wording": text}, text)
    registry.validate(made)
    return made


def _sentence(name: str, wording: str) -> str:
    wording = wording.strip()
    return wording if wording.endswith((".", "!", "?", "。")) else f"{wording}."


def _register(family: str) -> None:
    def complaint(name: str, wording: str) -> str | None:
        return None if _family(name) == family else f"{name!r} is no name of this family"

    def check(response: str, name: str, wording: str) -> bool:
        return _rule(family, name, wording)(response)

    id, how = f"muldimif:{family.lower()}", generated(family)
    needs = (english.sentence_tokenizer,) if family == "Content_Punctuation" else ()
    registry.register(id, _sentence, together=complaint, as_is=True, generated=how, needs=needs)(check)


for _name in _READERS:
    _register(_name)

registry.before_checks(english.warm_up)
registry.before_checks(muldimif_content.load)
