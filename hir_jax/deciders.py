"""Who decides what no rule of ours does: a judge for soft constraints, the cage for Python checkers out of the data.

The one place that knows them all, and where programs get their `checks.verifier.Verifier` from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack

from hir_jax.checks.judge.soft import Judge, JudgeError, JudgeSettings, VerdictCache
from hir_jax.checks.sandbox.code import Cage
from hir_jax.checks.verifier import Decider, Verifier


def judge_settings(judge: str, options: Sequence[str]) -> JudgeSettings:
    """Settings from "KIND:MODEL" ("" for no judge) and NAME=VALUE strings. JudgeError names what is wrong."""
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
    """A decider of soft constraints, to be closed in the end. JudgeError for what cannot be set up."""
    if not settings.kind:
        raise JudgeError("no judge is configured: set its kind to 'endpoint' or 'local'")
    cache = VerdictCache(settings.cache)
    try:
        # Loaded here because each takes seconds, and a run needs one of them at most.
        if settings.kind == "endpoint":
            from hir_jax.checks.judge.endpoint import Endpoint

            return Judge(Endpoint(settings), cache, settings.threshold)
        from hir_jax.local_judge import LocalModel

        return Judge(LocalModel(settings), cache, settings.threshold)
    except BaseException:
        cache.close()
        raise


def enabled(settings: JudgeSettings, code_checkers: bool) -> frozenset[str]:
    """Names of the deciders that `open_verifier` would open."""
    return frozenset(name for name, wanted in (("judge", settings.kind), ("code", code_checkers)) if wanted)


def open_verifier(
    stack: ExitStack, settings: JudgeSettings, *, code_checkers: bool, workers: int, timeout_seconds: float
) -> Verifier:
    """A verifier with the deciders that are wanted, all to be closed with `stack`. InputError for what cannot be set up.

    workers, timeout_seconds: of the verifier's own checks and of the code checkers.
    """
    deciders: dict[str, Decider] = {}
    if settings.kind:
        deciders["judge"] = stack.enter_context(open_judge(settings))
    if code_checkers:
        deciders["code"] = Cage(max(1, workers), timeout_seconds)
    return stack.enter_context(Verifier(workers, timeout_seconds, deciders))
