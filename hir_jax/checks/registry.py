"""The registry: one entry per constraint id holds its arguments, its text in an instruction, its check, and how it is generated.

A family is a module of check functions, each under `@register(id, text, ...)`; the package's `__init__`
imports it. A check gets the response and the parsed arguments by name, and the user's request if it has a parameter
`prompt`; it returns a bool or raises. Constraints that no rule here can decide (an LLM judge does, or code that comes with
the data) are `declare`d: they have arguments, a text and the name of their decider. A type is generated only if it is
registered with `generated=`. Nothing here guesses: an unknown id or an unusable argument is a `ConstraintError`, never a
pass and never a random default (the published scorers draw one there).
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import reprlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hir_jax.checks.arguments import COUNT, TEXT, Argument, DrawnValueError
from hir_jax.checks.generation import Generated
from hir_jax.checks.responses import loose_variants
from hir_jax.types import Constraint, InputError


class ConstraintError(InputError):
    """A constraint that cannot be checked as it is written: its arguments are missing, unknown or unusable."""


class UnknownConstraintError(ConstraintError):
    """No constraint of this id is registered."""


class DrawnArgumentError(ConstraintError):
    """An argument in whose place the published scorer draws a random value. Published prompts have such arguments."""


class ScorerStopsError(Exception):
    """Raised by a check for a text on which the published scorer stops with an exception. `check` then returns False."""


@dataclass(frozen=True)
class Entry:
    id: str
    arguments: Mapping[str, Argument]
    text: Callable[..., str]
    check: Callable[..., bool] | None  # None if `decider` decides
    together: Callable[..., str | None] | None = None  # complaint about arguments that do not fit one another
    takes_prompt: bool = False
    as_is: bool = False
    decider: str = ""
    generated: tuple[Generated, ...] = ()  # a type with several kinds has several
    needs: tuple[Callable[[], object], ...] = ()  # loaders of its data


_KINDS = {int: COUNT, "int": COUNT, str: TEXT, "str": TEXT}  # by annotation

_ENTRIES: dict[str, Entry] = {}
_registering: list[str] | None = None  # ids, inside `registering`
_PREPARATIONS: list[Callable[[], None]] = []


def register(
    id: str,
    text: Callable[..., str],
    *,
    together: Callable[..., str | None] | None = None,
    as_is: bool = False,
    generated: Generated | None = None,
    needs: tuple[Callable[[], object], ...] = (),
    **arguments: Argument,
) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    """Decorator of a check function `(response, [prompt,] *arguments)`.

    An argument that is annotated int is a COUNT and one annotated str a TEXT, unless another kind is given by its name.
    `text` (one sentence that ends in a period) and `together` (a complaint about arguments that do not fit one
    another, or None) are called with the parsed arguments by name. With `as_is` the check gets every response unchanged,
    blank ones too, and there is no loose mode (MulDimIF); without, `check` adds IFEval's rules for both. `generated` says
    how constraints of this type are generated; without it they are not. `needs` are functions that load data which are not
    part of the package, or raise an InputError that says how to get them; see `load`.
    """

    def decorate(check: Callable[..., bool]) -> Callable[..., bool]:
        other = _ENTRIES[id].check if id in _ENTRIES else check
        if other is None or other.__module__ != check.__module__:
            raise ValueError(
                f"constraint id {id!r} is already registered by {other.__module__ if other else 'declare'}"
            )
        _note(id)
        takes = {name: p.annotation for name, p in inspect.signature(check).parameters.items()}
        kinds = {
            name: arguments.get(name, _KINDS.get(takes[name])) for name in takes if name not in ("response", "prompt")
        }
        if None in kinds.values() or not set(arguments) <= set(kinds):
            raise ValueError(f"{id}: the check takes {sorted(takes)}, but the arguments are {sorted(arguments)}")
        _ENTRIES[id] = Entry(
            id, kinds, text, check, together, "prompt" in takes, as_is, "", _named(id, generated), needs
        )
        return check

    return decorate


def declare(
    id: str, text: Callable[..., str], *, decider: str, generated: Iterable[Generated] = (), **arguments: Argument
) -> None:
    """Register a constraint that the decider of this name decides (see `verifier.Verifier`), not a check in a worker.

    `generated` may name several kinds of it, each with the `texts` that belong to it.
    """
    _note(id)
    _ENTRIES[id] = Entry(id, arguments, text, check=None, decider=decider, generated=_named(id, *generated))


@contextlib.contextmanager
def registering() -> Iterator[list[str]]:
    """The list of the ids that are registered inside. One that is there already raises ValueError, though elsewhere a
    module may be imported again. After an error none of them is registered."""
    global _registering
    _registering = ids = []
    try:
        yield ids
    except BaseException:
        for id in ids:
            _ENTRIES.pop(id, None)
        raise
    finally:
        _registering = None


def _note(id: str) -> None:
    if _registering is not None:
        if id in _ENTRIES:
            raise ValueError(f"constraint id {id!r} is already registered")
        _registering.append(id)


def _named(id: str, *generated: Generated | None) -> tuple[Generated, ...]:
    return tuple(replace(one, id=id, name=one.name or id) for one in generated if one)


def generated() -> dict[str, Generated]:
    """Everything that can be generated, by name, in the order of registration."""
    return {one.name: one for entry in _ENTRIES.values() for one in entry.generated}


def families() -> tuple[str, ...]:
    """The families that constraints are generated of, in the order of registration."""
    return tuple(dict.fromkeys(one.family for one in generated().values()))


def generated_as(constraint: Constraint) -> Generated:
    """How this constraint is generated. Raises ConstraintError if its type, or a constraint of its text, is not."""
    kinds = _entry(constraint.id).generated
    found = [one for one in kinds if constraint.text in one.texts] if len(kinds) > 1 else kinds
    if not found:
        raise ConstraintError(f"{constraint.id}: {constraint.text or 'this type'!r} cannot be generated")
    return found[0]


def decider(id: str) -> str:
    """The name of the decider of a declared id; "" for an id with a check. UnknownConstraintError for no such id."""
    return _entry(id).decider


def before_checks(prepare: Callable[[], None]) -> None:
    """Has `load` call a function that prepares the checks of a family."""
    _PREPARATIONS.append(prepare)


def load(ids: Iterable[str] | None = None) -> None:
    """Prepares checks of these types (None: of all), so that no check has to load anything. InputError, with a line for each
    thing that is missing, if data that one of them needs are not installed."""
    for prepare in _PREPARATIONS:
        prepare()
    entries = _ENTRIES.values() if ids is None else [_entry(id) for id in ids]
    missing = []
    for need in dict.fromkeys(need for entry in entries for need in entry.needs):
        try:
            need()
        except InputError as error:
            missing.append(error)
    if missing:
        raise type(missing[0])("\n".join(map(str, missing)))


def ids() -> tuple[str, ...]:
    """All registered ids, sorted."""
    return tuple(sorted(_ENTRIES))


def modules() -> tuple[str, ...]:
    """Names of the modules that registered checks, which a worker process has to import."""
    return tuple(sorted({entry.check.__module__ for entry in _ENTRIES.values() if entry.check}))


def _entry(id: str) -> Entry:
    if id not in _ENTRIES:
        nearest = difflib.get_close_matches(str(id), _ENTRIES, n=1, cutoff=0.0)
        hint = f"; the nearest known one is {nearest[0]!r}" if nearest else ""
        hint += "; --checks=FILE adds types of your own"
        raise UnknownConstraintError(f"unknown constraint id {id!r}{hint}")
    return _ENTRIES[id]


def missing_decider(constraints: Iterable[Constraint], deciders: Container[str]) -> str:
    """The name of a decider that one of the constraints needs and `deciders` lacks; "" where there is none."""
    needed = (decider(constraint.id) for constraint in constraints)
    return next((name for name in needed if name and name not in deciders), "")


def parsed(constraint: Constraint) -> dict[str, Any]:
    """The arguments as the check gets them. Raises ConstraintError (UnknownConstraintError for the id) for unusable ones."""
    entry, arguments = _entry(constraint.id), constraint.arguments
    unknown = sorted(set(arguments) - set(entry.arguments))
    if unknown:
        takes = ", ".join(entry.arguments) or "none"
        raise ConstraintError(f"{entry.id}: unknown argument {unknown[0]!r} (it takes: {takes})")
    usable = {}
    for name, kind in entry.arguments.items():
        if name not in arguments:
            raise ConstraintError(f"{entry.id}: argument {name!r} is missing; it must be {kind.what}")
        try:
            usable[name] = kind.parse(arguments[name])
        except (ValueError, OverflowError) as error:
            why = f" ({error})" if str(error) else ""
            shown = reprlib.repr(arguments[name])
            kind_of_error = DrawnArgumentError if isinstance(error, DrawnValueError) else ConstraintError
            raise kind_of_error(f"{entry.id}: argument {name!r} must be {kind.what}, not {shown}{why}") from error
    complaint = entry.together(**usable) if entry.together else None
    if complaint:
        raise ConstraintError(f"{entry.id}: {complaint}")
    return usable


def validate(constraint: Constraint) -> None:
    """Raises ConstraintError (UnknownConstraintError for the id) unless `check` can decide this constraint."""
    parsed(constraint)


def validate_published(constraint: Constraint) -> None:
    """`validate` for published prompts: a DrawnArgumentError, which some of their arguments cause, is not raised.

    A verifier's verdict on such a constraint is unknown.
    """
    with contextlib.suppress(DrawnArgumentError):
        validate(constraint)


def describe(id: str, arguments: Mapping[str, Any]) -> str:
    """This project's own wording of a constraint: one sentence, ending in a period. Raises ConstraintError."""
    return _entry(id).text(**parsed(Constraint(id, arguments)))


def check(constraint: Constraint, response: str, prompt: str = "", *, loose: bool = False) -> bool:
    """Whether `response` meets the constraint. `prompt` is the user's request in full.

    As in IFEval a blank response meets no constraint and loose mode tries `loose_variants`, except for `as_is` entries. Where
    a check raises ScorerStopsError the verdict is False, and loose mode tries no later form: the published scorer stops
    there, and recorded verdicts count that as false. Raises ConstraintError for constraints that `validate` refuses, and
    whatever else the check raises.
    """
    entry = _entry(constraint.id)
    if entry.check is None:
        raise ConstraintError(f"{entry.id}: decided by the {entry.decider}, not by a check")
    arguments = parsed(constraint)
    if entry.takes_prompt:
        arguments["prompt"] = prompt
    try:
        if entry.as_is:
            return bool(entry.check(response, **arguments))
        if loose:
            return any(entry.check(variant, **arguments) for variant in loose_variants(response))
        return bool(response.strip()) and bool(entry.check(response, **arguments))
    except ScorerStopsError:
        return False
