"""Rows of IF-RLVR in the published form."""

import json

TASK = "Tell me about harbours."
# (id, kwargs, text), as published
COMMA = ("punctuation:no_comma", None, "In your entire response, refrain from the use of any commas.")
ONCE = ("keywords:word_once", {"keyword": "tide"}, "Include keyword tide in your response.")
BULLETS = (
    "detectable_format:number_bullet_lists",
    {"num_bullets": 2},
    "Your answer must contain exactly 2 bullet points. Use the markdown bullet points such as:\n* This is point 1. \n"
    "* This is point 2",
)
FREQUENCY = (
    "keywords:frequency",
    {"keyword": "crane", "frequency": 2, "relation": "at least"},
    "In your response, the word crane should appear at least 2 times.",
)
TIMES = (
    "keywords:word_count_different_numbers",
    {"keyword": "crane", "frequency": 2, "relation": "less than"},
    "In your response, the word crane should appear 2 times.",
)
SENTENCES = (
    "last_word:last_word_sent",
    {"last_word": "sea"},
    "The last word of each sentence, before punctuation, should be the word sea.",
)


def row(*constraints, task=TASK, join=" ", key="one", dump=repr, **changes):
    kwargs = [None if given is None else given | {"unused": None} for _, given, _ in constraints]
    truth = dump([{"instruction_id": [id for id, _, _ in constraints], "kwargs": kwargs}])
    content = join.join([task, *(text for _, _, text in constraints)])
    made = {"key": key, "messages": [{"role": "user", "content": content}], "ground_truth": truth, "dataset": "ifeval"}
    return made | changes


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
