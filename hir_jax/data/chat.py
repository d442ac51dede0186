"""Applies a tokenizer's chat template with a config's arguments: gives the text of a user turn and the token that ends a turn.

The template sees a fixed date instead of today's, so that prompts, and with them a resumed run, do not change from day to day.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property
from typing import Any

from hir_jax.types import InputError

DATE = "26 Jul 2024"  # the default of the templates of Llama 3.1 and 3.2
_DATE_FORMAT = "%d %b %Y"
SENTINEL = "\ue000content\ue001"  # stands for a turn's text where only the template's own text around it is wanted


class EncodeError(InputError):
    """An instruction or a chat template cannot be used with this tokenizer. The message says which and why; `reason` is a short
    form of it, by which rows are counted."""

    def __init__(self, message: str, reason: str = "chat template"):
        super().__init__(message)
        self.reason = reason


@cache
def _fixed_clock(date_string: str) -> str:
    """Jinja source of a macro that replaces the function `strftime_now` and gives midnight of `date_string`."""
    try:
        date = datetime.strptime(date_string, _DATE_FORMAT)
    except ValueError:
        message = f"date_string is {date_string!r}, and this template needs one such as {DATE!r}"
        return f"{{% macro strftime_now(format) %}}{{{{ raise_exception({json.dumps(message)}) }}}}{{% endmacro %}}\n"
    letters = [f"-{c}" for c in "dmHIMSyj"] + list("aAbBcdfHIjmMpSUwWxXyYFDTRehGuV")
    known = {f"%{c}": date.strftime(f"%{c}") for c in letters} | {"%Z": "", "%z": "", "%%": "%"}
    replaced = "".join(f".replace({json.dumps(k)}, {json.dumps(v)})" for k, v in known.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template, the template's arguments, and a system prompt ("": the template's own).

    arguments: name -> JSON value; `date_string` defaults to `DATE`.
    """

    tokenizer: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""

    @property
    def _name(self) -> str:
        return str(getattr(self.tokenizer, "name_or_path", "")) or "the tokenizer"

    @cached_property
    def variables(self) -> dict[str, Any]:
        """The arguments of the template other than the messages. EncodeError for a name that `apply_chat_template` reserves."""
        taken = {*inspect.signature(self.tokenizer.apply_chat_template).parameters, "messages"} - {"kwargs"}
        if wrong := sorted(taken & self.arguments.keys()):
            raise EncodeError(
                f"config.model.chat_template_args.{wrong[0]}: a chat template cannot be given this; leave it out"
            )
        return {"date_string": DATE} | dict(self.arguments)

    @property
    def template(self) -> str:
        """The chat template with the fixed date. EncodeError if the tokenizer has none."""
        found = getattr(self.tokenizer, "chat_template", None)
        if isinstance(found, Mapping):
            if "default" not in found:
                names = ", ".join(map(repr, sorted(found)))
                raise EncodeError(f"{self._name}: has the chat templates {names} and none named 'default'; name one so")
            found = found["default"]
        if not found:
            raise EncodeError("the tokenizer has no chat template: use the instruction-tuned checkpoint, or set one")
        return _fixed_clock(str(self.variables["date_string"])) + found if "strftime_now" in found else found

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        system = [{"role": "system", "content": self.system}] if self.system else []
        how = {"tokenize": False, "add_generation_prompt": add_generation_prompt, "chat_template": self.template}
        variables = self.variables
        try:
            return self.tokenizer.apply_chat_template(system + messages, **how, **variables)
        except Exception as error:  # a template is a program and can raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise EncodeError(f"{self._name}: its chat template cannot be used ({reason}); correct it") from None

    def text(self, content: str) -> str:
        """The text of one user turn, up to where the assistant's reply begins. Raises EncodeError."""
        return self._render([{"role": "user", "content": content}], add_generation_prompt=True)

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token that ends the assistant's turn: the first added token after it in a rendered conversation, or the tokenizer's
        `eos_token` if the template shows no such token (or no such turn), or None if there is neither."""
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": SENTINEL}]
        try:
            behind = self._render(turns, add_generation_prompt=False).partition(SENTINEL)[2]
        except EncodeError:
            behind = ""
        added = self.tokenizer.added_tokens_decoder
        ids = self.tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []
        return next((i for i in ids if i in added), self.tokenizer.eos_token_id)
