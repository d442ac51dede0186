"""Replays for the report page: which types of constraints they keep, and the replays themselves, every string once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hir_jax.run.report_data import Run, is_step, number, short, size, text

MAX_REPLAYS = 10_000  # in the page; of more, every n-th
LEAST_RESPONSE = 1_000  # bytes of a response that is cut for the page's size; rather fewer replays than less of each


def _occurrences(run: Run) -> Iterable[tuple[int | None, str, tuple[int, int, int]]]:
    """(step, constraint type, (n, met, unknown)): over all replays, or those in replays.jsonl of a run that counted no others."""
    for step, counts in run.kept.items():
        yield from ((step, name, (asked, kept, 0)) for name, (kept, asked) in counts.items())
    for row in run.replays if not run.kept else ():
        step = row["step"] if is_step(row.get("step")) else None
        yield from ((step, name, (1, mark == "1", mark == "?")) for name, _, mark in row["constraints"])


def type_table(groups: Sequence[Sequence[Run]]) -> list[list]:
    """[type, [[n, met, unknown] in the first half of the group's steps, the same in the second], for each group], ...]."""
    table: dict[str, list] = {}
    for index, group in enumerate(groups):
        found = [one for run in group for one in _occurrences(run)]
        half = max((step for step, _, _ in found if step is not None), default=0) / 2
        for step, name, counts in found:
            if name not in table:
                table[name] = [[[0, 0, 0], [0, 0, 0]] for _ in groups]
            half_counts = table[name][index][step is not None and step > half]
            half_counts[:] = [a + b for a, b in zip(half_counts, counts, strict=True)]
    return sorted(map(list, table.items()))


def sampled(runs: Sequence[Run]) -> list[int]:
    """Indices of the runs whose constraint types are those of replays.jsonl alone: the best replays of each step."""
    return [index for index, run in enumerate(runs) if run.replays and not run.kept]


class Strings:
    """Every string once; texts as lists of indices."""

    def __init__(self):
        self.index: dict[str, int] = {}
        self._pieces: dict[str, list[int]] = {}

    def code(self, string: str) -> int:
        return self.index.setdefault(string, len(self.index))

    def pieces(self, whole: str, parts: Iterable[str]) -> list[int]:
        """Indices of strings whose concatenation is `whole`, cut at those `parts` that stand in it."""
        if whole in self._pieces:
            return self._pieces[whole]
        found, at = [], 0
        for begin, part in sorted((whole.find(part), part) for part in parts if part):
            if begin >= at:
                found += [whole[at:begin], part]
                at = begin + len(part)
        self._pieces[whole] = [self.code(piece) for piece in (*found, whole[at:]) if piece]
        return self._pieces[whole]


def _longest(sizes: Sequence[int], budget: int) -> int:
    """The largest limit such that texts of these sizes, each cut to it, fit in the budget."""
    left, sizes = budget, sorted(sizes)
    for place, one in enumerate(sizes):
        if one * (len(sizes) - place) > left:
            return max(0, left // (len(sizes) - place))
        left -= one
    return max(sizes, default=0)


def _cut(string: str, now: int, limit: int) -> str:
    """The beginning, of at most `limit` bytes in the page, of a string of `now` bytes."""
    while now > limit and string:
        string = string[: min(len(string) - 1, len(string) * limit // now)]
        now = size(string)
    return string


def _coded(rows: Iterable[tuple[int, dict[str, Any]]], strings: Strings) -> list[list]:
    """Each (index of the run, row) but for its response, which is still to be put at place 10, and what is cut off it at 12."""
    found = []
    for index, row in rows:
        types, texts, marks = zip(*row["constraints"], strict=True) if row["constraints"] else ((), (), ())
        parts = (text(row.get("task")), *texts)
        found.append([
            index, row["step"] if is_step(row.get("step")) else None, short(number(row.get("integrity"))),
            short(number(row.get("score"))), *(strings.code(text(row.get(name))) for name in ("key", "template")),
            [strings.code(name) for name in types], [strings.code(one) for one in texts], "".join(marks),
            strings.pieces(text(row.get("original")), parts), 0, strings.pieces(text(row.get("rewritten")), parts), 0,
        ])  # fmt: skip
    return found


def coded_replays(runs: Sequence[Run], budget: int | None = None) -> dict[str, Any]:
    """{"strings", "replays", "replays_found": how many are in the files}, in at most about `budget` bytes if there is one.

    A replay is [run, step, integrity, score, key, template, types, texts, marks, original, response, rewritten, characters cut
    off the response]; what is text is an index into the strings, original and rewritten are lists of indices.
    """
    rows = [(index, row) for index, run in enumerate(runs) for row in run.replays]
    kept = rows[:: max(1, -(-len(rows) // MAX_REPLAYS))]
    while True:
        strings = Strings()
        replays = _coded(kept, strings)
        responses = [text(row.get("response")) for _, row in kept]
        lengths = [len(response) for response in responses]
        if budget is None:
            break
        sizes = {response: size(response) for response in responses}
        limit = _longest(list(sizes.values()), budget - size(replays) - size(list(strings.index)) - 8 * len(replays))
        if limit >= min(LEAST_RESPONSE, max(sizes.values(), default=0)) or len(kept) < 2:
            lengths = [len(_cut(one, sizes[one], limit)) for one in responses]
            break
        kept = kept[::2]
    for replay, response, length in zip(replays, responses, lengths, strict=True):
        replay[10], replay[12] = strings.code(response[:length]), len(response) - length
    return {"strings": list(strings.index), "replays": replays, "replays_found": len(rows)}
