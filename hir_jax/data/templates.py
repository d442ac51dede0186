"""Renders an instruction with one of the six templates of the released data (`q_type`), whole or as one piece per constraint.

type1, type2 and type5 join sentences by spaces; type3 numbers lines, type4 bullets them, type6 writes one constraint a line,
without white space before it. type5 puts the constraints before the task. `verbatim` is the task alone, for published prompts
whose wording holds their constraints.
"""

from __future__ import annotations

from collections.abc import Sequence

from hir_jax.types import Instruction

_RULES_HEADER = "The output must follow the following rules:\n"
REWRITABLE = ("type1", "type2", "type3", "type4", "type5", "type6")
TEMPLATES = (*REWRITABLE, "verbatim")


def is_numbered(template: str) -> bool:
    """Whether a constraint is rendered with its number among the kept ones."""
    return template == "type3"


def number(ordinal: int) -> str:
    """The number that a numbered template shows for the constraint at this ordinal (from 0)."""
    return f"{ordinal + 1}."


def _sentence(text: str) -> str:
    return text if text.endswith((",", ".", "?", "!")) else text + "."


def render_pieces(task: str, texts: Sequence[str], template: str) -> tuple[str, list[str], str]:
    """(before, one piece per constraint, after), whose concatenation is the rendered instruction.

    A space between pieces belongs to the piece after it, a newline to the piece before it. Tokens are cut in the same way
    (" The", ".\\n"), so that the tokens of a piece depend only on its place. Source: the templates of HiR's released code, whose
    final `strip` is already applied to the pieces here. Raises ValueError for an unknown template.
    """
    if template == "verbatim":
        return task, ["" for _ in texts], ""
    if template not in REWRITABLE:
        raise ValueError(f"unknown template {template!r}; known: {', '.join(TEMPLATES)}")
    if not texts:
        return task.strip(), [], ""
    if template in ("type1", "type2", "type5"):
        first, *others = [_sentence(t) for t in texts]
        first, others = first.lstrip(), [" " + p for p in others]
        if template == "type1":
            return task, [" " + first, *others], ""
        if template == "type2":
            return task + "\n", [first, *others], ""
        *before_last, last = [first, *others]
        return "", [*before_last, last + "\n\n"], task
    if template == "type3":
        before = task + "\n\n" + _RULES_HEADER
        lines = [f"{number(i)} {t}" for i, t in enumerate(texts)]
    else:
        before = task + "\n\n"
        # A newline at the beginning of a line would become one token with the newline that ends the line before it.
        lines = [f"- {t}" if template == "type4" else t.lstrip() for t in texts]
    return before.lstrip(), [line + "\n" for line in lines[:-1]] + [lines[-1].rstrip()], ""


def render(instruction: Instruction, keep: Sequence[bool] | None = None) -> str:
    """The whole request as text; with `keep` (one bool per constraint), the hindsight instruction q' of the kept constraints."""
    texts = [c.text for i, c in enumerate(instruction.constraints) if keep is None or keep[i]]
    before, pieces, after = render_pieces(instruction.task, texts, instruction.template)
    return before + "".join(pieces) + after
