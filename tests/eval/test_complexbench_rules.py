"""Each kind of ComplexBench's rules by hand-worked pieces, met and not met, and the reading of extractions."""

import pytest

from hir_jax.eval.judged.base import UNDECIDED
from hir_jax.eval.judged.complexbench_rules import HEADING, check, pieces

# rule, pieces that meet it, pieces that do not
KINDS = [
    ("keyword:[海, 山]", [["山和海"], ['"山和海"'], ["山海", "无"]], [["山"], [], [""], ["None 山海"]]),
    ("keyword:[A,B.]", [["A！B."], ["A B。"]], [["B"]]),  # both sides have wide marks
    ("forbidden_word:[海,山]", [["水"], [], [""], ["None 海"]], [["水和海"]]),
    ("keyword:[海]\nforbidden_word:[山]", [["海"]], [["山"], ["山海"], [], ["水"]]),
    ("startswith:好,", [["好，我来"], ["好,我来"], ["“好，我来”"]], [["你好，"], [], [""]]),
    ("endswith:谢谢", [["谢谢"], ["谢谢。"], ["谢谢？"], ["谢谢."], ["`谢谢`"]], [["谢谢！"], ["谢谢你"], []]),
    ("not endswith:谢谢", [["谢谢！"], [], [""], ["None"]], [["多谢谢"], ["谢谢。"], ["谢谢?"]]),
    ("startswith:好\nendswith:谢谢", [["好的，谢谢。"]], [["好的"], ["不好，谢谢"], []]),
    ("length:[2,3]", [["一二"], ["一二三"], ["“一二三”"]], [["一"], ["一二三四"], []]),
    ("length_word:[2,3]", [["one two"], ["one  two\nthree"]], [["one"], ["a b c d"], []]),
    ("match:是", [["是"], ["是。"], ["是."], ['"是"'], ["`是`"]], [["是的"], ["不是"], ["是？"], []]),
    ("match:好.", [], [["好."], ["好。"]]),  # the value's marks stay, the text's do not
    ('Json:["a","b"]', [['{"a": 1, "b": {"c": 2}}'], ['So: {"b": 1, "a": 2} and {"c"}']],
     [['{"a": 1}'], ['{"a": 1, "b": 2, "c": 3}'], ["{a}"], ["[1]"], [], ['{"a": {"b": 1}']]),
    ("Json:[]", [['{"a": 1}'], ["{}"]], [['["a"]'], ["none"], []]),
    ('Json:[""]', [['{"a": 1}']], [["x"]]),
    ("constraint_punc:[。]", [["好。"], ["好."], ["好"], ['"好。"'], ["好、好。"]], [["好，好。"], ["好!"], []]),
    ("model_keyword:[海,山]", [["山海"], ["山海", "无"]], [["山", "海"], [], [""]]),
    ("model_keyword:[a,b.]", [["a b。"]], [["a b."]]),  # the text's marks stay
    ("model_forbidden_word:[海]", [["山", "海"], [], [""]], [["海"]]),
    ("model_keyword_num:[1,2,海,山,水]", [["海"], ["海和山"], ["海", ""]], [["天"], ["山海水"], [], [""]]),
    ("model_length:[2,2]", [["一二"], ["“一二”"], ["一二", "三"]], [["一"], ["一二三"], []]),
    ("model_length_word:[2,2]", [["a b"], ['"a b"']], [["a"], [""]]),
    ("model_startswith:好.", [["好。的"], ["好.的"]], [["“好。的”"], [], [""]]),  # no quotes are taken off
    ("model_endswith:好", [["很好"], ["很好。"], ["很好?"]], [["很好！"], ["“很好”"], []]),
    ("model_startswith:a\nmodel_endswith:b", [["a b"], ["ab."]], [["a"], ["b"], [], [""]]),
    ("model_not_startswith:好", [["很好"], [], [""]], [["好的"]]),
    ("model_not_endswith:好", [["好的"], [], [""]], [["很好"], ["很好？"]]),
    ("model_constraint_punc:[，]", [["好，好"], ["“好”"], ["好.好"]], [["好。好"], []]),  # ASCII marks stay unseen
    ("model_keyword_each:[海]", [["海", "大海"], ["海", ""]], [["海", "山"], [], [""]]),
    ("model_forbidden_word_each:[海.]", [["山", "水"], [], [""]], [["山", "海."]]),
    ("model_keyword_num_each:[1,1,海,山]", [["海", "山"], ["海", ""]], [["海", "山海"], ["天"], [], [""]]),
    ("model_keyword_num_each:[1,1,海,山]\nmodel_forbidden_word_each:[水,火]", [["海", "山"]],
     [["海水"], ["海", "山火"], ["天"], [], [""]]),
    ("model_number_each:[2,3]", [["a", "b"], ["a", "", "c"]], [["a"], ["a"] * 4, [], [""]]),
    ("model_length_each:[1,2]", [["一", "一二", ""], ["“一二”"]], [["一", "一二三"], [], [""]]),
    ("model_length_word_each:[1,2]", [["a", "a b"]], [["a b c"], []]),
    ("model_startswith_each:第", [["第一", "第二", ""]], [["第一", "二"], [], [""]]),
    ("model_starts_with_list_each:[一, 二]", [["一、天", "二、地"], ["一", ""]], [["二", "一"], ["一"], [], [""]]),
    ("model_endswith_each:！", [["好!", "好！", "好"], ["好！"], ["“好！”", "x"]], [["好", "好！"], ["好"], [], [""]]),
    ("model_not_endswith_each:好", [["好的", "是"], [], [""]], [["是", "很好。"]]),
    ("model_constraint_punc_each:[。]", [["好。", "好."], ['"好"']], [["好。", "好！"], ["a\"b"], [], [""]]),
]  # fmt: skip


@pytest.mark.parametrize(
    "rule, good, bad", KINDS, ids=[rule.partition(":")[0] + str(n) for n, (rule, *_) in enumerate(KINDS)]
)
def test_kinds_of_rules(rule, good, bad):
    for quirks in (False, True):
        assert [(one, check(rule, one, quirks)) for one in good] == [(one, True) for one in good]
        assert [(one, check(rule, one, quirks)) for one in bad] == [(one, False) for one in bad]


@pytest.mark.parametrize(
    "rule",
    ["model_Json:[]", "keyword_each:[a]", "each", "tone:calm", "", "length:[a]", "length:5", "model_keyword_num:[1]",
     "model_length:[1,2", "Json:[x]"],
)  # fmt: skip
def test_rules_of_no_known_kind_or_form(rule):
    assert check(rule, ["text {}"]) == UNDECIDED == check(rule, ["text {}"], published_quirks=True)


@pytest.mark.parametrize("rule, text", [("keyword:[teacher]", "a teacher"), ("startswith:model", "model 3")])
def test_model_or_each_inside_a_plain_rule_is_a_published_quirk(rule, text):
    assert check(rule, [text]) is True and check(rule, [text], published_quirks=True) == UNDECIDED


@pytest.mark.parametrize(
    "extraction, found",
    [
        ("评分对象：甲 || 乙||丙 ", ["甲", "乙", "丙"]),
        ("评测对象：甲", ["甲"]),
        ("结果：甲：乙", ["乙"]),
        ("评测对象：甲\n评分对象：乙", ["乙"]),
        ("甲", ["甲"]),
        ("评分对象：all", ["The response."]),
        ("评分对象：all of it", ["The response."]),
        ("评分对象： all", ["all"]),
        ("评分对象：None", []),
        ("评分对象：甲||None", []),
        ("评分对象：", [""]),
        (f"评分对象：甲\n{HEADING}乙", ["乙"]),
        ("评分对象：甲\n\n请注意：乙", ["甲"]),
        ("评分对象：甲\n\n**注意：乙**", ["甲"]),
        ("评分对象：甲\n\n注意：乙\n\n注意：丙", ["甲\n\n注意：乙"]),
    ],
)
def test_reading_of_extractions(extraction, found):
    assert pieces(extraction, "The response.") == found
