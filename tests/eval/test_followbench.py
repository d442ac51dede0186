"""FollowBench against the hand-computed aggregations, its groups, and its reading of judgements."""

import collections

import pytest
from judged_fixtures import SHARED, Replies, example, near, needs_shared, write

from hir_jax.data.readers import RowError
from hir_jax.eval.judged import followbench
from hir_jax.eval.judged.followbench import FollowBenchPrompt, parse


def _group(kind, number, source="quora", language="en"):
    return [
        FollowBenchPrompt(
            f"{kind}/{number}/{level}",
            kind,
            number,
            level,
            source,
            "",
            tuple(f"i{n}" for n in range(level + 1)),
            language,
        )
        for level in range(6)
    ]


def _example_group(kind, number, group):
    """Rows and judgements of a group of the shared file; null, an unreadable judgement, as unknown verdicts."""
    rows = _group(kind, number, "xsum" if group["kind"] == "rule" else "quora")
    judged = {}
    for row, verdicts in zip(rows[1:], group["levels"], strict=True):
        if group["kind"] == "rule":
            judged[row.key] = [verdicts]
        else:
            judged[row.key] = [None] * row.level if verdicts is None else [one == "YES" for one in verdicts]
    return rows, judged


def _aggregated(found, quirks):
    kind, rows, judged = found["constraint_type"], [], {}
    for number, group in enumerate(found["groups"]):
        more, verdicts = _example_group(kind, number, group)
        rows, judged = rows + more, judged | verdicts
    return followbench.aggregate(rows, judged, quirks)


@needs_shared
@pytest.mark.parametrize("quirks", [False, True])
def test_hand_computed_figures(quirks):
    found = example("followbench", "two_judged_groups")
    summary = _aggregated(found, quirks)
    figures, expected = summary["content"], found["expected"]
    for name in ("HSR", "SSR"):
        assert [f"{one:.2f}" for one in figures[name]] == expected[name]
        assert figures[f"{name}_weighted"] == near(expected[f"{name}_weighted"]) == summary[f"{name}_weighted"]
    assert (figures["CSL"], figures["groups"]) == (expected["CSL"], 2)
    assert (summary["rows"], summary["constraints"], summary["unknown"], summary["rows_absent"]) == (10, 30, 0, 0)


@needs_shared
def test_hand_computed_unreadable_judgement():
    found = example("followbench", "judged_and_rule_group_with_unreadable_judgement")
    figures, expected = _aggregated(found, True)["mixed"], found["expected"]
    for name in ("HSR", "SSR"):
        assert [f"{one:.2f}" for one in figures[name]] == expected[name]
    assert (figures["CSL"], figures["groups"]) == (expected["CSL"], 3)
    summary = _aggregated(found, False)
    assert summary["mixed"]["HSR"] == [100.0, 66.67, 33.33, 66.67, 66.67]  # level 3: 0 + 0 + 1 of 3
    assert summary["mixed"]["SSR"] == [100.0, 83.33, 33.33, 91.67, 66.67]
    assert summary["mixed"]["CSL"] == expected["CSL"]
    assert (summary["unknown"], summary["unknown_rows"]) == (3, 1)


@needs_shared
def test_hand_computed_reading():
    found = example("followbench", "judgement_text_and_example_template")
    for one in found["parse"]:
        for language in ("en", "zh"):
            verdicts = parse(one["text"], one["level"], language, published_quirks=True)
            figures = [-1, -1] if verdicts is None else [int(all(verdicts)), sum(verdicts) / one["level"]]
            assert figures == near(one[language]), (one["text"], language)
    for number, one in enumerate(found["template"]):
        row = FollowBenchPrompt("example/1/1", "example", number, 1, "xsum", one["target"], ("i",), "en")
        assert followbench.verdicts(row, one["response"], [], False) == [one["match"]]


@pytest.mark.parametrize(
    "text, level, english, chinese",
    [
        ("```\n['YES', 'NO']\n```", 2, [True, False], [True, False]),
        ("so: ['MAYBE', 'UNKNOWN']", 2, [False, False], [False, False]),
        ("['PARTIALLY', 'YES']", 2, None, [False, True]),
        ("['N/A', 'YES']", 2, [False, True], None),
        ("[“YES”, “NO”]", 2, None, [True, False]),
        ("[NO,YES]", 2, None, [False, True]),
        ("['YES', NO]", 2, None, [True, False]),
        ("['YES']", 2, None, None),
        ("['YES', 'YES', 'maybe']", 2, None, [True, True]),
        ("('YES', 'NO')", 2, None, None),
        ("['YES', open('x')]", 2, None, None),
        ("[['YES'], 'NO']", 2, None, None),
        ("[" * 10_000 + "]", 2, None, None),
        ("", 1, None, None),
        ("yes", 1, [True], [True]),
        ("**No.**", 1, [False], [False]),
        ("NO, not YES", 1, None, None),
        ("I KNOW", 1, None, None),
        ("```json\n['Yes', 'No']\n```", 2, [True, False], [True, False]),
        ("**['YES', 'NO']**.", 2, [True, False], [True, False]),
        ("<think>\n['NO', 'NO']\n</think>\n['YES', 'NO']", 2, [True, False], [True, False]),
        ("['YES', 'NO']\n</Think>\n['NO', 'NO']", 2, [False, False], [False, False]),
        ("<THINK>\n['NO', 'NO']", 2, None, None),
        ("['NO']\n", 1, [False], [False]),
    ],
)
def test_reading_of_judgements(text, level, english, chinese):
    assert (parse(text, level, "en"), parse(text, level, "zh")) == (english, chinese)


def test_a_conflict_is_unknown_but_for_the_published_reading():
    row = FollowBenchPrompt("style/1/1", "style", 1, 1, "s", "", ("", "i"), "en")
    for reply, quirks, wanted in (("NO, not YES", True, [True]), ("NO, not YES", False, [None]), ("yes", True, [None])):
        assert followbench.verdicts(row, "", [reply], quirks) == wanted


def test_missing_and_unreadable_judgements():
    rows = _group("style", 1)
    good = {row.key: [True] * row.level for row in rows[1:]}
    for found, published in ((None, 0.0), ([None] * 2, -100.0)):
        judged = good | {"style/1/2": found}
        assert followbench.aggregate(rows, judged, True)["style"]["HSR"] == [100.0, published, 100.0, 100.0, 100.0]
        summary = followbench.aggregate(rows, judged)
        assert summary["style"]["SSR"] == [100.0, 0.0, 100.0, 100.0, 100.0] and summary["style"]["CSL"] == 1.0
        assert (summary["unknown"], summary["unknown_rows"]) == (2, 1)
    # one constraint that is unknown: the others count without quirks
    judged = good | {"style/1/4": [True, None, True, True]}
    assert followbench.aggregate(rows, judged)["style"]["SSR"][3] == 75.0
    assert followbench.aggregate(rows, judged, True)["style"]["SSR"][3] == -100.0


def test_types_are_averaged_without_example_and_absent_rows_are_counted():
    rows = _group("style", 1) + _group("format", 1) + _group("example", 1)
    judged = {row.key: [row.constraint_type == "style"] * row.level for row in rows if row.constraint_type != "example"}
    judged |= {row.key: [True] for row in rows if row.constraint_type == "example"}
    summary = followbench.aggregate(rows[:3] + rows[6:], judged)
    assert summary["example"]["HSR_weighted"] == 100.0 and summary["format"]["CSL"] == 0.0
    assert summary["style"]["HSR"] == [100.0, 100.0, 0.0, 0.0, 0.0] and summary["rows_absent"] == 3
    assert summary["HSR_weighted"] == near((300 / 15 + 0) / 2)


GROUPS = {
    "en": {"content": 25, "situation": 22, "style": 30, "format": 30, "example": 40, "mixed": 17},
    "zh": {"content": 23, "situation": 22, "style": 30, "format": 30, "example": 40, "mixed": 13},
}
RULES = {
    "en": {"E2E": 5, "WIKIEVENTS": 2, "CONLL2003": 5, "BBH_logical": 5, "BBH_time": 1, "self_made_space": 1, "gsm_8k": 1,
           "text_editing": 3, "cnn_dailymail": 1, "xsum": 1, "samsum": 1, "gigaword": 1, "arxiv": 1, "format": 2},
    "zh": {"E2E": 5, "CONLL2003": 5, "BBH_logical": 5, "BBH_time": 1, "self_made_space": 1, "gsm_8k": 1,
           "text_editing": 2, "cnn_dailymail": 1, "xsum": 1, "samsum": 1, "gigaword": 1, "arxiv": 1, "format": 1},
}  # fmt: skip


@needs_shared
@pytest.mark.parametrize(
    "language, file, count, scored", [("en", "prompts.jsonl", 944, 820), ("zh", "prompts_zh.jsonl", 908, 790)]
)
def test_the_published_rows(language, file, count, scored):
    rows = followbench.read(SHARED / "followbench" / file, language)
    assert len(rows) == count and sum(bool(followbench.questions(row)) for row in rows) == scored
    last = [row for row in rows if row.level == 5]
    assert collections.Counter(row.constraint_type for row in last) == GROUPS[language]
    ruled = [row for row in last if row.has_rule and row.constraint_type != "example"]
    assert all(row.has_rule for row in last if row.constraint_type == "example")
    names = (("format" if row.constraint_type == "format" else row.source) for row in ruled)
    assert collections.Counter(names) == RULES[language]
    assert len({row.prompt for row in rows if row.level}) == scored
    for row in rows:
        assert len(row.instructions) == (row.level if row.constraint_type == "example" else row.level + 1)
        if row.level and row.has_rule:  # each has a rule that can be applied
            assert followbench.verdicts(row, "Anything.\n\n(A) $5 一。", [], False) in ([True], [False])
        else:
            assert len(followbench.questions(row)) == row.level
    equal = [row for row in rows if row.source in ("E2E", "text_editing") and row.level]
    assert equal and all(followbench.verdicts(row, row.target, [], False) == [True] for row in equal)


def _published(kind="style", number=1, levels=range(6)):
    return [
        {"constraint_type": kind, "example_id": number, "category": kind, "source": "s", "level": level,
         "instruction": f"i{level}", "target": ""}
        for level in levels
    ]  # fmt: skip


@pytest.mark.parametrize(
    "rows, message",
    [
        (_published(levels=(0, 1, 2, 4)), "f:4: a group's rows must have the levels 0 to 5"),
        (_published(levels=(0, 1, 2, 3, 4)), "ends before level 5"),
        (_published()[:5] + _published(number=2)[5:], "f:6: a group's rows"),
        (_published("example", levels=range(6)), "f:1: a group's rows must have the levels 1 to 5"),
        (_published() + _published(), "f:7: key 'style/1/0' was used before"),
        (_published("tone"), "f:1: 'constraint_type' must be one of"),
        ([_published()[0], _published()[1] | {"instruction": ""}], "f:2: 'instruction' must be a non-blank"),
        ([_published()[0] | {"level": "0"}], "f:1: 'level' must be an integer"),
    ],
)
def test_bad_files(tmp_path, rows, message):
    with pytest.raises(RowError, match=message):
        followbench.read(write(tmp_path / "f", rows), "en")


def test_the_judge_sees_all_versions_and_the_answer():
    row = _group("style", 1)[2]
    ask = Replies("1) ... 2) ...\n['YES', 'NO']")
    replies = followbench.judge(row, "The answer.", ask)
    assert followbench.verdicts(row, "", replies, False) == [True, False]
    shown = ask.asked[0][1]["content"]
    assert [text in shown for text in ("\ni0\n", "\ni1\n", "\ni2\n", "\ni3\n", "\nThe answer.\n")] == [True] * 3 + [
        False,
        True,
    ]
    assert followbench.judge(row, "x", Replies("I think so.", "['NO', 'NO']")) == ["['NO', 'NO']"]
    assert followbench.verdicts(row, "", ["I think so."], True) == [None, None]
    assert followbench.verdicts(row, "", [None], True) is None
    ruled = _group("mixed", 1, "xsum")[1]
    assert followbench.judge(ruled, "x", Replies()) == [] and followbench.calls(ruled) == 0
