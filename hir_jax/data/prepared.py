"""Reads prepared instructions: a TFDS data set in array_record files, written once by `hir_jax.data.prepare`.

The files are in DIRECTORY/hir_instructions/NAME/VERSION and are named by directory, name and split:

    instructions = prepared.read("data", "generated", "train")  # the list that was written, in its order
    instructions = prepared.read("data", "hir16k", "train[:-500]")  # TFDS's slices of a split

or streamed through grain instead of held in memory, here on each process of a run:

    source = prepared.open_split("data", "hir16k", "train")
    pairs = epochs(source, seed, process=jax.process_index(), processes=jax.process_count()).map(prepared.decode)
    instruction, response = pairs[step]  # by index, or
    iterator = iter(pairs.to_iter_dataset())  # with get_state() and set_state()

A row's features: the texts `task`, `template`, `source` and `response` ("": none); `key` and every further field of
Instruction as JSON texts, so that types survive; `constraints`, a sequence of `id`, `arguments` (JSON) and `text`.
TFDS is imported only when a function that needs it is called.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grain

from hir_jax import paths
from hir_jax.checks import registry
from hir_jax.data.native import Pair
from hir_jax.textfiles import first_line
from hir_jax.types import Constraint, InputError, Instruction

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DATASET = "hir_instructions"  # TFDS's name of the data set; NAME is one of its configs
TEXTS = ("task", "template", "source")  # fields of Instruction stored as they are
JSONS = tuple(f.name for f in dataclasses.fields(Instruction) if f.name not in (*TEXTS, "constraints"))
CONSTRAINT = ("id", "arguments", "text")
_WRITE_IT = "`python -m hir_jax.data.prepare` writes them"

Example = Mapping[str, Any]  # a row's features: texts as UTF-8, constraints as one list for each of their features


def _json(value: Any) -> bytes:
    plain = dict(value) if isinstance(value, Mapping) else value
    return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode()


def encode(pair: Pair) -> Example:
    """The example of a pair. Raises InputError if it could not be read back unchanged: JSON has no form for some values
    (tuples, NaN, keys that are not text, ...), UTF-8 none for lone surrogates."""
    instruction, response = pair
    try:
        example: dict[str, Any] = {name: getattr(instruction, name).encode() for name in TEXTS}
        example |= {name: _json(getattr(instruction, name)) for name in JSONS}
        example["constraints"] = {
            "id": [c.id.encode() for c in instruction.constraints],
            "arguments": [_json(c.arguments) for c in instruction.constraints],
            "text": [c.text.encode() for c in instruction.constraints],
        }
        example["response"] = response.encode()
        if decode(example) != pair:
            raise ValueError("JSON changes an argument or a field (tuples become lists, keys become text)")
    except (TypeError, ValueError, RecursionError) as error:
        place = instruction.source or f"row {instruction.key!r}"
        raise InputError(f"{place}: cannot be stored: {error}") from error
    return example


def decode(example: Example) -> Pair:
    """The pair of an example of `open_split`."""
    fields = {name: bytes(example[name]).decode() for name in TEXTS}
    fields |= {name: json.loads(example[name]) for name in JSONS}
    ids, arguments, texts = (example["constraints"][name] for name in CONSTRAINT)
    constraints = tuple(
        Constraint(bytes(i).decode(), json.loads(a), bytes(t).decode())
        for i, a, t in zip(ids, arguments, texts, strict=True)
    )
    return Instruction(constraints=constraints, **fields), bytes(example["response"]).decode()


def _versions(folder: Path) -> list[str]:
    """Prepared versions in the folder of a name, oldest first. Folders of unfinished writes have other names."""
    names = [p.name for p in folder.iterdir() if p.is_dir() and re.fullmatch(r"\d+\.\d+\.\d+", p.name)]
    return sorted(names, key=lambda name: [int(n) for n in name.split(".")])


def _folder(directory: str | Path, name: str) -> Path:
    place = paths.local_copy(directory) / DATASET
    if not place.is_dir():
        raise InputError(f"{directory}: no directory of prepared instructions; {_WRITE_IT}")
    there = {folder.name: _versions(folder) for folder in sorted(place.iterdir()) if folder.is_dir()}
    whole = [f"{one}/{version}" for one, versions in there.items() for version in versions]
    name, _, version = name.partition("/")
    if not there.get(name) or (version and version not in there[name]):
        wanted = f"{name}/{version}" if version else name
        raise InputError(f"{directory}: holds no {wanted!r}; there is {', '.join(whole) or 'none'}. {_WRITE_IT}")
    return place / name / (version or there[name][-1])


def _open(folder: Path) -> tfds.core.DatasetBuilder:
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    try:
        return tfds.builder_from_directory(folder)
    except (OSError, ValueError, json_format.Error) as error:
        raise InputError(f"{folder}: cannot be read: {first_line(error)}; remove it and prepare it again") from error


def open_split(directory: str | Path, name: str, split: str) -> Sequence[Example]:
    """The examples of a prepared split, by index, in the order in which they were written; `decode` makes a pair of each.

    `name` may give a version ("generated/1.0.0"; default: the newest), `split` a slice in TFDS's form ("train[:90%]").
    Raises InputError for a directory, name, version or split that cannot be read, or does not exist; it lists those that do.
    """
    folder = _folder(directory, name)
    builder = _open(folder)
    missing = {*TEXTS, *JSONS, "constraints", "response"} - set(builder.info.features)
    if missing:
        raise InputError(
            f"{folder}: written by another version of this program, it has no {', '.join(sorted(missing))}"
        )
    try:
        return builder.as_data_source(split)
    except ValueError as error:
        there = ", ".join(f"{name} ({info.num_examples} rows)" for name, info in builder.info.splits.items())
        raise InputError(f"{folder}: no split {split!r}: {first_line(error)} There is {there}") from error


def read(directory: str | Path, name: str, split: str) -> list[Instruction]:
    """The instructions of a prepared split, equal to those written; see `read_pairs`."""
    return [instruction for instruction, _ in read_pairs(directory, name, split)]


def read_pairs(directory: str | Path, name: str, split: str) -> list[Pair]:
    """(instruction, response) of every row; see `open_split` for names, slices and errors. Also raises InputError, naming the
    row's source, for a constraint id that is not registered and for arguments that its check cannot use."""
    try:
        pairs = [decode(example) for example in open_split(directory, name, split)]
    except RuntimeError as error:  # array_record's, for a file that is missing, cut short or changed
        raise InputError(f"{directory}: {name!r} cannot be read: {first_line(error)}; prepare it again") from error
    for instruction, _ in pairs:
        for constraint in instruction.constraints:
            try:
                registry.validate_published(constraint)
            except registry.ConstraintError as error:
                raise InputError(f"{directory}: {name!r}: {instruction.source}: {error}") from error
    return pairs


def read_heldout(directory: str | Path, name: str) -> list[Instruction]:
    """The instructions of the split "heldout", none if the data set has no such split; otherwise as `read`."""
    return read(directory, name, "heldout") if "heldout" in _open(_folder(directory, name)).info.splits else []


def epochs(source: Sequence[Any], seed: int, *, process: int = 0, processes: int = 1) -> grain.MapDataset:
    """Endless stream over a random-access source: every row once an epoch, in a new order each epoch.

    Element i is a function of (len(source), seed, i), so a resume needs nothing but an index; the stream's iterators resume
    exactly as well. With several processes, each gets the elements process, process + processes, ... of the same stream, so
    that together they see what one process would see.
    """
    if not 0 <= process < processes:
        raise ValueError(f"process {process} of {processes}")
    stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    return stream if processes == 1 else stream[process::processes]
