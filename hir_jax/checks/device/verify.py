"""Verifies responses on the device: tokens -> bytes -> counts per response -> one comparison per constraint.

The constraints come encoded as arrays (`device.conditions`): which value is in which relation to which number. The values,
counts of patterns, words, bullets, paragraphs and so on, are computed once per response for all constraints, so one
compiled function serves every prompt and every mixture of types. Where a verdict is `known`, it equals that of the host's
check (strict mode). It is unknown for text that is not ASCII or too long and for constraints that the device does not
decide (`conditions.decides`); the host's verifier decides those.

All arrays have a row per response, and no row depends on another: rows may be split over a mesh.
Letters in shapes: N prompts, B = N * S responses, C constraints of a prompt, R tokens, L bytes, M patterns, W symbols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hir_jax.checks import responses
from hir_jax.checks.device.conditions import (
    AT_LEAST,
    BODY,
    CHARACTER,
    EDGE_AFTER,
    EDGE_BEFORE,
    END,
    IS_SPACE,
    IS_WORD,
    LESS_THAN,
    Conditions,
)
from hir_jax.types import Array, InputError, Verdicts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FOREIGN = b"\xff"  # in place of a token that is not ASCII
_HIDING = b"\xfe"  # in place of one that may also hold part of a think tag

# ---- Tokens to bytes ------------------------------------------------------------------------------------------------


class TokenBytes(NamedTuple):
    """The bytes that each token adds to the text: token v is `data[start[v] : start[v + 1]]`, nothing for special tokens."""

    data: Array  # u8[D]
    start: Array  # i32[V + 1]

    @property
    def longest(self) -> int:
        """Bytes of the longest token, on the host: R tokens always fit in R * longest bytes."""
        return int(np.diff(self.start).max())


def token_bytes(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> TokenBytes:
    """The table of a Hugging Face tokenizer for a model of `vocab_size` words (those past the tokenizer's are empty).

    A token that is not ASCII by itself is the one byte 0xFF (0xFE if it holds < or >): every text that holds it is left to the
    host anyway. Raises InputError unless tokens decoded one by one and then joined give the same text as decoded together,
    which is true of byte-level BPE and not where the decoder adds or strips spaces; tried on each ASCII token in a random
    context.
    """

    def decode(sequences: list[list[int]]) -> list[str]:
        return responses.decode(tokenizer, sequences)

    known = sorted(i for i in set(tokenizer.get_vocab().values()) if i < vocab_size)
    texts = dict(zip(known, decode([[i] for i in known]), strict=True))
    rng = np.random.default_rng(0)
    plain, foreign = (rng.permutation([i for i in known if texts[i].isascii() == ascii]) for ascii in (True, False))
    samples = [[int(i) for i in ids] for ids in np.split(plain, range(16, len(plain), 16))]
    samples += [[samples[0][0], int(i), samples[0][-1]] for i in foreign[:256]]
    for ids, text in zip(samples, decode(samples), strict=True):
        joined = "".join(texts[i] for i in ids)
        if joined != text if joined.isascii() else text.isascii():
            raise InputError(
                f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} decodes {ids} to {text!r}, but one "
                f"by one to {joined!r}: constraints cannot be checked on the device; set config.constraints.on_device=False"
            )
    pieces = [b""] * vocab_size
    for i, text in texts.items():
        pieces[i] = text.encode() if text.isascii() else _HIDING if set("<>") & set(text) else _FOREIGN
    start = np.cumsum([0, *map(len, pieces)], dtype=np.int32)
    return TokenBytes(np.frombuffer(b"".join(pieces), np.uint8), start)


def to_bytes(table: TokenBytes, tokens: Array, mask: Array, width: int) -> tuple[Array, Array, Array]:
    """Text of responses: u8[B, width] with zeros behind, its length i32[B], and whether it fits in `width`, bool[B].

    tokens: i32[B, R]; mask: bool[B, R], the tokens of the response. The rest is cut off.
    """
    begin = table.start[tokens]
    end = jnp.cumsum(
        jnp.where(mask, table.start[tokens + 1] - begin, 0), axis=1
    )  # i32[B, R]: where a token's text ends
    place = jnp.arange(width)
    token = jax.vmap(lambda ends: jnp.searchsorted(ends, place, side="right"))(end)  # i32[B, L]
    token = jnp.minimum(token, tokens.shape[1] - 1)
    back = jnp.take_along_axis(end, token, axis=1) - place  # bytes from here to the end of its token
    source = jnp.take_along_axis(table.start[tokens + 1], token, axis=1) - back
    length = jnp.minimum(end[:, -1], width)
    text = jnp.where(place < length[:, None], table.data[source], 0).astype(jnp.uint8)
    return text, length, end[:, -1] <= width


def _occurs(text: Array, word: bytes) -> Array:
    """bool[B, L]: where an occurrence of a lower-case `word` begins, in any case."""
    lower = jnp.where((text >= ord("A")) & (text <= ord("Z")), text | 32, text)
    found = jnp.ones(text.shape, bool)
    for i, byte in enumerate(word):
        found &= jnp.pad(lower, ((0, 0), (0, i)))[:, i:] == byte
    return found


def without_thinking(text: Array, length: Array, begun: bool) -> tuple[Array, Array, Array]:
    """`responses.without_thinking` for texts u8[B, L], padded with zeros, of lengths i32[B]: the remaining texts in the same
    form, and bool[B], False where a token that is not ASCII may hide part of a tag."""
    opening, closing = responses.OPENING.encode(), responses.CLOSING.encode()
    place = jnp.arange(text.shape[1])
    within = place < length[:, None]
    opened = jnp.maximum(_last(_occurs(text, opening)), 0 if begun else -1)  # where the latest opening tag begins
    behind = jnp.pad(_occurs(text, closing), ((0, 0), (len(closing), 0)))[
        :, : text.shape[1]
    ]  # right behind a closing tag
    inside = (opened >= 0) & (opened >= _last(behind))
    ended = _last(behind & _before(inside))
    spaces = ~inside & jnp.asarray(IS_SPACE)[text]
    solid = _last(within & ~inside & ~spaces)
    keep = within & ~inside & ~((ended > solid) & spaces)
    count = jnp.cumsum(keep, axis=1)
    source = jax.vmap(lambda count: jnp.searchsorted(count, place, side="right"))(count)
    left = count[:, -1]
    packed = jnp.take_along_axis(text, jnp.minimum(source, text.shape[1] - 1), axis=1)
    packed = jnp.where(place < left[:, None], packed, 0).astype(jnp.uint8)
    return packed, left, ~(text == _HIDING[0]).any(axis=1)


# ---- Counts along a row, from the place of the latest character of a kind -----------------------------------------------


def _last(x: Array) -> Array:
    """i32[B, L]: the latest place at or before each where x holds, -1 without one."""
    return jax.lax.cummax(jnp.where(x, jnp.arange(x.shape[1]), -1), axis=1)


def _number(x: Array, reset: Array) -> Array:
    """i32[B, L]: the number of x up to each place, after the latest reset."""
    count = jnp.cumsum(x, axis=1)
    return count - jax.lax.cummax(jnp.where(reset, count, 0), axis=1)


def _before(x: Array, first: Any = False) -> Array:
    """x shifted by one place: at each place the value before it."""
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=first)


def _after(x: Array) -> Array:
    return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))


def _firsts(x: Array, reset: Array) -> Array:
    """The places where x holds for the first time since the latest reset."""
    return x & (_before(_last(x), -1) <= _last(reset))


def _count(x: Array) -> Array:
    return x.sum(axis=1, dtype=jnp.int32)


def _ends(x: Array) -> tuple[Array, Array]:
    """i32[B, 1] each: the first and the last place of x; L and -1 if there is none."""
    place = jnp.arange(x.shape[1])
    first = jnp.where(x, place, x.shape[1]).min(axis=1, keepdims=True)
    return first, jnp.where(x, place, -1).max(axis=1, keepdims=True)


def _pieces(star: Array, filled: Array, size: int) -> tuple[Array, Array, Array]:
    """Splitting at every `size` asterisks: the number of pieces that are not blank, i32[B], or -1 for a blank one that is
    not at an end; the places of content; and which of them are the first of their piece."""
    offset = jnp.arange(star.shape[1]) - _last(~star) - 1  # in a run of asterisks, of which every full `size` divides
    divider_end = star & (offset % size == size - 1)
    run_left = star.shape[1] - 1 - _last(~star[:, ::-1])[:, ::-1] - jnp.arange(star.shape[1])  # to the run's end
    content = filled & ~(star & (offset - offset % size + size <= offset + run_left))
    first = _firsts(content, divider_end)
    piece = jnp.cumsum(divider_end, axis=1)
    count = _count(first)
    inner = _count(first & (piece > 0) & (piece < piece[:, -1:]))
    return jnp.where(inner == jnp.maximum(piece[:, -1] - 1, 0), count, -1), content, first


def _two_responses(text: Array, star: Array, filled: Array) -> Array:
    """bool[B]: two pieces divided by six asterisks, and they differ."""
    count, content, first = _pieces(star, filled, 6)
    place = jnp.arange(text.shape[1])
    starts = _ends(first)
    ends = _ends(content & (place < starts[1]))[1], _ends(content)[1]
    inside = (place >= starts[0]) & (place <= ends[0])
    partner = jnp.take_along_axis(text, jnp.minimum(place + starts[1] - starts[0], place[-1]), axis=1)
    same_length = (ends[0] - starts[0] == ends[1] - starts[1])[:, 0]
    return (count == 2) & ~(same_length & ~(inside & (text != partner)).any(axis=1))


def _bullets(text: Array, star: Array, filled: Array, newline: Array, inside: Array) -> Array:
    """i32[B]. An asterisk that ends its line takes the next line into its bullet, as IFEval's pattern does."""
    leading = _firsts(filled, newline)
    bullet = leading & star & _after(inside & ~star)
    takes_next = newline & _before(bullet)
    taken = _number(takes_next, newline & ~takes_next)  # bullet in bullet, up to this line
    return _count(bullet & (taken % 2 == 0)) + _count(leading & (text == ord("-")))


def _highlights(star: Array, filled: Array, newline: Array) -> Array:
    """i32[B]: `*x*` and, counted for themselves, `**x**`."""
    last_star, content = _before(_last(star), -1), _last(filled & ~star)
    # Single ones: the asterisks of a line pair up.
    single = star & (_number(star, newline) % 2 == 0) & (content > last_star)
    # Double ones: of a run of n asterisks, c = 0 or 2 close a match; the rest holds empty `****` and opens another match if
    # (n - c) mod 4 >= 2 and the line has a next run of at least two, which closes it. So along linked runs "closes" is
    # passed on if n mod 4 < 2 and inverted otherwise.
    run = star & ~_before(star)
    size = last_star - _before(_last(run), -1) + 1  # of the run before this one
    linked = run & _after(star) & (last_star > _last(newline))
    turns = linked & (size % 4 >= 2)
    double = linked & (_number(turns, run & ~linked) % 2 == 1) & (content > last_star)
    return _count(single) + _count(double)


def _titles(text: Array, filled: Array, newline: Array) -> Array:
    """bool[B]: a line with `<<`, something, `>>`."""

    def behind(bracket: Array, newline: Array) -> Array:
        """At or behind the first other character after two brackets on this line."""
        line = _last(newline)
        opened = _last(bracket & _before(bracket)) > line
        return _last(opened & ~bracket) > line

    def flip(x: Array) -> Array:
        return x[:, ::-1]

    before_end = flip(behind(flip(text == ord(">")), flip(newline)))
    return (filled & behind(text == ord("<"), newline) & before_end).any(axis=1)


def _text_values(text: Array, inside: Array, filled: Array, word: Array) -> list[Array]:
    """i32[B] each: WORDS to TWO_RESPONSES."""
    star, newline, closing = text == ord("*"), text == ord("\n"), text == ord("]")
    opened = _last(text == ord("[")) > _before(_last(closing | newline), -1)
    first, last = _ends(filled)
    quoted = (jnp.arange(text.shape[1]) == first) | (jnp.arange(text.shape[1]) == last)
    return [
        _count(word & ~_before(word)),
        _pieces(star, filled, 3)[0],
        _bullets(text, star, filled, newline, inside),
        _highlights(star, filled, newline),
        _count(closing & opened),
        _titles(text, filled, newline),
        (first < last)[:, 0] & ~(quoted & (text != ord('"'))).any(axis=1),
        _two_responses(text, star, filled),
    ]


def _places(text: Array, inside: Array, filled: Array, word: Array) -> Array:
    """u16[B, L + 2]: the bits of each place (see `conditions`), with one more place at either end."""

    def wide(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (1, 1)))

    place = jnp.arange(text.shape[1])
    first, last = _ends(filled)
    first, last = _ends((place >= first) & (place <= last) & (text != ord('"')))
    body = wide((place >= first) & (place <= last))
    edge = wide(word)[:, 1:] != wide(word)[:, :-1]
    return (
        wide(jnp.where(inside, jnp.asarray(CHARACTER)[text], 0))
        | jnp.pad(edge, ((0, 0), (0, 1))) * jnp.uint16(EDGE_AFTER)
        | jnp.pad(edge, ((0, 0), (1, 0))) * jnp.uint16(EDGE_BEFORE)
        | body * jnp.uint16(BODY)
        | (_before(body) & ~body) * jnp.uint16(END)
    )


def _pattern_values(places: Array, conditions: Conditions) -> tuple[Array, Array, Array]:
    """MATCHES i32[B, C], the matches of all patterns of a constraint; FOUND i32[B, C], the number of its patterns that match
    at all; and bool[B, C], whether one of its `doubts` does."""
    starts = places.shape[1] - 1
    width = conditions.mask.shape[2]
    places = jnp.pad(places, ((0, 0), (0, width)))

    def step(i, match):
        window = jax.lax.dynamic_slice_in_dim(places, i, starts, axis=1)[:, None]
        mask, wanted = (jax.lax.dynamic_slice_in_dim(x, i, 1, axis=2) for x in (conditions.mask, conditions.wanted))
        return match & ((window & mask) == wanted)

    match = jnp.ones((*conditions.owner.shape, starts), bool)  # [B, M, L + 1]
    count = jax.lax.fori_loop(0, width, step, match).sum(axis=2, dtype=jnp.int32)
    mine = conditions.owner[..., None] == jnp.arange(conditions.value.shape[1])  # [B, M, C]
    doubt = conditions.doubt[..., None]

    def total(x: Array, mine: Array) -> Array:
        return jnp.where(mine, x[..., None], 0).sum(axis=1)

    return (
        total(count, mine & ~doubt),
        total((count > 0).astype(jnp.int32), mine & ~doubt),
        total(count, mine & doubt) > 0,
    )


# ---- Verdicts -------------------------------------------------------------------------------------------------------


def verify_bytes(conditions: Conditions, text: Array, length: Array, fits: Array) -> Verdicts:
    """Verdicts bool[B, C] on texts u8[B, L] of `length` i32[B]; `fits` bool[B]: the text is all of the response.

    Row b belongs to prompt b // (B / N). Verdicts are `known` where `conditions` are decidable and the text fits and is ASCII.
    """
    conditions = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), len(text) // len(x), axis=0), conditions)
    inside = jnp.arange(text.shape[1]) < length[:, None]
    text = jnp.where(inside, text, 0)
    filled = inside & ~jnp.asarray(IS_SPACE)[text]
    word = jnp.asarray(IS_WORD)[text]
    matches, found, doubtful = _pattern_values(_places(text, inside, filled, word), conditions)
    values = [matches, found, *(x[:, None].astype(jnp.int32) for x in _text_values(text, inside, filled, word))]
    value = sum(jnp.where(conditions.value == i, x, 0) for i, x in enumerate(values))
    met = jnp.select(
        [conditions.relation == AT_LEAST, conditions.relation == LESS_THAN],
        [value >= conditions.number, value < conditions.number],
        value == conditions.number,
    )
    plain = fits & ~(text > 127).any(axis=1)
    known = conditions.decidable & plain[:, None] & ~doubtful
    return Verdicts(known & met & filled.any(axis=1)[:, None], known, conditions.present)


def verify(
    table: TokenBytes, conditions: Conditions, tokens: Array, mask: Array, *, width: int, thinking: bool | None = None
) -> Verdicts:
    """Verdicts on tokens i32[B, R], of which `mask` bool[B, R] are the response, in texts of up to `width` bytes.

    thinking: None checks the whole text; a bool checks it `without_thinking`, which the prompt has begun (True) or not.
    Pure and to be jitted, with `width` and `thinking` static; compiled once for all batches of one shape.
    """
    table = TokenBytes(*map(jnp.asarray, table))
    text, length, fits = to_bytes(table, tokens, mask, width)
    if thinking is not None:
        text, length, certain = without_thinking(text, length, thinking)
        fits &= certain
    return verify_bytes(conditions, text, length, fits)
