"""CFBench against the hand-computed aggregations, and its two ways to read replies."""

import pytest
from judged_fixtures import SHARED, Replies, example, near, needs_shared, write

from hir_jax.data.readers import RowError
from hir_jax.eval.judged import cfbench
from hir_jax.eval.judged.cfbench import PRIMARY, SECONDARY, CFBenchPrompt, Reading

KINDS = {"primary": PRIMARY, "secondary": SECONDARY}


def _row(key, kinds, split="easy", criteria=None, gold=""):
    criteria = criteria or [f"c{position}" for position in range(len(kinds))]
    return CFBenchPrompt(key, f"prompt {key}", gold, split, tuple(criteria), tuple(KINDS[kind] for kind in kinds))


def _example_rows(found):
    return [_row(key, one["criteria"], one["split"], one.get("criteria_text")) for key, one in enumerate(found["rows"])]


@needs_shared
@pytest.mark.parametrize("quirks", [False, True])
@pytest.mark.parametrize("name", ["csr_isr_psr_mixed", "only_primary_or_only_secondary"])
def test_hand_computed_figures(name, quirks):
    found = example("cfbench", name)
    rows = _example_rows(found)
    scores = {key: one["scores"] for key, one in enumerate(found["rows"])}
    expected = found["expected"]
    assert [cfbench.row_figures(row.priorities, scores[row.key]) for row in rows] == near_rows(expected["per_row"])
    summary = cfbench.aggregate(rows, scores, quirks)
    assert {split: summary[split] for split in ("easy", "hard", "full")} == near(
        {split: expected[split] for split in ("easy", "hard", "full")}
    )
    assert (summary["rows"], summary["unknown"], summary["unknown_rows"]) == (len(rows), 0, 0)


def near_rows(expected):
    return [near(one) for one in expected]


@needs_shared
def test_hand_computed_fallback():
    found = example("cfbench", "judge_text_parsing")
    rows, expected = _example_rows(found), found["expected"]
    readings = {row.key: cfbench.verdicts(row, "", [one["judge_text"]], True) for row, one in zip(rows, found["rows"])}
    assert [one.state for one in readings.values()] == expected["parsing"]
    assert [[int(score) for score in one.scores] for one in readings.values()] == expected["scores"]
    figures = [cfbench.row_figures(row.priorities, readings[row.key].scores) for row in rows]
    assert figures == near_rows(expected["per_row"])
    summary = cfbench.aggregate(rows, readings, published_quirks=True)
    assert summary["fallback"] == {"0": 2, "-1": 2} and summary["full"]["CSR"] == pytest.approx(2.5 / 5)
    # without quirks: single newlines can be read; "a: 1", another text and a half point cannot
    judged = {row.key: cfbench.verdicts(row, "", [one["judge_text"]], False) for row, one in zip(rows, found["rows"])}
    assert list(judged.values()) == [[True, False], [True, False, False], [None] * 2, [None] * 2, [None] * 2]
    summary = cfbench.aggregate(rows, judged)
    assert summary["full"] == near({"CSR": (0.5 + 0.33) / 5, "ISR": 0, "PSR": 0})
    assert (summary["unknown"], summary["unknown_rows"], "fallback" in summary) == (6, 3, False)


def test_unknown_scores_are_not_met_and_counted():
    rows = [_row(1, ["primary", "secondary"]), _row(2, ["secondary"], "hard")]
    summary = cfbench.aggregate(rows, {1: [True, None]})
    assert summary["easy"] == near({"CSR": 0.5, "ISR": 0, "PSR": 0})
    assert summary["hard"] == summary["easy"] | {"CSR": 0.0}
    assert (summary["criteria"], summary["unknown"], summary["unknown_rows"]) == (3, 2, 2)
    summary = cfbench.aggregate(rows, {1: [True, None], 2: Reading("0", [True, True])}, published_quirks=True)
    assert summary["easy"] == near({"CSR": 0, "ISR": 0, "PSR": 0})
    assert summary["hard"] == near({"CSR": 1, "ISR": 1, "PSR": 1})
    assert summary["fallback"] == {"0": 1, "-1": 1}


@pytest.mark.parametrize(
    "reply, scores, reading",
    [
        ("a\t1\n\nb c\t0", [True, False], ("1", [True, False])),
        ("a\t1.0\n\nb c\t0.0", [True, False], ("1", [True, False])),
        ("a\t1\n\nb c \t0", [True, False], ("0", [True])),
        ("\na\t1\n\n\nb c\t1\n", [True, True], ("0", [True, True])),
        ("b c\t1\n\na\t1", None, ("0", [True, True])),
        ("a\t1", None, ("0", [True])),
        ("a\t1\n\nb c\t0\n\nc\t1", None, ("0", [True, True])),
        ("a\t1\n\nb c\t2", None, ("0", [True])),
        ("a\t1\n\nb c\tyes", None, ("-1", [False])),  # the published scorer would end here
        ("a\t\t1\n\nb c\t1", None, ("0", [True])),
        ("Sure:\na\t0\n\nb c\t0", None, ("-1", [False])),
        ("", None, ("-1", [False])),
        ("<think>\na\t0\n\nb c\t0\n</think>\n\na\t1\n\nb c\t0", [True, False], ("1", [True, False])),
        ("<THINK>a\t1\n\nb c\t1", None, ("-1", [False])),
        ("```\na\t1\n\nb c\t0\n```", [True, False], ("0", [True])),
        ("a\t**1**\n\nb c\t`0`", [True, False], ("-1", [False])),
    ],
)
def test_reading_of_replies(reply, scores, reading):
    assert cfbench.parse(reply, ["a", "b c"]) == scores
    assert cfbench.parse_published(reply, ["a", "b c"]) == Reading(*reading)


def test_criteria_with_white_space_of_their_own():
    criteria = [" outer ", "two\n\nlines", "+("]
    assert cfbench.parse("outer\t1\n\ntwo\n\nlines\t0\n\n+(\t1", criteria) == [True, False, True]


@needs_shared
def test_the_published_rows():
    rows = cfbench.read(SHARED / "cfbench/prompts.jsonl")
    splits = [row.split for row in rows]
    assert (len(rows), splits.count("easy"), splits.count("hard")) == (20, 12, 8)
    assert sum(len(row.criteria) for row in rows) == 91
    for row in rows:  # each can be answered in the form that is asked for
        reply = "\n\n".join(f"{text}\t1" for text in row.criteria)
        assert cfbench.parse(reply, row.criteria) == [True] * len(row.criteria)


GOOD = {"idx": 1, "prompt": "p", "gold": "", "split": "easy", "criteria": [["a", PRIMARY, "", ""]]}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"idx": "1"}, "'idx' must be an integer"),
        ({"prompt": None}, "'prompt' must be a string"),
        ({"split": "middle"}, "'split' must be easy or hard"),
        ({"criteria": []}, "'criteria' must be a non-empty list"),
        ({"criteria": [["a", PRIMARY, ""]]}, "list of four strings"),
        ({"criteria": [["a", "high", "", ""]]}, "priority must be"),
    ],
)
def test_bad_rows(tmp_path, change, message):
    path = write(tmp_path / "f", [GOOD, GOOD | {"idx": 2} | change])
    with pytest.raises(RowError, match=f"f:2: .*{message}"):
        cfbench.read(path)


def test_empty_files_and_repeated_keys(tmp_path):
    with pytest.raises(RowError, match="holds no rows"):
        cfbench.read(write(tmp_path / "f", []))
    with pytest.raises(RowError, match="f:2: key 1 was used before"):
        cfbench.read(write(tmp_path / "f", [GOOD, GOOD]))


def test_one_call_per_row_and_one_more_for_an_unreadable_reply():
    row = _row(1, ["primary", "secondary"], criteria=["a", "b"], gold="42")
    ask = Replies("a\t1\n\nb\t0")
    assert cfbench.judge(row, "It is 42.", ask) == ["a\t1\n\nb\t0"]
    shown = ask.asked[0][1]["content"]
    assert "prompt 1" in shown and "It is 42." in shown and "=== reference answer" in shown and "a\n\nb" in shown
    ask = Replies("a: yes", "a\t1\n\nb\t1")
    assert cfbench.judge(row, "x", ask) == ["a\t1\n\nb\t1"]
    assert [one["role"] for one in ask.asked[1]] == ["system", "user", "assistant", "user"]
    assert cfbench.judge(row, "x", Replies("a: yes", None)) == ["a: yes"]
    assert cfbench.judge(row, "x", Replies(None)) == [None]
    assert cfbench.judge(row, "x", Replies(), ["kept"]) == ["kept"]
