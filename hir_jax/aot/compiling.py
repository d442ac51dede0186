"""Compiling one program and judging it: memory, collectives, and the seconds below which the chips cannot do it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from hir_jax.aot import hlo
from hir_jax.aot.chips import Chip
from hir_jax.aot.programs import Program, Work, device_bytes

_ALL = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", re.IGNORECASE)
_TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Bound(NamedTuple):
    """The least seconds, should computing, reading memory and communication all overlap and run at the published peaks."""

    computing: float
    reading: float
    communicating: float

    @property
    def seconds(self) -> float:
        return max(self)

    @property
    def limit(self) -> str:
        """Which of the three it is."""
        return self._fields[self.index(self.seconds)]


def bound(work: Work, sent: float, chip: Chip) -> Bound:
    """Of one device's work; sent: bytes that it sends to others."""
    return Bound(work.computed / chip.flops_per_s, work.read / chip.hbm_bytes_per_s, sent / chip.link_bytes_per_s)


def refused_bytes(message: str, arguments: int) -> float | None:
    """Bytes that the compiler says a program takes which does not fit, with its arguments; None where it does not say."""
    for pattern, beside in ((_ALL, 0), (_TEMPORARIES, arguments)):
        if match := pattern.search(message):
            return float(match[1]) * _UNITS[match[2].upper()] + beside
    return None


def compile_program(program: Program) -> tuple[jax.stages.Compiled | str, float]:
    """(compiled, or the compiler's message where it refuses a program for its memory; seconds)."""
    start = time.perf_counter()
    try:
        with jax.set_mesh(program.mesh):
            compiled = program.function.lower(*program.arguments, **program.options).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled = str(error)
    return compiled, time.perf_counter() - start


def memory(compiled, program: Program, chip: Chip) -> dict[str, float]:
    """Bytes of HBM on a device while the program runs; `free` is what the chip has left."""
    found = compiled.memory_analysis()
    arguments, aliased = found.argument_size_in_bytes, found.alias_size_in_bytes
    outputs, temporaries = found.output_size_in_bytes - aliased, found.temp_size_in_bytes
    used = arguments + outputs + temporaries + program.resident
    return {
        "arguments": arguments, "outputs": outputs, "temporaries": temporaries, "resident": program.resident,
        "code": found.generated_code_size_in_bytes, "used": used, "free": chip.hbm_bytes - used,
    }  # fmt: skip


def judge(program: Program, chip: Chip, keep_text=None) -> dict:
    """Everything that is reported of a program; keep_text(name, text) is given the compiled text."""
    compiled, seconds = compile_program(program)
    found: dict = {"compile_seconds": round(seconds, 1)}
    if isinstance(compiled, str):
        arguments = device_bytes(program.arguments)
        refused = compiled.splitlines()[0]
        found |= {"fits": False, "refused": refused, "hbm": {"arguments": arguments, "resident": program.resident}}
        used = refused_bytes(compiled, arguments)
        if used is not None:
            used += program.resident
            found["hbm"] |= {"used": used, "free": chip.hbm_bytes - used}
        return found
    text = compiled.as_text()
    if keep_text is not None:
        keep_text(program.name, text)
    kinds = hlo.by_kind(hlo.collectives(text, program.mesh.size), program.loops)
    found["hbm"] = memory(compiled, program, chip)
    found |= {"fits": found["hbm"]["free"] >= 0, "collectives": kinds, "loops": program.loops, "part": program.part}
    work = program.work
    if work is None:
        return found
    least = bound(work, sum(kind["bytes"] for kind in kinds.values()), chip)
    return found | {
        "flops": work.flops, "read_bytes": work.read, "bound": least._asdict() | {"seconds": least.seconds},
        "limit": least.limit, "mfu_bound": work.flops / chip.flops_per_s / least.seconds,
    }  # fmt: skip


def advice(config, found: Mapping[str, Mapping], split_heads: bool) -> list[str]:
    """For functions that do not fit: by how much, and which settings would help."""
    lines = []
    for name, one in found.items():
        if one["fits"]:
            continue
        free = one["hbm"].get("free")
        by = "an amount that the compiler does not say" if free is None else f"{-free / 1e9:.1f} GB a device"
        lines.append(
            f"{name} exceeds the memory by {by}; what helps: " + "; ".join(_settings(name, config, split_heads))
        )
    return lines


def _settings(name: str, config, split_heads: bool) -> Sequence[str]:
    mesh = f"more devices in config.mesh.fsdp (now {config.mesh.fsdp}) or config.mesh.tensor ({config.mesh.tensor})"
    state = [mesh] + (["config.learner.kl=0 (no reference)"] if config.learner.kl else [])
    if config.model.param_dtype == "float32":
        state.append("config.model.param_dtype=bfloat16")
    if name == "sample":
        cache = f"a smaller config.rollout.cache_bytes (now {config.rollout.cache_bytes}; 0 is no limit) or config.rollout.slots"
        layout = f"config.rollout.tensor (now {config.rollout.tensor}): more devices share the sampler's weights"
        heads = (
            [] if split_heads else ["a config.rollout.tensor that divides the key heads, so that the cache is split"]
        )
        return [cache, layout, *heads, *state]
    if name in ("learn", "update", "score", "score_old"):
        own = [
            f"a smaller config.learner.micro_batch_tokens (now {config.learner.micro_batch_tokens}) or pack_columns "
            f"({config.learner.pack_columns})"
        ]
        if config.model.remat != "full":
            own.append("config.model.remat=full")
        return [*own, *state]
    return state
