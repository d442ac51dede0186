"""InFoBench against the hand-computed aggregations, and its conversations."""

import collections

import pytest
import wrong_results
from judged_fixtures import SHARED, Replies, example, near, needs_shared, write

from hir_jax.checks.judge import endpoint as judge_endpoint
from hir_jax.data.readers import RowError
from hir_jax.eval.judged import infobench
from hir_jax.eval.judged.infobench import InFoBenchPrompt


def _row(key, labels, subset="Easy_set", given="text"):
    return InFoBenchPrompt(
        key, "do it", given, subset, tuple(f"q{n}?" for n in range(len(labels))), tuple(map(tuple, labels))
    )


@needs_shared
@pytest.mark.parametrize("quirks", [False, True])
def test_hand_computed_figures(quirks):
    found = example("infobench", "drfr_subsets_and_labels")
    rows = [_row(one["id"], one["question_label"], one["subset"]) for one in found["rows"]]
    summary = infobench.aggregate(rows, {one["id"]: one["eval"] for one in found["rows"]}, quirks)
    expected = found["expected"]
    assert {name: summary[name] for name in expected} == near(expected)


@needs_shared
def test_hand_computed_early_stop():
    found = example("infobench", "early_stop")
    rows = [_row(one["id"], [["Content"]] * one["questions"]) for one in found["rows"]]
    replies = {one["id"]: one["replies"] for one in found["rows"]}
    judged = {row.key: infobench.verdicts(row, "", replies[row.key], True) for row in rows}
    expected = found["expected"]
    assert list(judged.values()) == expected["eval"]
    summary = infobench.aggregate(rows, judged, published_quirks=True)
    assert (summary["questions"], summary["met"]) == (expected["counted"], expected["true"])
    assert summary["overall"] == near(expected["overall"])
    assert (summary["unknown"], summary["unknown_rows"], summary["not_counted"]) == (1, 1, 2)
    summary = infobench.aggregate(rows, judged)
    assert summary["overall"] == near(expected["overall_if_unanswered_count_false"])
    assert (summary["questions"], summary["unknown"], "not_counted" in summary) == (7, 3, False)


@needs_shared
def test_hand_computed_reply_parsing():
    found = example("infobench", "reply_parsing")
    read = [infobench.parse(reply, published_quirks=True) for reply, _ in found["replies"]]
    assert read == [verdict for _, verdict in found["replies"]]
    expected = found["expected"]
    assert (read.count(True), read.count(False), read.count(None)) == tuple(expected.values())


@pytest.mark.parametrize(
    "reply, verdict, published",
    [
        ("<think>\nAll items have to be met for a YES, and one is not.\n</think>\n\nNo", False, False),
        ("<think>\nThe text has NO commas.\n</think>\n\nYes", True, True),
        ("The text has NO commas.\n</think>\n\nYes", True, True),
        ("<THINK>so NO</THINK> <think>YES</think>\nYES", True, True),
        ("<think>\nIs it a YES? NO", None, None),
        ("<think>a <think> b</think> NO", False, False),
        ("**Yes**", True, None),
        (" yes.", True, None),
        ("`No`", False, None),
        ("_NO_, it has none", False, False),
        ("```\nYES\n```", True, True),
        ('```json\n{"answer": "yes"}\n```', True, None),
        ('{"answer": false}', False, None),
        ("Final answer: **no**", False, None),
        ("Yes, there are no commas.", True, True),
        ("Yes, but NO further", None, True),
        ("No.\n\nYes", None, False),
        ("Nothing contradicts it, YES", True, False),
        ("I KNOW: YES", True, None),
        ("NOT sure", None, False),
        ("The answer is YES and NO", None, None),
        ("", None, None),
    ],
)
def test_reading_of_replies(reply, verdict, published):
    assert (infobench.parse(reply), infobench.parse(reply, published_quirks=True)) == (verdict, published)
    row = _row("a", [["Style"]])
    assert infobench.verdicts(row, "", [reply], False) == [verdict]
    assert infobench.verdicts(row, "", [reply], True) == [published]


def test_recorded_replies():
    """By this benchmark and by the judge of soft constraints."""
    for case in wrong_results.cases("10 judge"):
        wanted = {"yes": True, "no": False}[case["right"]]
        assert infobench.parse(case["reply"]) is wanted, case
        assert judge_endpoint.verdict(case["reply"]) == float(wanted), case


def test_answers_after_an_unreadable_one_count_without_quirks():
    rows = [_row("a", [["Style"], ["Number"], ["Style"]]), _row("b", [["Number"]], "Hard_set")]
    judged = {"a": [True, None, True]}
    summary = infobench.aggregate(rows, judged)
    assert summary["labels"] == near({"Style": 1, "Number": 0})
    assert (summary["overall"], summary["Easy_set"], summary["Hard_set"]) == (0.5, pytest.approx(2 / 3), 0)
    assert (summary["unknown"], summary["unknown_rows"]) == (2, 2)
    summary = infobench.aggregate(rows, judged, published_quirks=True)
    assert summary["labels"] == near({"Style": 1, "Number": 0})
    assert (summary["overall"], summary["Easy_set"]) == (pytest.approx(1 / 3), 0.5)
    assert (summary["questions"], summary["not_counted"]) == (3, 1)


@needs_shared
def test_the_published_rows():
    rows = infobench.read(SHARED / "infobench/prompts.jsonl")
    assert len(rows) == 500 and sum(row.input == "" for row in rows) == 275
    sizes = {name: [len(row.questions) for row in rows if row.subset == name] for name in infobench.SUBSETS}
    assert {name: (len(one), sum(one)) for name, one in sizes.items()} == {
        "Easy_set": (252, 690),
        "Hard_set": (248, 1560),
    }
    labels = collections.Counter(label for row in rows for one in row.labels for label in one)
    assert labels == {"Content": 1395, "Format": 794, "Number": 419, "Style": 190, "Linguistic": 168}
    assert all(row.prompt.endswith(row.input) for row in rows)


GOOD = {"id": "a", "instruction": "i", "input": "", "decomposed_questions": ["q"], "question_label": [["Style"]],
        "subset": "Easy_set"}  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    [
        ({"id": 3}, "'id' must be"),
        ({"decomposed_questions": []}, "is empty"),
        ({"decomposed_questions": "q"}, "must be a list of strings"),
        ({"question_label": []}, "one entry for each question"),
        ({"question_label": ["Style"]}, "must be a list of strings"),
        ({"subset": "Middle"}, "'subset' must be one of"),
        ({"input": None}, "'input' must be a string"),
    ],
)
def test_bad_rows(tmp_path, change, message):
    with pytest.raises(RowError, match=f"f:2: .*{message}"):
        infobench.read(write(tmp_path / "f", [GOOD, GOOD | {"id": "b"} | change]))


def test_a_row_is_one_conversation():
    row = _row("a", [["Style"]] * 3, given="The input.")
    ask = Replies("YES", "Well.", "NO")
    assert infobench.judge(row, "The text.", ask) == ["YES", "Well.", "NO"]
    system, first, *later = ask.asked[2]
    assert (system["role"], first["role"]) == ("system", "user")
    assert "The input." in first["content"] and "The text." in first["content"] and first["content"].endswith("q0?")
    assert "do it" not in first["content"]  # the judge never sees the instruction
    assert [one["content"] for one in later] == ["YES", "q1?", "Well.", "q2?"]
    ask = Replies("YES")
    infobench.judge(_row("a", [["Style"]], given=""), "The text.", ask)
    assert "=== input" not in ask.asked[0][1]["content"]


def test_later_questions_do_not_show_the_reasoning():
    ask = Replies("<think>Hm.</think>YES", "NO")
    infobench.judge(_row("a", [["Style"]] * 2), "x", ask)
    assert ask.asked[1][2]["content"] == "YES"


def test_a_conversation_ends_at_a_missing_reply_and_can_be_taken_up():
    row = _row("a", [["Style"]] * 3)
    assert infobench.judge(row, "x", Replies("YES", None)) == ["YES", None, None]
    ask = Replies("NO", "YES")
    assert infobench.judge(row, "x", ask, ["YES", None, None]) == ["YES", "NO", "YES"]
    assert [one["content"] for one in ask.asked[0][2:]] == ["YES", "q1?"]
