"""Rows whose texts are hard to tokenise in segments: odd white space, combining marks, scripts, emoji, special tokens."""

import random

from hir_jax.data.templates import REWRITABLE
from hir_jax.types import Constraint, Instruction

PARTS = (
    "Use no commas", "Write 5 words", "42", "a", "I", "don't", "'s", "...", "!?", "**bold**", "`x`", "1.", "2) ", "- ", "* ",
    "cafe\u0301", "café", "e\u0323\u0302", "\u1112\u1161\u11ab", "\u0301", "\u212b", "ﬁ", "½", "Ｗｉｄｅ", "İ", "ß", "ǅ",
    "नमस्ते दुनिया", "สวัสดี", "שָׁלוֹם", "مُحَمَّد", "中文字符。", "、", "？", "ё", "\u0438\u0306",
    "🙂", "\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7", "\U0001f9d1\u200d", "\u200b", "\ufeff", "\u00ad", "\ue000",
    "$x^2$", "{{ x }}", "<b>", "</s>", "<s>", "[INST]", "[/INST]", "<think>", "|", "\\n", "\\", "▁", "Ġ",
    "http://a.b/c?d=e", "def f(x):\n    return x",
    "\n", "\n\n", "\t", " ", "  ", "   ", "\r\n", "\u00a0", "\u3000", "\u2028", "\x0b", "\x85",
)  # fmt: skip
OUTER = ("", "", "", "", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", " \n ")


def text(draw: random.Random) -> str:
    """One to six parts, with and without white space between them."""
    inner = draw.choice(("", " ")).join(draw.choice(PARTS) for _ in range(draw.randint(1, 6)))
    return draw.choice(OUTER) + inner + draw.choice(OUTER)


def row(seed: int) -> Instruction:
    """A row of one to six constraints; the task of one in sixteen is only white space."""
    draw = random.Random(seed)
    task = draw.choice(("", " ", "\n")) if draw.random() < 1 / 16 else text(draw)
    texts = [text(draw) for _ in range(draw.randint(1, 6))]
    return Instruction(task, tuple(Constraint("x", {}, t) for t in texts), draw.choice(REWRITABLE), seed, f"row {seed}")
