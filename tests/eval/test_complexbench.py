"""ComplexBench against the hand-computed aggregations, its replies and its questions."""

import json

import pytest
from judged_fixtures import SHARED, Replies, example, near, needs_shared, write

from hir_jax.data.readers import RowError
from hir_jax.eval.judged import complexbench
from hir_jax.eval.judged.complexbench import ComplexBenchPrompt, Question, parse


def _question(labels=(), compositions=(), dep=(), rule=None, text="q?"):
    return Question(text, rule, tuple(labels), tuple(compositions), tuple(dep))


def _row(key, questions, group="g", compositions=("And",), category="And"):
    return ComplexBenchPrompt(
        key, f"prompt {key}", group, "Custom Writing", category, tuple(compositions), tuple(questions)
    )


def _example_row(one):
    questions = [
        _question(question["constraint_dimensions"], question["composition_types"], question["dep"])
        for question in one["scoring_questions"]
    ]
    return ComplexBenchPrompt(
        one["main_id"],
        "p",
        one["group"],
        one["task_types"],
        one["category"],
        tuple(one["composition_types"]),
        tuple(questions),
    )


@needs_shared
@pytest.mark.parametrize(
    "name, quirks",
    [
        ("selection_dependencies", False),
        ("selection_dependencies", True),
        ("one_step_dependency_and_unknown_rule_result", True),
        ("coherent_test", False),
        ("coherent_test", True),
    ],
)
def test_hand_computed_figures(name, quirks):
    found = example("complexbench", name)
    rows = [_example_row(one) for one in found["rows"]]
    judged = {one["main_id"]: one["point_judges"] for one in found["rows"]}
    expected = dict(found["expected"])
    after = expected.pop("after_dependency", None)
    if after:
        assert [complexbench.after_dependencies(row, judged[row.key]) for row in rows] == after
    summary = complexbench.aggregate(rows, judged, quirks)
    assert {name: summary[name] for name in expected} == near(expected)
    assert (summary["unknown"], summary["rows"]) == (0, len(rows))


@needs_shared
def test_a_rule_of_no_known_kind_is_unknown_without_quirks():
    found = example("complexbench", "one_step_dependency_and_unknown_rule_result")
    rows = [_example_row(one) for one in found["rows"]]
    judged = {one["main_id"]: one["point_judges"] for one in found["rows"]}
    summary = complexbench.aggregate(rows, judged)
    # the 2 is the Length question with And of the second row: not met anywhere
    assert summary["each"] == near(
        {"Factuality": 0, "Length": 0, "Chain": 0.5, "Keywords": 1, "And": 0, "Sentiment": 1}
    )
    assert summary["overall_drfr"] == 0.4 and (summary["unknown"], summary["unknown_rows"]) == (1, 1)


def test_what_depends_on_an_unknown_question_is_not_met():
    row = _row(
        1, [_question(["Length"]), _question(["Length"], dep=[0]), _question(["Topic"], dep=[0, 1]), _question(["?"])]
    )
    assert complexbench.after_dependencies(row, [None, True, False, True]) == [None, None, False, True]
    assert complexbench.after_dependencies(row, [True, None, True, None]) == [True, None, None, None]
    summary = complexbench.aggregate([row], {1: [None, True, True, True]})
    assert summary["overall_drfr"] == 0.25 and (summary["unknown"], summary["unknown_rows"]) == (1, 1)
    assert summary["grouped"] == near({"Structure": 0, "Semantic": 0, "Others": 1})
    # published: no reply counts as no
    assert complexbench.aggregate([row], {1: [None, True, True, True]}, True)["unknown"] == 0
    assert complexbench.aggregate([row], {})["unknown"] == 4


def test_the_coherent_test_without_groups_of_a_kind():
    summary = complexbench.aggregate([_row(1, [_question(compositions=["Selection"])])], {1: [False]})
    assert summary["single"] == {"origin": 0.0, "coherent": 0.0, "relative_drop": None}
    assert summary["multiple"] == {"origin": None, "coherent": None, "relative_drop": None}


@pytest.mark.parametrize(
    "reply, verdict, published",
    [
        ("理由。\n答案：是", True, True),
        ("答案：否", False, False),
        ("答案：是。答案：否", None, False),
        ("答案：是。答案：是", True, True),
        ("答案：否，答案：否", False, False),
        ("是", None, True),
        ("这是对的", None, True),
        ("是否", None, False),
        ("答案:是", None, True),
        ("YES", None, False),
        ("", None, False),
        ("答案：**是**。", True, True),
        ("**答案：“否”**", False, False),
        ("<think>\n要么答案：是，要么答案：否。\n</think>\n答案：是", True, True),
        ("<THINK>\n答案：是", None, False),
        ("答案：否\n</think>答案：是", True, True),
    ],
)
def test_reading_of_replies(reply, verdict, published):
    assert (parse(reply), parse(reply, published_quirks=True)) == (verdict, published)


def test_verdicts_by_judge_and_by_rule():
    rules = (None, "model_length:[1,3]", "forbidden_word:[x]", "tone:calm")
    row = _row(1, [_question(rule=rule) for rule in rules])
    replies = ["答案：是", "评分对象：abcd", "评分对象：None", "评分对象：all"]
    assert complexbench.verdicts(row, "The response.", replies, False) == [True, False, True, 2]
    assert complexbench.verdicts(row, "abc", ["?", "评分对象：all", " ", None], False) == [None, True, None, None]
    assert complexbench.verdicts(row, "abc", [None] * 4, True) == [False, False, True, 2]
    thought = ["<think>评分对象：None。</think>" + reply for reply in replies]
    assert complexbench.verdicts(row, "The response.", thought, False) == [True, False, True, 2]
    assert (
        complexbench.verdicts(row, "abc", ["<think>答案：是", "<think>评分对象：all", None, None], False)[:2]
        == [None] * 2
    )


@needs_shared
def test_the_published_rows():
    rows = complexbench.read(SHARED / "complexbench/instructions.jsonl")
    assert [row.key for row in rows] == list(range(1150)) and not any(row.questions for row in rows)
    (row,) = complexbench.read(SHARED / "complexbench/example_row.jsonl")
    assert (row.key, len(row.questions), row.category) == (899, 9, "Selection_2")
    assert [question.dep for question in row.questions] == [(), (), (0,), (0,), (0,), (0,), (1,), (1,), (1,)]
    assert [question.rule for question in row.questions if question.rule] == [
        "model_length:[300,10000]",
        "model_length:[1,100]",
    ]
    (english,) = complexbench.read(SHARED / "complexbench/example_row.jsonl", english=True)
    assert english.prompt.startswith("Sequentially determine") and english.questions[0].text.startswith(
        "Does the model"
    )


GOOD = {
    "main_id": 1, "group": "g", "instruction": "i", "task_types": "t", "category": "And", "composition_types": ["And"],
    "scoring_questions": [
        {"question": "q?", "rule": None, "constraint_dimensions": ["Length"], "composition_types": [], "dep": []}
    ],
}  # fmt: skip


def test_a_json_list_is_read_as_well(tmp_path):
    path = tmp_path / "f"
    path.write_text(json.dumps([GOOD, GOOD | {"main_id": 2}], indent=1))
    assert [row.key for row in complexbench.read(path)] == [1, 2]
    for content, message in (("[1]", "entry 0: a JSON object"), ("[{}", "not JSON"), ("", "holds no rows"),
                             (json.dumps([GOOD, GOOD]), "entry 1: key 1 was used before")):  # fmt: skip
        path.write_text(content)
        with pytest.raises(RowError, match=message):
            complexbench.read(path)
    with pytest.raises(RowError, match="cannot be read"):
        complexbench.read(tmp_path / "absent")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dep": [1]}, "'dep' must be"),
        ({"dep": None}, "'dep' must be"),
        ({"question": ""}, "'question' must be"),
        ({"rule": 3}, "'rule' must be"),
        ({"constraint_dimensions": "Length"}, "must be a list of strings"),
    ],
)
def test_bad_questions(tmp_path, change, message):
    row = GOOD | {"main_id": 2, "scoring_questions": [GOOD["scoring_questions"][0] | change]}
    with pytest.raises(RowError, match=f"f:2: question 0: .*{message}"):
        complexbench.read(write(tmp_path / "f", [GOOD, row]))


def test_bad_rows(tmp_path):
    for change, message in (
        ({"main_id": None}, "'main_id' must be"),
        ({"group": 3}, "'group' must be"),
        ({"scoring_questions": 3}, "list of objects"),
    ):
        with pytest.raises(RowError, match=f"f:1: .*{message}"):
            complexbench.read(write(tmp_path / "f", [GOOD | change]))


def test_one_call_per_question():
    rules = (None, "length:[1,2]", "model_length_each:[1,2]")
    row = _row(1, [_question(rule=rule, text=f"q {rule}") for rule in rules])._replace(prompt="P" * 7000)
    ask = Replies("答案：是", "评分对象：all", "评分对象：a||b")
    assert complexbench.judge(row, "R" * 5000, ask) == ["答案：是", "评分对象：all", "评分对象：a||b"]
    systems = [conversation[0]["content"] for conversation in ask.asked]
    assert "答案：是" in systems[0] and "||" not in systems[1] and "||" in systems[2]
    shown = ask.asked[0][1]["content"]
    assert shown.count("P") == 6000 and shown.count("R") == 4000 and "q None" in shown
    # asked once more where a reply cannot be read; what is there is not asked for
    ask = Replies("Well.", "答案：否", None)
    assert complexbench.judge(row, "x", ask, [None, "kept", None]) == ["答案：否", "kept", None]
    assert len(ask.asked[1]) == 4
