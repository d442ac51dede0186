"""What a chat template puts around the user's request, and the tokenizer that reads both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tokenizers import normalizers

from hir_jax.checks.responses import begins_thinking
from hir_jax.data.chat import SENTINEL, Chat, EncodeError
from hir_jax.types import Instruction

# These write "\u2581" for a space, which is not to be shown.
_SPACE_MARKERS = (normalizers.Prepend, normalizers.Replace)


@dataclass(frozen=True)
class ChatFrame:
    """A chat template and the texts that it puts before and after the user's request."""

    chat: Chat
    before: str
    after: str

    @property
    def tokenizer(self):
        return self.chat.tokenizer

    @property
    def thinks(self) -> bool:
        """Whether the template opens a reasoning block, which the response continues."""
        return begins_thinking(self.after)

    @cached_property
    def digest(self) -> str:
        """A hash of the tokenizer, the chat template and what the template is given."""
        talk, tokenizer = self.chat, self.tokenizer
        parts = [
            type(tokenizer).__name__,
            tokenizer.backend_tokenizer.to_str(),
            talk.template,
            talk.variables,
            talk.system,
        ]
        return hashlib.sha256(json.dumps([*parts, self.before, self.after]).encode()).hexdigest()

    def encode(self, texts: Sequence[str]):
        """(ids, character offsets) of each full chat text. The tokenizer adds no special tokens: the template has them."""
        found = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [(one.ids, one.offsets) for one in found]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of full chat texts, in half the time of `encode`."""
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in found]

    @property
    def _backend(self):
        """The tokenizer that does the work, without the truncation and padding that its file may ask for: a call of transformers'
        tokenizer takes them off."""
        self.tokenizer("", add_special_tokens=False)
        return self.tokenizer.backend_tokenizer

    def normal_form(self, instruction: Instruction) -> Instruction:
        """The instruction with its texts as the tokenizer normalises them (Unicode NFC or lower case, for example)."""
        steps = _text_normalizers(self.tokenizer.backend_tokenizer.normalizer)
        if not steps:
            return instruction
        constraints = tuple(replace(c, text=_normal(steps, c.text)) for c in instruction.constraints)
        return replace(instruction, task=_normal(steps, instruction.task), constraints=constraints)


def _normal(steps: Sequence[normalizers.Normalizer], text: str) -> str:
    for step in steps:
        text = step.normalize_str(text)
    return text


def _text_normalizers(normalizer) -> list:
    """The steps of a tokenizer's normalizer, except those that only mark spaces."""
    if normalizer is None or isinstance(normalizer, _SPACE_MARKERS):
        return []
    if isinstance(normalizer, normalizers.Sequence):
        return [step for part in normalizer for step in _text_normalizers(part)]
    return [normalizer]


def chat_frame(tokenizer, arguments: Mapping[str, Any] | None = None, system: str = "") -> ChatFrame:
    """The ChatFrame of a tokenizer. arguments, system: see `Chat`; the system prompt is brought into the tokenizer's normal
    form. Raises EncodeError if the tokenizer has no usable chat template."""
    system = _normal(_text_normalizers(tokenizer.backend_tokenizer.normalizer), system)
    chat = Chat(tokenizer, arguments or {}, system)
    before, found, after = chat.text(SENTINEL).partition(SENTINEL)
    if not found:
        raise EncodeError("the chat template changes the user's text: rewritten prompts cannot be cut out of it")
    if SENTINEL in after:
        raise EncodeError(
            "the chat template shows the user's text more than once: rewritten prompts cannot be cut out of it"
        )
    if system.strip() not in before + after:
        raise EncodeError("config.model.system_prompt is set, and the chat template does not show it; leave it empty")
    return ChatFrame(chat, before, after)
