"""Writes generated instructions as rows of the native format (see `synthesis`).

Families of constraints, drawn evenly by type:

- ifeval: the 25 IFEval types, the only ones unless others are asked for;
- muldimif: MulDimIF's 12 families, in wordings of our own;
- training: types of our own in the manner of IFBench, none of which is among its 58;
- soft: requirements that a judge decides, so that a run needs one (rows with them are left out otherwise);
- ifbench: types of IFBench itself. They are off unless named, because IFBench tests how a model copes with types that it
  has not been trained on, which its score no longer shows after training on them. The published HIR-16K data hold some
  of them; mention it when you report IFBench;
- those of types in the files that --checks names.

    python -m hir_jax.data.generate --count=2000 --seed=0 --split=train --output=train.jsonl
    python -m hir_jax.data.generate --families=ifeval,muldimif,training --max_constraints=10 --output=wide.jsonl
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from hir_jax import pathflags
from hir_jax.checks import registry, user
from hir_jax.data import native
from hir_jax.data.generate.synthesis import generate
from hir_jax.data.generate.tasks import SPLITS
from hir_jax.types import InputError


def _define_flags() -> None:
    families = ", ".join(registry.families())
    flags.DEFINE_integer("count", 1000, "Instructions to write.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of all draws.")
    flags.DEFINE_enum("split", "train", SPLITS, "Base tasks to draw from.")
    flags.DEFINE_integer("min_constraints", 3, "Fewest constraints of a row.", lower_bound=1)
    flags.DEFINE_integer("max_constraints", 8, "Most constraints of a row.", lower_bound=1)
    flags.DEFINE_list("families", ["ifeval"], f"Families of constraints, separated by commas: {families}.")
    pathflags.define("output", None, "Native JSONL file to write.", required=True)
    user.define_flag()


def main(argv: Sequence[str]) -> None:
    del argv
    options = flags.FLAGS
    user.load_all(options.checks)
    limits = {name: options[name].value for name in ("min_constraints", "max_constraints", "split", "families")}
    rows = generate(options.seed, options.count, **limits)
    try:
        native.write(options.output, rows)
    except OSError as error:
        raise InputError(f"--output={options.output} cannot be written: {error.strerror}") from None
    print(f"{len(rows)} instructions written to {options.output}")


if __name__ == "__main__":
    _define_flags()
    pathflags.run(main, __doc__, prefix="hir_jax.data.generate: ")
