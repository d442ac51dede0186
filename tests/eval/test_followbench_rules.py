"""Each rule of FollowBench by hand-worked texts, met and not met."""

import pytest

from hir_jax.eval.judged.followbench_rules import check, has_rule, matches_template

TWENTY_ONE = " ".join(["word"] * 21)
LONG = "字" * 21


def _levels(source, text, language="en", kind="mixed", number=1, target=""):
    """The levels that the text meets."""
    return [level for level in range(1, 6) if check(kind, number, source, level, target, text, language)]


@pytest.mark.parametrize(
    "source, text, levels",
    [
        # three sentences; each under 15 words; Potter, actor, films in order; no lavish in the second; has/have in the third
        ("cnn_dailymail", "Potter won. The actor rests! He has made films?", [1, 2, 3, 4, 5]),
        ("cnn_dailymail", "Potter won. The actor rests. He made films.", [1, 2, 3, 4]),
        ("cnn_dailymail", "Potter won. The lavish actor rests. He has films.", [1, 2, 3]),
        ("cnn_dailymail", "potter won. The actor rests. He has films.", [1, 2]),
        ("cnn_dailymail", "The actor. Potter. He has films.", [1, 2]),
        ("cnn_dailymail", "Potter won. The actor rests. He has made films " + "so " * 11 + ".", [1]),
        ("cnn_dailymail", "Potter won. The actor rests.", []),
        ("cnn_dailymail", "Potter won. The actor rests. He has made films. ", []),  # the blank tail is a fourth
        ("xsum", "The operation is running today.", [1, 2, 3, 4, 5]),
        ("xsum", "The operations are running today.", [1, 2, 3, 4]),  # a word, not a part of one
        ("xsum", "The operation runs today.", [1, 2, 3]),
        ("xsum", "The operation in Newton Stewart is running.", [1, 2]),
        ("xsum", "The operation is running" + " a" * 16, [1]),  # 20 words
        ("xsum", "The operation is running" + " a" * 15, [1, 2, 3, 4, 5]),  # 19
        ("xsum", "The operation  is running" + " a" * 15, [1]),  # pieces at single spaces: 20
        ("xsum", "It is. The operation is running.", []),
        ("samsum", "Kim has stuff to do.", [1, 2, 3, 4, 5]),
        ("samsum", "Kim has stuff to do", [1, 2, 3, 4]),
        ("samsum", "Kim, Tim: stuff to do.", [1, 2, 3, 4]),
        ("samsum", "Kim PROCRASTinates stuff.", [1, 2, 3]),
        ("samsum", "Kim has Stuff to do.", [1, 2]),
        ("samsum", "stuff" + " a" * 14 + ".", [1]),
        ("samsum", "stuff. More.", []),
        ("gigaword", "at least two dead in southern philippines blast", [1, 2, 3, 4, 5]),
        ("gigaword", "at least two dead as southern philippines blast", [1, 2, 3, 4]),
        ("gigaword", "at least two dead in southern bus blast", [1, 2, 3]),
        ("gigaword", "At least two dead in southern philippines blast", [1, 2]),
        ("gigaword", "at least two dead in southern philippines blast.", [1]),
        ("gigaword", "two dead in blast", []),
        ("arxiv", "We edit activations.", [1, 2, 3, 4, 5]),
        ("arxiv", "We edit transformer activations.", [1, 2, 3, 4]),
        ("arxiv", "We edit activation.", [1, 2, 3]),
        ("arxiv", "They edit activations.", [1, 2]),
        ("arxiv", "We edit activations" + " a" * 17, [1, 2, 3, 4, 5]),  # 20 words
        ("arxiv", "We edit activations" + " a" * 18, [1]),
        ("arxiv", "We. Edit.", []),
    ],
)
def test_english_rules_by_level(source, text, levels):
    assert _levels(source, text) == levels


@pytest.mark.parametrize(
    "source, text, levels",
    [
        ("cnn_dailymail", "波特成年。演员努力！电影上映了？", [1, 2, 3, 4, 5]),
        ("cnn_dailymail", "波特成年。演员努力。电影上映。", [1, 2, 3, 4]),
        ("cnn_dailymail", "波特成年。奢侈的演员。电影上映了。", [1, 2, 3]),
        ("cnn_dailymail", "演员成年。波特努力。电影上映了。", [1, 2]),
        ("cnn_dailymail", "波特成年。演员努力。电影上映了" + "很" * 9 + "。", [1, 2, 3, 4, 5]),  # 14 characters
        ("cnn_dailymail", "波特成年。演员努力。电影上映了" + "很" * 10 + "。", [1]),
        ("cnn_dailymail", "波特成年. 演员努力. 电影上映了.", []),
        ("xsum", "清理操作正在进行。", [1, 2, 3, 4, 5]),
        ("xsum", "清理正在进行。", [1, 2, 3, 4]),
        ("xsum", "清理操作。", [1, 2, 3]),
        ("xsum", "牛顿斯图尔特在操作。", [1, 2]),
        ("xsum", "在操作" + "很" * 16 + "。", [1]),  # 20 characters
        ("samsum", "金有琐碎的事。", [1, 2, 3, 4, 5]),
        ("samsum", "金有琐碎的事", [1, 2, 3, 4]),
        ("samsum", "金，有琐碎的事。", [1, 2, 3, 4]),
        ("samsum", "拖沓的金有琐碎的事。", [1, 2, 3]),
        ("samsum", "金有事。", [1, 2]),
        ("gigaword", "两人死在炸弹之下", [1, 2, 3, 4, 5]),
        ("gigaword", "两人死于炸弹之下", [1, 2, 3, 4]),
        ("gigaword", "公交车上死了两人", [1, 2, 3]),
        ("gigaword", "有2人死在炸弹下", [1, 2]),
        ("gigaword", "两人死在炸弹下。", [1]),
        ("gigaword", "两人死", []),
        ("arxiv", "我们修改激活。", [1, 2, 3, 4, 5]),
        ("arxiv", "我们改transformer激活。", [1, 2, 3, 4]),
        ("arxiv", "我们修改权重。", [1, 2, 3]),
        ("arxiv", "他们修改激活。", [1, 2]),
        ("arxiv", "我们激活" + "很" * 17, [1]),  # 21 characters
    ],
)
def test_chinese_rules_by_level(source, text, levels):
    assert _levels(source, text, "zh") == levels


@pytest.mark.parametrize(
    "source, target, good, bad",
    [
        ("E2E", "name[A], food[B]", ["name[A], food[B]"], ["name[A], food[B] ", "name[A]"]),
        ("text_editing", "a\nb", ["a\nb"], ["a\nb\n"]),
        ("WIKIEVENTS", "x y\nz", ["z", "x y\nz", "z\nx y\nz"], ["x", "z\n", "", "z\nw"]),
        ("CONLL2003", "['Bonn', 'France']", ["Bonn", "France"], ["bonn", "Bonn.", "Bonn, France", "B"]),
        ("BBH_logical", "(B)", ["(A) no, (B)", "(B) is it"], ["(B), no (A)", "B", "(b)"]),
        ("BBH_time", "12/29/1937", ["no 01/01/2000 but 12/29/1937."], ["12/29/1937 or 12/30/1937", "12/29/37"]),
        ("gsm_8k", "$14", ["$10 + $4 = $14", "$14.00"], ["$14 and $5", "14", "$140"]),
        ("self_made_space", "20th floor", ["He is on the 20th floor now."], ["20 floor"]),
    ],
)
def test_rules_by_target(source, target, good, bad):
    for language in ("en", "zh"):
        if (source, language) == ("gsm_8k", "zh"):
            continue
        for text in good:
            assert _levels(source, text, language, "content", target=target) == [1, 2, 3, 4, 5]
        for text in bad:
            assert _levels(source, text, language, "content", target=target) == []


def test_chinese_dollars():
    assert check("situation", 8, "gsm_8k", 1, "14美元", "10美元加4美元是14美元。", "zh")
    assert not check("situation", 8, "gsm_8k", 1, "14美元", "14美元，不是10美元。", "zh")
    assert not check("situation", 8, "gsm_8k", 1, "14美元", "$14", "zh")


@pytest.mark.parametrize(
    "text, levels",
    [
        (f"{TWENTY_ONE}.\n\n{TWENTY_ONE}.\n\n{TWENTY_ONE}", [1, 2, 3]),
        (f"{TWENTY_ONE}.\n\nshort.\n\n{TWENTY_ONE}.", [1, 2]),
        ("a. b. c\n\na\n\na", [1]),
        ("a\n\nb", []),
        ("a\n\nb\n\nc\n\nd", []),
        (f"1. {TWENTY_ONE}\n\n2. {TWENTY_ONE}\n\n3. {TWENTY_ONE}", [1, 2]),  # the 1 is a short sentence
    ],
)
def test_format_22(text, levels):
    assert _levels("helpful_base", text, "en", "format", 22) == levels


def test_format_22_in_chinese_can_be_met_up_to_the_end():
    blocks = [f"{number}.{LONG}。" for number in (1, 2, 3)]
    assert _levels("helpful_base", "\n\n".join(blocks), "zh", "format", 22) == [1, 2, 3, 4]
    assert _levels("helpful_base", "\n\n".join([*blocks, f"4.{LONG}这些是建议"]), "zh", "format", 22) == [5]
    assert _levels("helpful_base", "\n\n".join([*blocks, f"4.{LONG}这些是建议。"]), "zh", "format", 22) == []
    assert _levels("helpful_base", "\n\n".join([*blocks, f"{LONG}这些是建议"]), "zh", "format", 22) == []


def _points(count):
    return " ".join(f"**{n}. Key: {' '.join(['so'] * 11)}." for n in range(1, count + 1))


def test_format_30():
    assert _levels("x", "none", "en", "format", 30) == []
    assert _levels("x", _points(4), "en", "format", 30) == [1]
    # "**1." ends a sentence of its own: those are short, so that level 4 fails
    assert _levels("x", _points(5), "en", "format", 30) == [1, 2, 3]
    # without white space after the number the sentences have 12 words and two dots' pieces
    tight = " ".join(f"**{n}.Key: {' '.join(['so'] * 11)}." for n in range(1, 6))
    assert _levels("x", tight, "en", "format", 30) == [1, 2]
    joined = " ".join(f"**{n}.Key: {' '.join(['so'] * 10)} end?" for n in range(1, 6))
    assert _levels("x", joined, "en", "format", 30) == [1, 2, 3, 4, 5]
    assert _levels("x", joined.replace("end?", "-ly ?", 1), "en", "format", 30) == [1, 2, 3, 4]
    assert _levels("x", joined + " Short one?", "en", "format", 30) == [1, 2, 3]


@pytest.mark.parametrize(
    "target, good, bad",
    [
        (
            "{instruction}\n#Bot#\n{answer}",
            ["#Bot#\n", "#Bot#\nx y"],
            ["#Bot#", "#bot#\nx", "#Bot#\nx\n", "\n#Bot#\nx"],
        ),
        ("{instruction}\n{{'a': '{answer}'}}", ["{'a': 'x'}", "{'a': ''}"], ["{{'a': 'x'}}", "{'a': 'x'} "]),
        ("{instruction}\nIs (it)? {answer}", ["Is (it)? yes"], ["Is it yes", "I (it)? yes"]),
        ("{instruction}\n<body>{answer}</body>", ["<body>b</body>"], ["<body>b\nc</body>"]),
    ],
)
def test_templates(target, good, bad):
    assert all(matches_template(target, text) for text in good)
    assert not any(matches_template(target, text) for text in bad)


def test_who_decides():
    assert has_rule("mixed", 3, "xsum", "en") and has_rule("example", 3, "any", "zh")
    assert has_rule("format", 22, "helpful_base", "zh") and has_rule("format", 30, "oasst", "en")
    assert not has_rule("format", 30, "oasst", "zh")
    assert not has_rule("style", 22, "helpful_base", "en")
