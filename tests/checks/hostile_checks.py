"""Constraints that misbehave, for the verifier's tests; its workers import this module by name."""

import collections
import contextlib
import itertools
import os
import sys
import time

from hir_jax.checks.arguments import COUNT
from hir_jax.checks.registry import register


@register("hostile:raises", lambda: "Raise.")
def raises(response: str) -> bool:
    raise LookupError(f"no verdict on {response}")


@register("hostile:exits", lambda: "Exit.")
def exits(response: str) -> bool:
    sys.exit(3)


@register("hostile:dies", lambda: "Die.")
def dies(response: str) -> bool:
    os._exit(7)


@register("hostile:sleeps", lambda seconds: f"Sleep {seconds} s.", seconds=COUNT)
def sleeps(response: str, seconds: int) -> bool:
    with contextlib.suppress(Exception):  # a check that guards itself must still be stopped
        time.sleep(seconds)
    return True


@register("hostile:hangs_in_c", lambda: "Hang where no signal is looked at.")
def hangs_in_c(response: str) -> bool:
    collections.deque(itertools.repeat(0), maxlen=0)
    return True


@register("hostile:jax_is_imported", lambda: "Import jax.")
def jax_is_imported(response: str) -> bool:
    return "jax" in sys.modules


@register("hostile:repeats_request", lambda: "Repeat the request.")
def repeats_request(response: str, prompt: str) -> bool:
    return prompt in response
