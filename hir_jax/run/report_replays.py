"""Replays for the report page: which types of constraints they keep, and the replays themselves, every string once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hir_jax.run.report_data import Replay, Run, short, size

MAX_REPLAYS = 10_000  # in the page; of more, every n-th
LEAST_RESPONSE = 1_000  # bytes to which responses may be cut for the page's size; below that the page has fewer replays


def _occurrences(run: Run) -> Iterable[tuple[int | None, str, tuple[int, int, int]]]:
    """(step, constraint type, (n, met, unknown)) over all replays; over those in replays.jsonl if the run has no kept.jsonl."""
    for step, counts in run.kept.items():
        yield from ((step, name, (asked, kept, 0)) for name, (kept, asked) in counts.items())
    for replay in run.replays if not run.kept else ():
        yield from ((replay.step, name, (1, mark == "1", mark == "?")) for name, _, mark in replay.constraints)


def type_table(groups: Sequence[Sequence[Run]]) -> list[list]:
    """[type, [[n, met, unknown] in the first half of the group's steps, the same in the second], for each group], ...]."""
    table: dict[str, list] = {}
    for index, group in enumerate(groups):
        found = [one for run in group for one in _occurrences(run)]
        half = max((step for step, _, _ in found if step is not None), default=0) / 2
        for step, name, counts in found:
            halves = table.setdefault(name, [[[0, 0, 0], [0, 0, 0]] for _ in groups])[index]
            late = step is not None and step > half
            halves[late] = [a + b for a, b in zip(halves[late], counts, strict=True)]
    return sorted(map(list, table.items()))


def sampled(runs: Sequence[Run]) -> list[int]:
    """Indices of the runs whose constraint types are those of replays.jsonl alone: the best replays of each step."""
    return [index for index, run in enumerate(runs) if run.replays and not run.kept]


class Strings:
    """Stores every string once, and texts as lists of indices."""

    def __init__(self):
        self.index: dict[str, int] = {}
        self._pieces: dict[str, list[int]] = {}

    def code(self, string: str) -> int:
        return self.index.setdefault(string, len(self.index))

    def pieces(self, whole: str, parts: Iterable[str]) -> list[int]:
        """Indices of strings whose concatenation is `whole`, cut at those `parts` that it contains."""
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


def _coded(rows: Iterable[tuple[int, Replay]], strings: Strings) -> list[list]:
    """Each (index of the run, replay) without its response (place 10) and how much of it is cut off (place 12)."""
    found = []
    for index, row in rows:
        types, texts, marks = zip(*row.constraints, strict=True) if row.constraints else ((), (), ())
        original, rewritten = (strings.pieces(whole, (row.task, *texts)) for whole in (row.original, row.rewritten))
        found.append([
            index, row.step, short(row.integrity), short(row.score), strings.code(row.key), strings.code(row.template),
            list(map(strings.code, types)), list(map(strings.code, texts)), "".join(marks), original, 0, rewritten, 0,
        ])  # fmt: skip
    return found


def coded_replays(runs: Sequence[Run], budget: int | None = None) -> dict[str, Any]:
    """{"strings", "replays", "replays_found": how many are in the files}, in at most about `budget` bytes if there is one.

    A replay is [run, step, integrity, score, key, template, types, texts, marks, original, response, rewritten, characters cut
    off the response]; texts are indices into the strings, original and rewritten lists of them.
    """
    rows = [(index, row) for index, run in enumerate(runs) for row in run.replays]
    kept = rows[:: max(1, -(-len(rows) // MAX_REPLAYS))]
    while True:
        strings = Strings()
        replays, responses = _coded(kept, strings), [row.response for _, row in kept]
        lengths = list(map(len, responses))
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
