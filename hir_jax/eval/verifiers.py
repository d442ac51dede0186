"""Builds the verifier with its optional judge and code sandbox, from a config or from a program's flags.

A judge decides soft constraints, and the sandbox runs Python checkers that come with the data. Only this module knows all
judges: `checks` knows the endpoint, but no model of ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from hir_jax.checks.judge.soft import Judge, JudgeError, JudgeSettings, VerdictCache
from hir_jax.checks.sandbox.code import Cage
from hir_jax.checks.verifier import Decider, Verifier
from hir_jax.types import Constraint, Instruction


def judge_settings(judge: str, options: Sequence[str]) -> JudgeSettings:
    """The settings of --judge, "KIND:MODEL" or "" for no judge, and --judge_option, NAME=VALUE. JudgeError says what is wrong."""
    if not judge:
        if options:
            raise JudgeError("--judge_option is given, but no --judge")
        return JudgeSettings()
    kind, colon, model = judge.partition(":")
    if not colon or not kind:
        raise JudgeError(f"--judge={judge}: give endpoint:NAME or local:CHECKPOINT")
    kinds = {field.name: type(field.default) for field in dataclasses.fields(JudgeSettings)}
    values = {}
    for option in options:
        name, equals, value = option.partition("=")
        if name not in kinds or not equals or name in ("kind", "model"):
            known = ", ".join(sorted(set(kinds) - {"kind", "model"}))
            raise JudgeError(f"--judge_option={option}: give NAME=VALUE with one of the names {known}")
        try:
            values[name] = kinds[name](value)
        except ValueError:
            raise JudgeError(f"--judge_option={option}: the value must be a {kinds[name].__name__}") from None
    return JudgeSettings(kind=kind, model=model, **values)


def open_judge(settings: JudgeSettings) -> Judge:
    """The judge of soft constraints, which the caller closes. JudgeError if it cannot be set up."""
    if not settings.kind:
        raise JudgeError("no judge is configured: set its kind to 'endpoint' or 'local'")
    cache = VerdictCache(settings.cache)
    try:
        # Imported here because each takes seconds, and a run needs at most one of them.
        if settings.kind == "endpoint":
            from hir_jax.checks.judge.endpoint import Endpoint

            return Judge(Endpoint(settings), cache, settings.threshold)
        from hir_jax.eval.local_judge import LocalModel

        return Judge(LocalModel(settings), cache, settings.threshold)
    except BaseException:
        cache.close()
        raise


def open_verifier(
    stack: ExitStack,
    settings: JudgeSettings,
    constraints: Iterable[Constraint] | None = None,
    *,
    code_checkers: bool,
    workers: int,
    timeout_seconds: float,
) -> Verifier:
    """A verifier of these constraints (None: of any) with the judge of the settings, if any, and the sandbox if `code_checkers`.

    All are closed with `stack`. workers and timeout_seconds hold for the verifier's own checks and for the code checkers.
    InputError if something cannot be set up.
    """
    deciders: dict[str, Decider] = {}
    if settings.kind:
        deciders["judge"] = stack.enter_context(open_judge(settings))
    ids = None if constraints is None else {one.id for one in constraints}
    if code_checkers:
        deciders["code"] = Cage(max(1, workers), timeout_seconds)
    return stack.enter_context(Verifier(workers, timeout_seconds, deciders, ids))


def deciders_of(constraints) -> frozenset[str]:
    """The names of the deciders that `config.constraints` turns on: "judge", "code"."""
    wanted = (("judge", JudgeSettings(**constraints.judge).kind), ("code", constraints.code_checkers))
    return frozenset(name for name, on in wanted if on)


def open_configured(stack: ExitStack, settings, instructions: Iterable[Instruction]) -> Verifier:
    """`open_verifier` for the constraints of these instructions as `settings`, config.constraints, say."""
    how = {name: settings[name] for name in ("code_checkers", "workers", "timeout_seconds")}
    constraints = (one for instruction in instructions for one in instruction.constraints)
    return open_verifier(stack, JudgeSettings(**settings.judge), constraints, **how)
