"""Reads the text of a compiled program: its collectives by kind, with the loops around them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
_SHAPE = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?)\s([a-z][\w-]*)\((.*)$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|called_computations|branch_computations)=\{?((?:%?[\w.-]+(?:, )?)+)"
)
_TRIPS = re.compile(r'"known_trip_count":\s*\{"n":\s*"(\d+)"\}')
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]|mesh\[([^\]]*)\] \{([^}]*)\})")
_AXIS = re.compile(r"'([^']+)'=(\d+)")


class Shape(NamedTuple):
    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> float:
        return _BYTES[self.dtype] * math.prod(self.sizes)


def shapes(text: str) -> list[Shape]:
    """The array shapes in a type such as "(bf16[8,128]{1,0}, f32[])"."""
    return [Shape(dtype, tuple(int(s) for s in sizes.split(",") if s)) for dtype, sizes in _SHAPE.findall(text)]


class Collective(NamedTuple):
    """One collective of the program. `loops`: trip counts of the loops around it, outermost first, None where the text does
    not say; `bytes`: the least that one device sends in one execution, by a ring."""

    kind: str
    result: Shape
    devices: int
    bytes: float
    loops: tuple[int | None, ...]


class _Operation(NamedTuple):
    name: str
    result: str  # its type
    kind: str
    rest: str  # operands and attributes


def _computations(text: str) -> tuple[dict[str, list[_Operation]], str]:
    """Operations by computation, and the name of the entry."""
    found: dict[str, list[_Operation]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line == "}":  # longer lines that begin with "}" belong to attributes of several lines
            current = None
        elif current is not None and (match := _OPERATION.match(line)):
            current.append(_Operation(*match.groups()))
    return found, entry


def _group_size(rest: str, default: int) -> int:
    """Devices of a group: {{0,1},{2,3}} lists them, [2,4]<=[8] is 2 groups of 4, mesh['a'=2,'b'=4] {'b'} those along an axis."""
    match = _GROUPS.search(rest)
    if not match:
        return default
    listed, size, axes, along = match.groups()
    if listed:
        return len(listed.split(","))
    if size:
        return int(size)
    return math.prod(int(n) for name, n in _AXIS.findall(axes) if f"'{name}'" in along)


def _sent(kind: str, result: float, devices: int) -> float:
    """Bytes that each of `devices` sends in a ring; result: bytes of the result on a device."""
    share = (devices - 1) / devices if devices > 1 else 0.0
    factor = {"all-reduce": 2 * share, "reduce-scatter": share * devices, "collective-permute": 1.0}
    return result * factor.get(kind, share)


def _trips(operation: _Operation, computations: Mapping[str, list[_Operation]]) -> int | None:
    """How often a while loop runs. XLA says so for CPUs and GPUs; for TPUs the condition of a scan compares its counter, from 0,
    with a constant."""
    if known := _TRIPS.search(operation.rest):
        return int(known[1])
    condition = re.search(r"\bcondition=%?([\w.-]+)", operation.rest)
    found = {o.name: o for o in computations.get(condition[1] if condition else "", ())}
    for compare in (o for o in found.values() if o.kind == "compare" and "direction=LT" in o.rest):
        names = re.findall(r"%([\w.-]+)", compare.rest.split(")")[0])
        right = found.get(names[-1]) if names else None
        if right is not None and right.kind == "constant":
            return int(right.rest.split(")")[0])
    return None


def _called(operation: _Operation, computations) -> Iterator[tuple[str, int | bool | None]]:
    """(computation, trip count of the loop whose body it is; False where it is no loop's body)."""
    if operation.kind == "while":
        if body := re.search(r"\bbody=%?([\w.-]+)", operation.rest):
            yield body[1], _trips(operation, computations)
        return
    for names in _CALLED.findall(operation.rest):
        for name in names.split(", "):
            yield name.lstrip("%"), False


def collectives(text: str, devices: int) -> list[Collective]:
    """Every collective in the text of a module that was compiled for `devices` devices."""
    computations, entry = _computations(text)
    found: list[Collective] = []

    def visit(name: str, loops: tuple[int | None, ...]) -> None:
        for operation in computations.get(name, ()):
            kind = operation.kind.removesuffix("-start")
            if kind in KINDS and not operation.kind.endswith("-done"):
                found.append(_collective(kind, operation, devices, loops))
                continue
            for called, trips in _called(operation, computations):
                visit(called, loops if trips is False else (*loops, trips))

    visit(entry, ())
    return found


def _collective(kind: str, operation: _Operation, devices: int, loops) -> Collective:
    parts = shapes(operation.result)
    if operation.kind.endswith("-start") and len(parts) > 1:
        parts = parts[len(parts) // 2 :] if kind != "collective-permute" else parts[1:2]  # (operands, results, ...)
    size = sum(p.bytes for p in parts)
    group = _group_size(operation.rest, devices)
    largest = max(parts, key=lambda p: p.bytes, default=Shape("pred", ()))
    return Collective(kind, largest, group, _sent(kind, size, group), loops)


def by_kind(found: Sequence[Collective], unknown: Sequence[int]) -> Mapping[str, dict[str, float]]:
    """{kind: {"count": executions, "bytes": that a device sends in all of them}}. unknown: trip counts of the loops for which the
    text gives none, outermost first."""
    totals: dict[str, dict[str, float]] = {}
    for one in found:
        given = iter(unknown)
        times = math.prod(next(given, 1) if trips is None else trips for trips in one.loops)
        entry = totals.setdefault(one.kind, {"count": 0, "bytes": 0.0})
        entry["count"] += times
        entry["bytes"] += times * one.bytes
    return totals
