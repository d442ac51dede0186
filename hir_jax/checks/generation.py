"""How constraints of a type are generated: their arguments for a base task, their wordings, their demands."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from hir_jax.checks.compatibility import Demands

Arguments = Mapping[str, Any]


class Task(Protocol):
    """A request without constraints (see `data.generate.tasks`)."""

    task: str
    genre: str
    keywords: tuple[str, ...]  # single lower-case words that suit the task and are not in it


def no_arguments(task: Task, rng: random.Random) -> Arguments:
    """The draw of a type that takes no arguments."""
    return {}


def filled(wording: str, arguments: Arguments, rng: random.Random) -> str:
    """The wording as a `str.format` template over the arguments."""
    return wording.format_map(arguments)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """How constraints of one type (or of one kind of it, see `texts`) are generated.

    No wording begins or ends with white space, contains a newline, or refers to its place among the others ("also",
    "finally"): a rewritten instruction may keep any subset of them.
    """

    family: str  # the name by which it is asked for, as in --families=ifeval,training
    demands: Callable[..., Demands]  # of the arguments, by name
    draw: Callable[[Task, random.Random], Arguments | None] = no_arguments  # None: the task does not suit it
    wordings: tuple[str, ...] = ()  # one is drawn, evenly; "" stands for the registered text, as does an empty tuple
    fill: Callable[[str, Arguments, random.Random], str] = filled  # puts the arguments into a wording
    # Whether the wording is drawn after the set is complete, or together with the arguments. Both are fine, but a change
    # would give other rows for the same seed.
    worded_last: bool = False
    repeatable: bool = False  # may occur twice in an instruction, with different bounds
    genre: str = ""  # the only genre of tasks that it suits; "": any
    name: str = ""  # under which it is drawn; "": its id
    id: str = ""  # set by the registry
    texts: frozenset[str] = frozenset()  # of a type with several kinds: the texts that belong to this one
