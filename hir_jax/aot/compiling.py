"""Compiles one program and judges it: memory, collectives, and the seconds below which the chips cannot do it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from hir_jax.aot import hlo
from hir_jax.aot.chips import Chip
from hir_jax.aot.programs import Program, Work, device_bytes
from hir_jax.model.attention import for_absent_devices
from hir_jax.run.files import write_atomically

_ALL = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", re.IGNORECASE)
_TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Bound(NamedTuple):
    """The least seconds, if computing, reading memory and communication all overlap and run at the published peaks."""

    computing: float
    reading: float
    communicating: float

    @property
    def seconds(self) -> float:
        return max(self)

    @property
    def limit(self) -> str:
        """The one of the three that takes longest."""
        return self._fields[self.index(self.seconds)]


def bound(work: Work, sent: float, chip: Chip) -> Bound:
    """The bound for one device's work; sent: bytes that it sends to others."""
    return Bound(work.computed / chip.flops_per_s, work.read / chip.hbm_bytes_per_s, sent / chip.link_bytes_per_s)


def refused_bytes(message: str, arguments: int) -> float | None:
    """Bytes that a program would need, from the compiler's message that refuses it; None where the message does not say.
    arguments: bytes of its arguments, which one kind of message leaves out."""
    for pattern, beside in ((_ALL, 0), (_TEMPORARIES, arguments)):
        if match := pattern.search(message):
            return float(match[1]) * _UNITS[match[2].upper()] + beside
    return None


def compile_program(program: Program) -> tuple[jax.stages.Compiled | str, float]:
    """(compiled, or the compiler's message where it refuses a program for its memory; seconds)."""
    start = time.perf_counter()
    try:
        with jax.set_mesh(program.mesh), for_absent_devices():
            compiled = program.function.lower(*program.arguments, **program.options).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled = str(error)
    return compiled, time.perf_counter() - start


def memory(compiled, program: Program, chip: Chip) -> dict[str, float]:
    """Bytes of HBM on a device while the program runs; `free`: bytes that the chip has left."""
    found = compiled.memory_analysis()
    arguments, aliased = found.argument_size_in_bytes, found.alias_size_in_bytes
    outputs, temporaries = found.output_size_in_bytes - aliased, found.temp_size_in_bytes
    used = arguments + outputs + temporaries + program.resident
    return {
        "arguments": arguments, "outputs": outputs, "temporaries": temporaries, "resident": program.resident,
        "code": found.generated_code_size_in_bytes, "used": used, "free": chip.hbm_bytes - used,
    }  # fmt: skip


def judge(program: Program, chip: Chip, text_file: Path | None = None) -> dict:
    """Everything that is reported of a program; its compiled text is written to `text_file`."""
    compiled, seconds = compile_program(program)
    found: dict = {"compile_seconds": round(seconds, 1)}
    if isinstance(compiled, str):
        arguments, refused = device_bytes(program.arguments), compiled.splitlines()[0]
        hbm = {"arguments": arguments, "resident": program.resident}
        if (used := refused_bytes(compiled, arguments)) is not None:
            used += program.resident
            hbm |= {"used": used, "free": chip.hbm_bytes - used}
        return found | {"fits": False, "refused": refused, "hbm": hbm}
    text, work, hbm = compiled.as_text(), program.work, memory(compiled, program, chip)
    if text_file:
        write_atomically(text_file, text)
    kinds = hlo.by_kind(hlo.collectives(text, program.mesh.size), program.loops)
    found |= {"hbm": hbm, "fits": hbm["free"] >= 0, "collectives": kinds, "loops": program.loops, "part": program.part}
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
        if not one["fits"]:
            free, helpful = one["hbm"].get("free"), "; ".join(_settings(name, config, split_heads))
            by = "an amount that the compiler does not say" if free is None else f"{-free / 1e9:.1f} GB a device"
            lines.append(f"{name} exceeds the memory by {by}; what helps: {helpful}")
    return lines


def _settings(name: str, config, split_heads: bool) -> Sequence[str]:
    rollout, learner, mesh, found = config.rollout, config.learner, config.mesh, []
    if name == "sample":
        found += [
            f"a smaller config.rollout.cache_bytes (now {rollout.cache_bytes}; 0 is no limit) or config.rollout.slots",
            f"config.rollout.tensor (now {rollout.tensor}): more devices share the sampler's weights",
        ]
        if not split_heads:
            found.append("a config.rollout.tensor that divides the key heads, so that the cache is split")
    if name in ("learn", "update", "logprobs", "logprobs_old"):
        micro, pack = learner.micro_batch_tokens, learner.pack_columns
        found.append(f"a smaller config.learner.micro_batch_tokens (now {micro}) or pack_columns ({pack})")
        if config.model.remat != "full":
            found.append("config.model.remat=full")
    found.append(f"more devices in config.mesh.fsdp (now {mesh.fsdp}) or config.mesh.tensor ({mesh.tensor})")
    if learner.kl:
        found.append("config.learner.kl=0 (no reference)")
    if config.model.param_dtype == "float32":
        found.append("config.model.param_dtype=bfloat16")
    return found
