"""Writes instructions once as a TFDS data set in array_record files; runs read it by directory and name.

    python -m hir_jax.data.prepare --dataset=generated --directory=data --size=2000 --heldout_size=64 --seed=0
    python -m hir_jax.data.prepare --dataset=hir16k --directory=data --path=HIR-16K.parquet

--dataset says what is prepared, and is the name of the result:

- generated: rows of `synthesis`, as the splits train and heldout.
- native, hir16k, if_rlvr: --path (the user's JSONL, or HIR-16K or IF-RLVR in any form that their `read` takes) becomes the split
  train, and --heldout_path, if given, the split heldout. --responses keeps the responses of native rows; every row must then have
  one. --template is used for HIR-16K rows that name none.
- ifeval, ifbench, muldimif: the published prompts in --path, as the split test.

Rows of HIR-16K and IF-RLVR that break their schema are left out, each named and all counted by reason; other broken rows are
errors. The result is DIRECTORY/hir_instructions/DATASET/VERSION. An existing one is never changed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags, logging

from hir_jax import config, pathflags, paths
from hir_jax.checks import registry, user
from hir_jax.data import hir16k, if_rlvr, native, readers
from hir_jax.data.generate import synthesis
from hir_jax.data.native import Pair, unanswered
from hir_jax.data.templates import REWRITABLE
from hir_jax.textfiles import RowError
from hir_jax.types import InputError

BENCHMARKS = {"ifeval": readers.read_ifeval, "ifbench": readers.read_ifbench, "muldimif": readers.read_muldimif}
_OPTIONS = {
    "generated": ("size", "heldout_size", "seed", "min_constraints", "max_constraints", "families"),
    "native": ("path", "heldout_path", "responses"),
    "hir16k": ("path", "heldout_path", "template"),
    "if_rlvr": ("path", "heldout_path"),
    **dict.fromkeys(BENCHMARKS, ("path",)),
}


class Made(NamedTuple):
    """Rows by split, the errors of rows that were left out, and the facts about the sources that TFDS stores."""

    splits: dict[str, list[Pair]]
    left_out: list[RowError]
    facts: dict[str, object]


def _generated(options: flags.FlagValues) -> Made:
    limits = {name: options[name].value for name in ("min_constraints", "max_constraints", "families")}
    sizes = {"train": options.size, "heldout": options.heldout_size}
    splits = {
        split: unanswered(synthesis.generate(options.seed, size, split=split, **limits))
        for split, size in sizes.items()
    }
    return Made(splits, [], {name: options[name].value for name in _OPTIONS["generated"]})


def _read(options: flags.FlagValues, path: str) -> tuple[list[Pair], list[RowError]]:
    if options.dataset == "native":
        return native.read_pairs(path) if options.responses else unanswered(native.read(path)), []
    if options.dataset == "hir16k":
        instructions, errors = hir16k.read(path, template=options.template)
        return unanswered(instructions), errors
    if options.dataset == "if_rlvr":
        instructions, errors = if_rlvr.read(path)
        return unanswered(instructions), errors
    return unanswered(BENCHMARKS[options.dataset](path)), []


def _from_files(options: flags.FlagValues) -> Made:
    sources = {"test" if options.dataset in BENCHMARKS else "train": options.path, "heldout": options.heldout_path}
    made = Made({}, [], {})
    for split, path in sources.items():
        if path:
            made.splits[split], errors = _read(options, path)
            made.left_out.extend(errors)
            made.facts[split] = {"path": Path(path).name, "left_out": len(errors)}
            if (copy := paths.local_copy(path)).is_file():
                made.facts[split]["sha256"] = hashlib.sha256(copy.read_bytes()).hexdigest()
    return made


def _check(options: flags.FlagValues) -> None:
    taken = _OPTIONS[options.dataset]
    for name in sorted({name for names in _OPTIONS.values() for name in names}):
        if options[name].present and name not in taken:
            flags_taken = ", ".join(f"--{one}" for one in taken)
            raise InputError(f"--{name} does not go with --dataset={options.dataset}, which takes {flags_taken}")
    if "path" in taken and not options.path:
        raise InputError(f"--dataset={options.dataset} is read from a file: give it with --path=FILE")


def main(argv: Sequence[str]) -> None:
    options = flags.FLAGS
    _check(options)
    user.load_all(options.checks)
    from hir_jax.data import tfds_builder  # slow to import, hence only after the options are checked

    logging.set_verbosity(logging.WARNING)
    tfds_builder.require_absent(options.directory, options.dataset)
    made = _generated(options) if options.dataset == "generated" else _from_files(options)
    for error in made.left_out:
        print(f"left out: {error}")
    tfds_builder.tfds.disable_progress_bar()
    folder = tfds_builder.write(options.directory, options.dataset, made.splits, made.facts)
    for reason, count in Counter(error.reason for error in made.left_out).most_common():
        print(f"left out, {reason}: {count}")
    for split, rows in made.splits.items():
        print(f"{split}: {len(rows)} rows")
    print(f"written to {folder}")


def _define_flags() -> None:
    flags.DEFINE_enum("dataset", None, list(_OPTIONS), "What to prepare.", required=True)
    pathflags.define("directory", None, "Directory of prepared data sets.", required=True, local=True)
    pathflags.define("path", "", "What to read: native JSONL or a published file.")
    pathflags.define("heldout_path", "", "The same, for held-out rows.")
    flags.DEFINE_boolean("responses", False, "Keep the responses of native rows; every row must have one.")
    flags.DEFINE_enum("template", None, REWRITABLE, "Template of HIR-16K rows that name none.")
    flags.DEFINE_integer("size", 2000, "Generated training instructions.", lower_bound=1)
    flags.DEFINE_integer("heldout_size", 64, "Generated held-out instructions.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Seed of all draws.")
    flags.DEFINE_integer("min_constraints", 3, "Fewest constraints of a generated row.", lower_bound=1)
    flags.DEFINE_integer("max_constraints", 8, "Most constraints of a generated row.", lower_bound=1)
    flags.DEFINE_list("families", ["ifeval"], f"Families of generated constraints: {', '.join(registry.families())}.")
    user.define_flag()


if __name__ == "__main__":
    _define_flags()
    config.run_program(main, __doc__)
