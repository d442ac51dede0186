"""Sequence packing inside jit: rows of different lengths share bins of a fixed number of columns.

The cost of a causal pass then follows the number of real tokens, with one compilation: shapes depend on the bins alone, and only
the number of bins that hold something changes from batch to batch. A row's columns are its prompt and its response but for
the last token, which predicts nothing; rows that are not kept take no place. Where the attention can do so, rows with the same
prompt share its columns within a bin: all of it but its last token, which predicts another one in each row, is there once.

Letters: B rows, P and R prompt and response columns of the batch, G devices that share rows, K bins of a device, W columns
of a bin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hir_jax.types import Array

ALIGNMENT = 16  # columns of a bin are a multiple of it
# Of the longest rows in a bin, if the config does not say how wide it is. By a simulation of 32 and 48 rows with prompts of 60
# to 208 tokens and log-normal responses cut at 128: padding 0.17 at one, 0.05 to 0.07 at 1.3, 0.06 to 0.08 at two; rows that
# all are the longest fill one and two, but leave a fifth of 1.3 empty.
BIN_ROWS = 2


class Places(NamedTuple):
    """What each row adds to a bin: `length` columns of bin `bin` from `start` on, the last of its own, without the columns of its
    prompt that another row has put there; 0 for a row that has no place."""

    bin: Array  # i32[B]
    start: Array  # i32[B]
    length: Array  # i32[B]


class Packed(NamedTuple):
    """Bins dealt to the devices: the i-th bin is number i // G of device i % G, so that used ones are spread evenly."""

    row: Array  # i32[G, K, W]: the row whose token it is, or who put it there
    column: Array  # i32[G, K, W]: its column in the batch, 0 to P + R - 2
    position: Array  # i32[G, K, W]: counted from the row's first prompt token
    segment: Array  # i32[G, K, W]: differs between the rows of a bin and their shared prompts; 0: empty
    prompt: Array | None  # i32[G, K, W]: segment of the row's prompt, where prompts are shared
    predicts: Array  # bool[G, K, W]: the next token is one of the response
    used: Array  # i32[]: bins a device that hold something, on at least one device


class Sizes(NamedTuple):
    """Static sizes of a packing: K bins a device of W columns, `micro` of them in a micro-batch."""

    bins: int
    columns: int
    micro: int


def bin_columns(columns: int, wanted: int) -> int:
    """W for rows of up to `columns` - 1 columns: `wanted`, or what the longest row needs if that is more."""
    return -(-max(columns - 1, wanted or BIN_ROWS * (columns - 1)) // ALIGNMENT) * ALIGNMENT


def sizes(rows: int, longest: int, columns: int, multiple: int, micro_tokens: int) -> Sizes:
    """Sizes for B rows, should all have `longest` columns, which is never more than rows padded to that length would take;
    micro-batches of at most `micro_tokens` columns on all of `multiple` devices, but at least one bin a device."""
    bins = -(-rows // (columns // longest * multiple))
    count = -(-bins // max(1, micro_tokens // (columns * multiple)))
    micro = -(-bins // count)  # as even as possible
    return Sizes(count * micro, columns, micro)


def same_prompts(tokens: Array, prompt_length: Array) -> Array:
    """i32[B]: the first row with the same prompt. tokens: i32[B, P], prompts right-aligned; what is before one is ignored."""
    columns = tokens.shape[1]
    outside = jnp.arange(columns) < columns - prompt_length[:, None]
    same = ((tokens[:, None] == tokens) | outside).all(-1) & (prompt_length[:, None] == prompt_length)
    return jnp.argmax(same, axis=1).astype(jnp.int32)


def first_fit(lengths: Array, columns: int, shared: Array | int = 0, group: Array | None = None) -> Places:
    """First-fit decreasing: rows by descending length (equal ones in order), each into the first bin with room for it.

    group: i32[B], of rows that share their first `shared` columns, i32[B], in a bin. The rows of a group come one after the
    other, the group with most columns first, and each takes a bin that holds its group, if there is room.
    """
    rows = jnp.arange(lengths.size, dtype=jnp.int32)
    group, shared = rows if group is None else group, jnp.broadcast_to(shared, lengths.shape)
    total = jnp.zeros_like(lengths).at[group].add(lengths - shared)[group] + shared
    order = jnp.lexsort((-lengths, group, -total))

    def place(bins, row):
        (room, holds), (length, shared, group) = bins, row
        held = holds == group
        needed = length - jnp.where(held, shared, 0)
        chosen = jnp.argmax(jnp.where(room >= needed, 1 + held, 0)).astype(jnp.int32)
        found = chosen, columns - room[chosen], needed[chosen]
        holds = holds.at[chosen].set(jnp.where(length > 0, group, holds[chosen]))
        return (room.at[chosen].add(-needed[chosen]), holds), found

    empty = jnp.full(lengths.shape, columns, jnp.int32), jnp.full(lengths.shape, -1, jnp.int32)
    _, found = jax.lax.scan(place, empty, (lengths[order], shared[order], group[order]))
    back = jnp.argsort(order)
    return Places(*(x[back] for x in found))


def pack(
    prompt_length: Array, response_mask: Array, keep: Array, size: Sizes, columns: int, multiple: int,
    group: Array | None = None,
) -> tuple[Packed, Places]:  # fmt: skip
    """The packing of rows whose prompts end in column P = columns - R. prompt_length: i32[B], at least 1; response_mask:
    bool[B, R], left-aligned; keep: bool[B]. Nothing is kept of a row without a response. group: i32[B], 0 to B - 1, of rows with
    the same prompt, which is then put into a bin once; None: every row has its own."""
    response_length = response_mask.sum(-1, dtype=jnp.int32)
    keep &= response_length > 0
    whole = jnp.where(keep, prompt_length + response_length - 1, 0)
    places = first_fit(whole, size.columns, jnp.where(keep, prompt_length - 1, 0), group)
    shape = (multiple, size.bins, size.columns)
    device, number = places.bin % multiple, places.bin // multiple
    # Each row's number is put where it begins. A running maximum fills the columns up to the next beginning, so rows are
    # numbered in their order within a bin.
    order = jnp.argsort(places.start, stable=True)
    rank = jnp.argsort(order)
    where = (device, jnp.where(keep, number, size.bins), places.start)
    begun = jnp.zeros(shape, jnp.int32).at[where].set(rank + 1, mode="drop")
    row = order[jnp.maximum(jax.lax.cummax(begun, axis=2) - 1, 0)].astype(jnp.int32)
    at_bin = jnp.arange(size.bins) * multiple + jnp.arange(multiple)[:, None]
    position = jnp.arange(size.columns, dtype=jnp.int32) - places.start[row]
    real = (places.bin[row] == at_bin[..., None]) & (position >= 0) & (position < places.length[row])
    position = jnp.where(real, position + (whole - places.length)[row], 0)
    column = jnp.where(real, columns - response_mask.shape[1] - prompt_length[row] + position, 0)
    predicts = real & (position >= prompt_length[row] - 1)
    used = jnp.max(jnp.where(keep, number + 1, 0))
    segment, prompt = jnp.where(real, row + 1, 0), None
    if group is not None:
        prompt = jnp.where(real, keep.size + 1 + group[row], 0)
        segment = jnp.where(predicts, segment, prompt)
    return Packed(row, column, position, segment, prompt, predicts, used), places


def unpack(values: Array, places: Places, response_mask: Array) -> Array:
    """[B, R] out of values [G, K, W], each at the column of the token before; 0 outside the mask and for rows without a place."""
    multiple = values.shape[0]
    at = places.start + places.length - response_mask.sum(-1, dtype=jnp.int32)
    at = at[:, None] + jnp.arange(response_mask.shape[1])
    found = values.at[places.bin[:, None] % multiple, places.bin[:, None] // multiple, at].get(mode="clip")
    return jnp.where(response_mask & (places.length > 0)[:, None], found, 0)


def over_micro_batches(used: Array, size: Sizes, body: Callable, carry):
    """carry = body(carry, start) over bins start to start + `size.micro` of every device until `used` are done.

    Returns the carry and the number of bins a device that were computed. Not differentiable: `body` makes gradients itself.
    One loop has one body to compile; what the last micro-batch computes in vain is less, the smaller a micro-batch is.
    """
    trips = -(-used // size.micro)
    return jax.lax.fori_loop(0, trips, lambda i, c: body(c, i * size.micro), carry), trips * size.micro
