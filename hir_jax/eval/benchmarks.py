"""The registry of benchmarks. An entry is all that a benchmark adds: programs take its name, prompts and figures from here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hir_jax.data import hir16k, if_rlvr
from hir_jax.data.readers import read_ifbench, read_ifeval, read_muldimif
from hir_jax.eval.judged import cfbench, complexbench, followbench, infobench
from hir_jax.eval.judged.base import JudgedBenchmark
from hir_jax.textfiles import RowError
from hir_jax.types import Instruction


class RuleBenchmark(NamedTuple):
    """Instructions whose constraints are checked one by one. They come from a published file or from a run's config.

    read: path of the file -> (instructions, errors of single rows); RowError if the whole file cannot be used.
    of_config: config -> instructions; None if there is a file.
    id: the name of a prompt's key in files of prompts and responses.
    loose: there is a loose verdict beside the strict one, as in IFEval.
    labels: labels of the instructions by which accuracies are broken down.
    """

    read: Callable[[str | Path], tuple[list[Instruction], list[RowError]]] | None = None
    of_config: Callable[..., list[Instruction]] | None = None
    id: str = "key"
    loose: bool = False
    labels: tuple[str, ...] = ()


class PlainText(NamedTuple):
    """A plain text, on which a model's perplexity is measured."""


def _strictly(read: Callable[[str | Path], list[Instruction]]):
    """A reader that raises for its first bad row, since a published file has none."""
    return lambda path: (read(path), [])


def _of_config(name: str) -> Callable[..., list[Instruction]]:
    def instructions(config) -> list[Instruction]:
        from hir_jax.data import dataset  # imports jax, which scoring recorded responses does without

        return getattr(dataset, name)(config)

    return instructions


BENCHMARKS: dict[str, RuleBenchmark | JudgedBenchmark | PlainText] = {
    # Published rows name no template. Any will do: a verdict depends on the words of the request, the same in each.
    "hir16k": RuleBenchmark(partial(hir16k.read, template="type1"), id="id", labels=("source",)),
    "if_rlvr": RuleBenchmark(partial(if_rlvr.read, whole=True)),
    "ifbench": RuleBenchmark(_strictly(read_ifbench), loose=True),
    "ifeval": RuleBenchmark(_strictly(read_ifeval), loose=True),
    "muldimif": RuleBenchmark(_strictly(read_muldimif), id="id", labels=("pattern", "level")),
    "cfbench": cfbench.BENCHMARK,
    "complexbench": complexbench.BENCHMARKS["zh"],
    "complexbench_en": complexbench.BENCHMARKS["en"],
    "followbench": followbench.BENCHMARKS["en"],
    "followbench_zh": followbench.BENCHMARKS["zh"],
    "infobench": infobench.BENCHMARK,
    "heldout": RuleBenchmark(of_config=_of_config("heldout")),
    "unseen": RuleBenchmark(of_config=_of_config("unseen")),
    "text": PlainText(),
}
# Those whose recorded responses are scored by rules, and those whose responses are judged
SCORED = [name for name, entry in BENCHMARKS.items() if isinstance(entry, RuleBenchmark) and entry.read]
JUDGED = [name for name, entry in BENCHMARKS.items() if isinstance(entry, JudgedBenchmark)]
