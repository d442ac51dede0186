"""A response that meets a set of constraints, put together from the constraints alone.

Independent of `checks.compatibility`: it looks at ids and arguments only, and the real checks say whether the text holds. Two
sizes are left free, the number of filler sentences and of filler words; the smallest that pass are taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hir_jax.checks import registry
from hir_jax.types import Constraint

# The English filler does without the letters b f g j k p q v w x z, commas and words in capitals.
FILLER = {
    "en": (
        "The door is closed",
        "She has a cold",
        "It is his last choice",
        "This is the reason and there is no other",
        "The children are on the stairs and the door is still closed",
        "It is a house that has stood there a thousand years or so",
        "She has a cold and so she is not in the city this month",
        "There are some that listen and there are others that do not",
        "He does not need it and he is not sure as to the cost",
        "The man at the desk said that this is a clear error",
        "Those lessons are hard and yet the students all learn a lot",
    ),
    "de": (
        "Der alte Mann sitzt heute allein im Haus und liest noch ein Buch",
        "Die Kinder sind nicht in der Schule und der Lehrer ist auch nicht da",
        "Ich habe das alles schon immer so gemacht und werde es nicht anders machen",
        "Es ist sehr still und man hört nur den Wind in den Bäumen",
        "Das ist nicht mehr neu",
        "Wir gehen jetzt nach Hause",
    ),
    "es": (
        "El hombre que estaba en la casa no sabe todavía lo que ha pasado",
        "Los niños no están en la escuela porque hoy es un día de fiesta",
        "Ella dice que todo esto es muy difícil pero también es necesario",
        "La tarde está tranquila y nadie tiene miedo de la noche",
        "Esto es muy bueno",
        "Todos viven en esta casa",
    ),
    "fr": (
        "Le vieil homme est assis seul dans la maison et il lit encore un livre",
        "Les enfants ne sont pas dans la cour parce que le temps est mauvais",
        "Elle dit que tout cela est très difficile mais aussi nécessaire",
        "La nuit est calme et on entend seulement le vent dans les arbres",
        "Cela va très bien",
        "Nous sommes dans la maison",
    ),
    "it": (
        "Il vecchio che stava nella casa non sa ancora che cosa sia successo",
        "Quei bambini non sono nella scuola perché oggi è un giorno di festa",
        "Lei dice che tutto questo è molto difficile ma anche necessario",
        "La sera è tranquilla e nessuno ha paura della notte",
        "Questo va molto bene",
        "Tutti sono nella casa",
    ),
    "pt": (
        "Este homem que estava na casa não sabe ainda o que aconteceu com ela",
        "Estas crianças não estão na escola porque hoje não há aulas",
        "Ela diz que tudo isto é muito difícil mas também é necessário",
        "Esta noite está calma e ninguém tem medo do que vem depois",
        "Isto não é muito bom",
        "Todos estão na nossa casa",
    ),
}


# What stands in a piece that needs some text and no more.
_STUB = {"en": "so it is", "de": "so ist es", "es": "así es", "fr": "c'est ainsi", "it": "è così", "pt": "não é assim"}


def arguments_of(constraints: Sequence[Constraint], name: str) -> list[Any]:
    return [c.arguments for c in constraints if c.id.endswith(":" + name)]


def _at_least(found: list[dict[str, Any]], relation: str) -> list[dict[str, Any]]:
    return [arguments for arguments in found if arguments[relation] == "at least"]


def _language(constraints: Sequence[Constraint]) -> str:
    return next((a["language"] for a in arguments_of(constraints, "response_language")), "en")


def fillers(constraints: Sequence[Constraint]) -> list[str]:
    """Sentences without full stop that keep clear of what must not occur."""
    language = _language(constraints)
    barred = [word for a in arguments_of(constraints, "forbidden_words") for word in a["forbidden_words"]]
    barred += [a["keyword"] for a in arguments_of(constraints, "frequency") if a["relation"] == "less than"]
    letters = [a["letter"] for a in arguments_of(constraints, "letter_frequency") if a["let_relation"] == "less than"]
    allowed = [s for s in FILLER[language] if not any(word in s.lower() for word in barred)]
    short = any(a["relation"] == "less than" for a in arguments_of(constraints, "number_words"))
    best = sorted(allowed, key=lambda s: (sum(s.lower().count(letter) for letter in letters), len(s) * short))
    return best[:3] if letters or short else best


def wanted_items(constraints: Sequence[Constraint]) -> list[str]:
    """Words that have to stand somewhere in the text."""
    items = [word for a in arguments_of(constraints, "existence") for word in a["keywords"]]
    for a in _at_least(arguments_of(constraints, "frequency"), "relation"):
        items += [a["keyword"]] * a["frequency"]
    for a in _at_least(arguments_of(constraints, "letter_frequency"), "let_relation"):
        items += [a["letter"] * 4] * (a["let_frequency"] // 4 + 1)
    for a in _at_least(arguments_of(constraints, "capital_word_frequency"), "capital_relation"):
        items += ["AH"] * a["capital_frequency"]
    items += ["[name]"] * sum(a["num_placeholders"] for a in arguments_of(constraints, "number_placeholders"))
    items += ["*dim*"] * sum(a["num_highlights"] for a in arguments_of(constraints, "number_highlighted_sections"))
    return items


def own_lines(constraints: Sequence[Constraint]) -> list[str]:
    """Lines of their own."""
    stub = _STUB[_language(constraints)]
    lines = ["<<Tale>>" for _ in arguments_of(constraints, "title")]
    lines += ["My answer is no." for _ in arguments_of(constraints, "constrained_response")]
    for a in arguments_of(constraints, "multiple_sections"):
        lines += [f"{a['section_spliter']} {i + 1}\n{stub}" for i in range(a["num_sections"])]
    for a in arguments_of(constraints, "number_bullet_lists"):
        lines += ["* a note"] * a["num_bullets"]
    return lines


def _assemble(constraints: Sequence[Constraint], sentences: int, words: int) -> str:
    filler = itertools.cycle(fillers(constraints))
    padding = " ".join(itertools.islice((w.lower() for s in filler for w in s.split()), words))
    body = " ".join([next(filler) + "." for _ in range(sentences)] + [padding, *wanted_items(constraints)]).strip()
    is_json = bool(arguments_of(constraints, "json_format"))
    text = '{"text": "' + body + '"}' if is_json else _structured(constraints, body)
    if arguments_of(constraints, "english_capital"):
        return text.upper()
    return text.lower() if arguments_of(constraints, "english_lowercase") else text


def _structured(constraints: Sequence[Constraint], body: str) -> str:
    stub = _STUB[_language(constraints)]
    head = [a["prompt_to_repeat"] for a in arguments_of(constraints, "repeat_prompt")]
    # A line that begins with a highlight would count as a bullet.
    pieces = ["\n".join([*head, f"{stub} {body}" if body.startswith("*") else body, *own_lines(constraints)]).strip()]
    divider = ""
    for a in arguments_of(constraints, "nth_paragraph_first_word"):
        divider = "\n\n"
        pieces += [stub] * (a["num_paragraphs"] - 1)
        nth = a["nth_paragraph"] - 1
        pieces[nth] = f"{a['first_word']} {pieces[nth]}"
    for a in arguments_of(constraints, "number_paragraphs"):
        divider = "\n***\n"
        pieces += [stub] * (a["num_paragraphs"] - 1)
    if arguments_of(constraints, "two_responses"):
        divider = "\n******\n"
        pieces += [stub]
    for a in arguments_of(constraints, "postscript"):
        pieces[-1] += f"\n{a['postscript_marker']} {stub}"
    for a in arguments_of(constraints, "end_checker"):
        pieces[-1] += "\n" + a["end_phrase"]
    text = divider.join(piece or stub for piece in pieces)
    return f'"{text}"' if arguments_of(constraints, "quotation") else text


def _cost(constraint: Constraint) -> bool:
    return constraint.id.startswith(("language:", "change_case:"))


def build(constraints: Sequence[Constraint]) -> str | None:
    """A text that passes every check, or None where none of the sizes tried does."""
    cheap_first = sorted(constraints, key=_cost)
    for sentences, words in itertools.product(range(14), (0, 6, 12, 20, 30, 45, 60, 90, 130)):
        text = _assemble(constraints, sentences, words)
        if text.strip() and all(registry.check(c, text) for c in cheap_first):
            return text
    return None
