"""Loads the tokenizer of a Hugging Face directory and checks that it fits the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hir_jax.model.files.hf_config import read_json
from hir_jax.model.files.weights import CheckpointError, refuse_lfs_pointer
from hir_jax.textfiles import first_line

log = logging.getLogger(__name__)

_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json")
_OTHERS = ("merges.txt", "tokenizer.model", "chat_template.jinja")


def read_tokenizer(directory: Path):
    """The tokenizer of a directory with its chat template, by transformers' AutoTokenizer; no code of the directory is run.
    Raises CheckpointError."""
    from transformers import AutoTokenizer

    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; a tokenizer is read from one")
    files = {name: directory / name for name in (*_JSON, *_OTHERS) if (directory / name).is_file()}
    for name, path in files.items():
        refuse_lfs_pointer(path)
        if name in _JSON:
            read_json(path)
    if "tokenizer.model" in files and not {"tokenizer.json", "vocab.json"} & files.keys():
        raise CheckpointError(
            f"{files['tokenizer.model']}: the directory holds no tokenizer.json beside it, and only that is read; take it from "
            "a newer copy of the model, or let transformers make it (AutoTokenizer.from_pretrained, then save_pretrained)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers package raises plain Exceptions, transformers many kinds
        raise CheckpointError(
            f"{directory}: its tokenizer does not load ({first_line(error)}); the directory needs tokenizer.json and "
            "tokenizer_config.json"
        ) from None
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{directory}: its tokenizer does not say which characters a token covers; add tokenizer.json"
        )
    return tokenizer


def ids_of(tokenizer) -> int:
    """One more than the highest token id. This exceeds the number of tokens if some ids are unused."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def refuse_misfit(tokenizer, stop_ids: Sequence[int], vocab_size: int, where: str) -> None:
    """Raises CheckpointError if a token id or a stop id has no row in the embedding; jax would silently read its last row."""
    ids = ids_of(tokenizer)
    if ids > vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has {ids} token ids and the embedding {vocab_size} rows; tokenizer and weights are not of "
            "the same model"
        )
    outside = [i for i in stop_ids if not 0 <= i < vocab_size]
    if outside:
        raise CheckpointError(
            f"{where}: the stop ids {', '.join(map(str, outside))} (eos_token_id) have no row in the embedding, which has "
            f"{vocab_size}; correct generation_config.json or config.json"
        )


def warn_of_unused_ends(tokenizer, end_of_turn: int | None, stop_ids: Sequence[int]) -> None:
    """Logs a warning if the tokenizer's end token, or the one that ends a turn in the chat template, does not end a response."""
    ends = dict.fromkeys(i for i in (tokenizer.eos_token_id, end_of_turn) if i is not None and i not in stop_ids)

    def named(ids):
        return ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in ids)

    if ends:
        log.warning(
            "the tokenizer ends with %s, and responses end with %s alone: add it to eos_token_id in generation_config.json "
            "if it should end them too",
            named(ends),
            named(stop_ids),
        )
