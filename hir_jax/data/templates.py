"""Rendering an instruction: the six templates of the released data (`q_type`), and where each constraint lies in the text.

type1, type2, type5 join sentences by spaces; type3 numbers lines, type4 bullets them, type6 writes one a line,
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
    """Whether a constraint's text depends on its ordinal among the kept ones."""
    return template == "type3"


def number(ordinal: int) -> str:
    """What a numbered template puts before a space and the constraint at this ordinal (from 0)."""
    return f"{ordinal + 1}."


def _sentence(text: str) -> str:
    return text if text.endswith((",", ".", "?", "!")) else text + "."


def render_pieces(task: str, texts: Sequence[str], template: str) -> tuple[str, list[str], str]:
    """(before, one piece per constraint, after): their concatenation is the rendered instruction.

    A space between pieces belongs to the one that follows, a newline to the one before: so do tokens (" The", ".\\n"), and
    what a piece looks like in tokens then depends on its place alone. Source: method.md step 5 (released code's templates), whose
    final `strip` is part of the pieces here. Raises ValueError for an unknown template.
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
        # A newline at a line's beginning would become one token with the one before it, whosever that is.
        lines = [f"- {t}" if template == "type4" else t.lstrip() for t in texts]
    return before.lstrip(), [line + "\n" for line in lines[:-1]] + [lines[-1].rstrip()], ""


def render(instruction: Instruction, keep: Sequence[bool] | None = None) -> str:
    """The user's request in full; with `keep` (bool per constraint), the hindsight instruction q' of the kept ones."""
    texts = [c.text for i, c in enumerate(instruction.constraints) if keep is None or keep[i]]
    before, pieces, after = render_pieces(instruction.task, texts, instruction.template)
    return before + "".join(pieces) + after
