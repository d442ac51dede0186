"""The figures of bench runs as a Markdown table: `python -m hir_jax.bench.table FILES` (JSON files that the bench wrote)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hir_jax.textfiles import RowError, read_json
from hir_jax.types import InputError

HEADER = ("what", "seconds, median (range)", "tokens/s", "of the ceiling", "against", "its seconds", "times as fast")


class Line(NamedTuple):
    """One measured thing, as text."""

    what: str
    seconds: str
    tokens_per_s: str = ""
    ceiling: str = ""
    against: str = ""
    peer_seconds: str = ""
    times: str = ""


def number(value: float) -> str:
    """Three significant digits, thousands separated."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def span(values: Mapping[str, float]) -> str:
    return f"{number(values['median'])} ({number(values['min'])} to {number(values['max'])})"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the head first."""
    head, *rest = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *rest])


# ---- the lines of each phase


def _line(what: str, part: Mapping, ceiling: str = "", against: str = "") -> Line:
    """`against` is shown where the figures have a peer."""
    peer = (against, span(part["peer_seconds"]), span(part["times_peer"])) if "times_peer" in part else ()
    return Line(what, span(part["seconds"]), number(part["tokens_per_s"]), ceiling, *peer)


def _columns(part: Mapping) -> str:
    found = f", padding {part['padding']:.0%}" if "padding" in part else ""
    return found + (f", {part['shared']:.0%} of the columns shared" if part.get("shared") else "")


def _rollout(part: Mapping, found: Mapping) -> Iterator[Line]:
    what = f"rollout, {part['rows']} x ({part['prompt_tokens']:.0f} + {part['new_tokens']})"
    ceiling = f"{part['fraction_of_floor']:.0%} (floor {number(part['floor_seconds'])} s)"
    yield _line(what, part, ceiling, "transformers' generate")


def _learner(part: Mapping, found: Mapping) -> Iterator[Line]:
    def line(what: str, one: Mapping) -> Line:
        return _line(what, one, f"{one['fraction_of_matmul']:.0%} of {found['dtype']} matmul", "torch")

    for name in ("even", "packed"):
        one, words = part[name], "no padding"
        if name == "packed":
            computed = f", {one['padding_computed']:.0%} computed" if "padding_computed" in one else ""
            words = f"padding {one['padding_given']:.0%} as given{computed}"
        yield line(f"learner, {one['rows']} x {one['columns']}, {words}", one)
    if "products" in part:
        one = part["products"]
        yield line(f"products of {one['rows']} tokens with the layers' matrices, with gradients", one)


def _long_tail(part: Mapping, found: Mapping) -> Iterator[Line]:
    for name, words in (("synthetic", "log-normal lengths"), ("real", "the model's own lengths")):
        one, lengths = part[name], part[name]["response_tokens"]
        what = f"{one['rows']} rows in {one['slots']} slots, {words}, "
        what += f"median {lengths['median']:.0f}, longest {lengths['longest']}"
        use = f"slots {one['utilisation']:.0%} busy, plain {one['peer_utilisation']:.0%}"
        yield _line(what, one, use, "the plain loop")


def _step(part: Mapping, found: Mapping) -> Iterator[Line]:
    what = f"a step of {part['sequences']} sequences, {number(part['steps_per_s'])} steps/s" + _columns(part)
    what += f"; {part['steps']} steps, {part['steps_compiling']} that compiled left out"
    overhead = f"overhead {part['overhead_share']:.1%}"
    yield Line(what, span(part["seconds"]), number(part["sampled_tokens_per_s"]), overhead)


def _start(part: Mapping, found: Mapping) -> Iterator[Line]:
    first, second = (
        (f"the step begins after {number(one['seconds_to_step'])} s; " if "seconds_to_step" in one else "")
        + f"{one['compilations']} compilations of {number(one['compile_seconds'])} s, {one['from_cache']} read from the cache"
        for one in (part["first"], part["second"])
    )
    before, now, times = map(number, (part["first"]["seconds"], part["second"]["seconds"], 1 / part["seconds_ratio"]))
    yield Line(f"first start, to the end of a step: {first}", before)
    yield Line(f"second start: {second}", now, against="the first", peer_seconds=before, times=times)


def _grpo(part: Mapping, found: Mapping) -> Iterator[Line]:
    against, shape = "", f"{part['prompt_tokens']:.0f} + {part['new_tokens']}"
    if "peer_fastest" in part:
        sampled = part["peer_variants"][part["peer_fastest"]]["sampled_sequences"]
        against = f"a TRL GRPO step, {sampled} sampled, {part['peer_fastest']}"
    for method in ("ilr", "hir"):
        one = part[method]
        what = f"{method} step, {one['sampled_sequences']} sampled, {one['trained_sequences']} trained x ({shape})"
        yield _line(what + _columns(one), one, "", against)


def _encode(part: Mapping, found: Mapping) -> Iterator[Line]:
    yield Line(f"a row of {part['constraints']} numbered constraints of {part['words']} words", span(part["seconds"]))


def _verify(part: Mapping, found: Mapping) -> Iterator[Line]:
    what = f"{part['rows']} x {part['constraints']} checks of {part['response_tokens']:.0f} tokens"
    host, pool, device, same = (
        number(part[f"{name}checks_per_s"]) for name in ("", "pool_", "device_", "device_host_")
    )
    yield Line(f"{what}, one core: {host} a second", span(part["seconds"]))
    yield Line(f"{what}, {part['workers']} workers: {pool} a second", span(part["pool_seconds"]))
    what = f"{part['device_checks']:.0f} checks that the device decides: {device} a second there, {same} on one core"
    yield Line(what, span(part["device_seconds"]))


def _scaling(part: Mapping, found: Mapping) -> Iterator[Line]:
    for axis in ("batch", "response", "model", "devices"):
        cases, key = part[axis]["cases"], "parameters" if axis == "model" else axis
        values = ", ".join(f"{case[key]:,}" for case in cases)
        for phase in ("rollout", "learner"):
            seconds = ", ".join(number(case[phase]["seconds"]["median"]) for case in cases)
            tokens = ", ".join(number(case[phase]["tokens_per_s"]) for case in cases)
            power = f"seconds ~ {key}^{part[axis]['growth'][phase]:.2f}" if "growth" in part[axis] else "of one machine"
            yield Line(f"{phase}, {key} {values}", seconds, tokens, power)


PHASES: dict[str, Callable[[Mapping, Mapping], Iterator[Line]]] = {
    "rollout": _rollout, "learner": _learner, "long_tail": _long_tail, "step": _step, "start": _start,
    "grpo": _grpo, "encode": _encode, "verify": _verify, "scaling": _scaling,
}  # fmt: skip

# ---- a whole report


def lines(found: Mapping) -> list[Line]:
    """Those of all phases in a report."""
    return [line for name, make in PHASES.items() if name in found for line in make(found[name], found)]


def caption(found: Mapping) -> str:
    """Where, when and with which versions it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if name != "jaxlib")
    peaks = ", ".join(f"{number(rate / 1e9)} GFLOP/s {dtype}" for dtype, rate in found["matmul_flops_per_s"].items())
    before, after = found["load_average"]
    cores = ", ".join([f"{found['cpus']} cores", *found.get("instruction_sets", [])])
    return (
        f"{found['config_file']} on {found['device']} ({cores}, {found['devices']} devices), {found['date'][:10]}, "
        f"{found['dtype']}, {versions}; measured in the same run: matmul {peaks}, memory "
        f"{number(found['read_bytes_per_s'] / 1e9)} GB/s; memory of the process up to {found['peak_memory_gb']:.1f} GB; "
        f"load average {before:.1f}, then {after:.1f}; {found['sizes']['rounds']} rounds"
    )


def markdown(found: Mapping) -> str:
    """The caption and a table without its empty columns."""
    rows = [HEADER, *lines(found)]
    used = [c for c in range(len(HEADER)) if c == 0 or any(row[c] for row in rows[1:])]
    return f"{caption(found)}\n\n{markdown_table([[row[c] for c in used] for row in rows])}\n"


def of_file(path: Path) -> str:
    """`markdown` of one report. InputError for another file, and for a report of an older bench, with what it lacks."""
    wanted = "give files that --output of hir_jax.bench wrote"
    try:
        found = read_json(path)
    except RowError as error:
        raise InputError(f"{path}: not valid JSON ({error.__cause__ or error}); {wanted}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: not a report of the bench; {wanted}")
    try:
        return markdown(found)
    except KeyError as error:
        raise InputError(
            f"{path}: lacks {error}, which this version of the bench writes; measure again with --output={path}"
        ) from error


def main(paths: Sequence[str]) -> None:
    if not paths:
        raise InputError("give one or more JSON files that `python -m hir_jax.bench --output=FILE` wrote")
    refused = []
    for path in paths:
        try:
            print(of_file(Path(path)))
        except InputError as error:
            refused.append(str(error))
    if refused:
        raise InputError("\n".join(refused))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
