"""Instructions prepared once and read many times: rows of a TFDS data set in array_record files.

`python -m hir_jax.data.prepare` writes them (`tfds_builder`, no TensorFlow), under
DIRECTORY/hir_instructions/NAME/VERSION. They are found again by directory, name and split:

    instructions = prepared.read("data", "generated", "train")  # the list that went in, in its order
    instructions = prepared.read("data", "hir16k", "train[:-500]")  # TFDS's slices of a split

or, not held in memory, through grain, here on each process of a run:

    source = prepared.open_split("data", "hir16k", "train")
    rows = epochs(source, seed, process=jax.process_index(), processes=jax.process_count()).map(prepared.decode)
    instruction, response = rows[step]  # by index, or
    iterator = iter(rows.to_iter_dataset())  # with get_state() and set_state()

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

from hir_jax.checks import registry
from hir_jax.types import Constraint, InputError, Instruction

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DATASET = "hir_instructions"  # TFDS's name of the data set; NAME is one of its configs
TEXTS = ("task", "template", "source")  # fields of Instruction stored as they are
JSONS = tuple(f.name for f in dataclasses.fields(Instruction) if f.name not in (*TEXTS, "constraints"))
CONSTRAINT = ("id", "arguments", "text")
_WRITE_IT = "`python -m hir_jax.data.prepare` writes them"

Row = tuple[Instruction, str]  # with its response, "" where there is none
Example = Mapping[str, Any]  # a row's features, texts as UTF-8, constraints as one list for each of their features


def _json(value: Any) -> bytes:
    plain = dict(value) if isinstance(value, Mapping) else value
    return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode()


def encode(row: Row) -> Example:
    """The example of a row. Raises InputError for what would not come back as it is: values JSON has no form for
    (tuples, NaN, keys that are not text, ...) and text that is not Unicode (lone surrogates)."""
    instruction, response = row
    try:
        example: dict[str, Any] = {name: getattr(instruction, name).encode() for name in TEXTS}
        example |= {name: _json(getattr(instruction, name)) for name in JSONS}
        example["constraints"] = {
            "id": [c.id.encode() for c in instruction.constraints],
            "arguments": [_json(c.arguments) for c in instruction.constraints],
            "text": [c.text.encode() for c in instruction.constraints],
        }
        example["response"] = response.encode()
        if decode(example) != row:
            raise ValueError("JSON changes an argument or a field (tuples become lists, keys become text)")
    except (TypeError, ValueError, RecursionError) as error:
        place = instruction.source or f"row {instruction.key!r}"
        raise InputError(f"{place}: cannot be stored: {error}") from error
    return example


def decode(example: Example) -> Row:
    """The row of an example of `open_split`."""
    fields = {name: bytes(example[name]).decode() for name in TEXTS}
    fields |= {name: json.loads(example[name]) for name in JSONS}
    ids, arguments, texts = (example["constraints"][name] for name in CONSTRAINT)
    constraints = tuple(
        Constraint(bytes(i).decode(), json.loads(a), bytes(t).decode())
        for i, a, t in zip(ids, arguments, texts, strict=True)
    )
    return Instruction(constraints=constraints, **fields), bytes(example["response"]).decode()


def _versions(folder: Path) -> list[str]:
    """Prepared versions in the folder of a name, oldest first; one that was cut off has another form."""
    names = [p.name for p in folder.iterdir() if p.is_dir() and re.fullmatch(r"\d+\.\d+\.\d+", p.name)]
    return sorted(names, key=lambda name: [int(n) for n in name.split(".")])


def _folder(directory: str | Path, name: str) -> Path:
    place = Path(directory) / DATASET
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
    """The examples of a prepared split in the order they were written, read by index; `decode` makes a row of each.

    `name` may carry a version ("generated/1.0.0"; default the newest), `split` a slice in TFDS's form ("train[:90%]").
    Raises InputError for a directory, name, version or split that is not there (naming what is) or not readable.
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


def first_line(error: Exception) -> str:
    """The part of a library's message that fits in one of ours."""
    return str(error).splitlines()[0]


def read(directory: str | Path, name: str, split: str) -> list[Instruction]:
    """The instructions of a prepared split (see `open_split` for names, slices and errors), equal to those written.
    An id that is not registered, or arguments that its check cannot use, are an InputError that names the row's source."""
    return [instruction for instruction, _ in read_pairs(directory, name, split)]


def read_pairs(directory: str | Path, name: str, split: str) -> list[Row]:
    """(instruction, response) of every row, "" where a row has none; otherwise as `read`."""
    try:
        rows = [decode(example) for example in open_split(directory, name, split)]
    except RuntimeError as error:  # array_record's, for a file that is missing, cut short or changed
        raise InputError(f"{directory}: {name!r} cannot be read: {first_line(error)}; prepare it again") from error
    for instruction, _ in rows:
        for constraint in instruction.constraints:
            try:
                registry.validate_published(constraint)
            except registry.ConstraintError as error:
                raise InputError(f"{directory}: {name!r}: {instruction.source}: {error}") from error
    return rows


def read_heldout(directory: str | Path, name: str) -> list[Instruction]:
    """The instructions of the split "heldout", none where the data set has no such split; otherwise as `read`."""
    return read(directory, name, "heldout") if "heldout" in _open(_folder(directory, name)).info.splits else []


def epochs(source: Sequence[Any], seed: int, *, process: int = 0, processes: int = 1) -> grain.MapDataset:
    """Endless stream over a source of random access: every row once an epoch, shuffled anew each epoch.

    Element i is a function of (len(source), seed, i), so an index is all that a resume needs; iterators of it resume
    exactly as well. Of several processes each gets the elements process, process + processes, ... of the one stream:
    together they see what one process sees, whatever their number.
    """
    if not 0 <= process < processes:
        raise ValueError(f"process {process} of {processes}")
    stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    return stream if processes == 1 else stream[process::processes]
