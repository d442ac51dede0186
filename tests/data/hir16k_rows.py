"""Two hundred rows in HIR-16K's format, in our own words: every source with every template, and every fault.

`good_rows()` gives rows with the instruction that each must be read as; `bad_rows()` rows with the reason that each
must be refused for. Both are the same on every call.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hir_jax.types import Constraint, Instruction

Row = dict[str, Any]

TASKS = (
    "Explain to a child why the moon changes its shape.",
    "Write a letter to a neighbour whose dog barks at night",
    "Plan a weekend in a small town by the sea.\nTwo friends come along, one of whom cannot swim.",
    "What should I look for when I buy a used bicycle?",
    "Summarise the life of a honey bee: egg, larva, pupa, adult.",
    "Describe how bread is baked, from the grain to the loaf.",
    "Tell me about « la fête de la musique » – what is it & when is it?",
)

# (id, arguments, text) by source. Texts end with or without a punctuation mark, and may hold several sentences.
IFEVAL = (
    ("punctuation:no_comma", {}, "Do without commas"),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 120}, "Use 120 words or more."),
    ("keywords:existence", {"keywords": ["harbour", "lantern"]}, "Mention a harbour and a lantern!"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 4}, "Give exactly 4 points, each in a line that starts with *"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 3, "let_relation": "at least"}, "Have the letter q 3 times."),
    ("startend:end_checker", {"end_phrase": "That is all."}, "Your last words are: That is all."),
    ("detectable_format:title", {}, "Put a title in double angular brackets on top, as in <<this>>."),
    ("keywords:forbidden_words", {"forbidden_words": ["very"]}, 'Avoid the word "very"'),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 3}, "Write 3 paragraphs. Part them by ***"),
)  # fmt: skip
IFBENCH = (
    ("count:numbers", {"N": 5}, "Have exactly 5 numbers in it."),
    ("count:word_count_range", {"min_words": 50, "max_words": 90}, "Stay between 50 and 90 words"),
    ("format:emoji", {}, "Close each sentence with an emoji"),
    ("format:no_whitespace", {}, "Leave out all white space."),
    ("words:start_verb", {}, "The first word must be a verb"),
    ("count:unique_word_count", {"N": 40.0}, "Use 40 different words at the least."),
    ("ratio:sentence_balance", {}, "Ask, state and exclaim equally often!"),
)
MULDIMIF = (
    ("Content", "Keywords", 'The answer must contain the word "river".', "muldimif:content_keywords"),
    ("Length", "Words", "The answer must have at most 150 words", "muldimif:length_words"),
    ("Length", "Sentences", "At least 6 sentences are needed.", "muldimif:length_sentences"),
    ("Format", "Markdown", "Use headings of two levels.", "muldimif:format_markdown"),
    ("Language", "English", "All letters are capital letters", "muldimif:language_english"),
    ("Content", "Punctuation", "The answer must end with a question mark.", "muldimif:content_punctuation"),
    ("Table", "Row limit", "Tables may have up to 8 rows", "muldimif:format_table"),
)
_CHECKER = "def check_following(instruction, response):\n    return {}\n"
JUDGED = (
    ("[llm] tone", "from llm_call import llm_score\n", "Keep a calm, friendly tone."),
    ("[rule] words", _CHECKER.format("len(response.split()) > 20"), "Use more than 20 words"),
    ("[llm] audience", "", "Write for people who have never heard of the matter"),
    ("[rule] ending", "import re\n\n" + _CHECKER.format("bool(re.search(r'[.!?]$', response))"), "End with a full sentence."),
    ("[llm] structure", "", "Go from the known to the unknown."),
    ("[rule]", _CHECKER.format("'\\n\\n' in response and '#' not in response"), "Two paragraphs or more, and no headings"),
)  # fmt: skip


def rendered(task: str, texts: list[str], template: str) -> str:
    """The six templates, written independently from the description of the released data."""
    sentences = " ".join(text if text[-1] in ",.?!" else text + "." for text in texts)
    numbered = "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))
    return {
        "type1": f"{task} {sentences}",
        "type2": f"{task}\n{sentences}",
        "type3": f"{task}\n\nThe output must follow the following rules:\n{numbered}",
        "type4": f"{task}\n\n" + "\n".join(f"- {text}" for text in texts),
        "type5": f"{sentences}\n\n{task}",
        "type6": f"{task}\n\n" + "\n".join(texts),
    }[template]


def _some(options: tuple, start: int, count: int) -> list:
    return [options[(start + i) % len(options)] for i in range(count)]


def _truth(source: str, start: int, count: int) -> tuple[Row, list[Constraint]]:
    """(ground truth, the constraints that it describes)."""
    if source in ("type1", "type2"):
        chosen = _some(IFEVAL if source == "type1" else IFBENCH, start, count)
        truth = {"instruction_id_list": [id for id, _, _ in chosen], "kwargs": [dict(given) for _, given, _ in chosen]}
        return truth, [Constraint(*one) for one in chosen]
    if source == "type3":
        chosen = _some(MULDIMIF, start, count)
        truth = {"constraints": [list(levels) for *levels, _ in chosen], "constraint_pattern": "listing"}
        return truth, [
            Constraint(id, {"name": f"{first}_{second}", "wording": text}, text) for first, second, text, id in chosen
        ]
    chosen = _some(JUDGED, start, count)
    truth = {"checker": [checker for checker, _, _ in chosen], "functions": [source for _, source, _ in chosen]}
    return truth, [
        Constraint("code:python", {"source": source, "function": "check_following"}, text)
        if checker.startswith("[rule]")
        else Constraint("soft", {}, text)
        for checker, source, text in chosen
    ]


def good_row(number: int, source: str, template: str) -> tuple[Row, Instruction]:
    task = TASKS[number % len(TASKS)]
    truth, constraints = _truth(source, number, 5 + number % 3)
    texts = [constraint.text for constraint in constraints]
    row = {
        "id": number,
        "source": source,
        "prompt": rendered(task, texts, template),
        "criteria": texts,
        "ground_truth": truth,
        "extra_info": {"question": task, "criteria": list(texts), "q_type": template},
    }
    return row, Instruction(task, tuple(constraints), template, number, labels={"source": source})


def good_rows() -> list[tuple[Row, Instruction]]:
    """168 rows, seven of each source and template, in the published form and in equivalent ones."""
    found = []
    for number in range(168):
        source, template = f"type{number % 4 + 1}", f"type{number // 4 % 6 + 1}"
        row, instruction = good_row(number, source, template)
        _VARIANTS[number // 24](row)
        found.append((row, instruction))
    return found


def _as_json(row: Row) -> None:
    row["ground_truth"] = json.dumps(row["ground_truth"], ensure_ascii=False)
    row["extra_info"] = json.dumps(row["extra_info"])


def _as_chat(row: Row) -> None:
    row["prompt"] = [{"role": "user", "content": row["prompt"]}]


def _for_verl(row: Row) -> None:
    row["data_source"] = row.pop("source")
    row["reward_model"] = {"style": "rule", "ground_truth": row.pop("ground_truth")}
    row["extra_info"] |= {"index": row["id"], "split": "train"}
    _as_chat(row)


def _criteria_once(row: Row) -> None:
    del (row if row["id"] % 2 else row["extra_info"])["criteria"]


def _with_task_as_prompt(row: Row) -> None:
    row["prompt"] = row["extra_info"]["question"]


def _with_nulls(row: Row) -> None:
    row["prompt"] = f"\n{row['prompt']}  "
    row["reward_model"] = None
    for arguments in row["ground_truth"].get("kwargs", []):
        arguments |= {"language": None, "keyword": None}


_VARIANTS = (lambda row: None, _as_json, _as_chat, _for_verl, _criteria_once, _with_task_as_prompt, _with_nulls)

# (reason, source, the change that breaks a good row)
_FAULTS: tuple[tuple[str, str, Any], ...] = (
    ("field", "type1", lambda row: row.update(id=None)),
    ("field", "type1", lambda row: row.update(id=True)),
    ("id used before", "type2", lambda row: row.update(id=0)),
    ("unknown source", "type1", lambda row: row.update(source="type5")),
    ("unknown source", "type3", lambda row: row.update(source=None)),
    ("unknown template", "type1", lambda row: row["extra_info"].update(q_type="type7")),
    ("no template", "type2", lambda row: row["extra_info"].update(q_type=None)),
    ("no template", "type4", lambda row: row.update(extra_info=None)),
    ("field", "type1", lambda row: row.update(criteria=[], extra_info={})),
    ("field", "type1", lambda row: row.update(criteria=None, extra_info={})),
    ("field", "type3", lambda row: row["criteria"].__setitem__(2, " ") or row["extra_info"].update(criteria=None)),
    ("criteria differ", "type2", lambda row: row["criteria"].pop()),
    ("lengths differ", "type1", lambda row: row["ground_truth"]["kwargs"].pop()),
    ("lengths differ", "type2", lambda row: row["ground_truth"]["instruction_id_list"].append("count:numbers")),
    ("lengths differ", "type3", lambda row: row["ground_truth"]["constraints"].pop()),
    ("lengths differ", "type4", lambda row: row["ground_truth"]["functions"].pop()),
    ("field", "type1", lambda row: row.update(ground_truth=None)),
    ("field", "type1", lambda row: row.update(ground_truth="{broken")),
    ("field", "type4", lambda row: row.update(ground_truth={"constraints": []})),
    ("unknown constraint", "type1", lambda row: row["ground_truth"]["instruction_id_list"].__setitem__(0, "count:numbers")),
    ("unknown constraint", "type2", lambda row: row["ground_truth"]["instruction_id_list"].__setitem__(1, "count:nuns")),
    ("unknown constraint", "type1", lambda row: row["ground_truth"]["instruction_id_list"].__setitem__(0, "code:python")),
    ("unknown constraint", "type3", lambda row: row["ground_truth"]["constraints"][0].__setitem__(1, "Smells")),
    ("unusable arguments", "type1", lambda row: row["ground_truth"]["kwargs"][0].update(smell="sweet")),
    ("unusable arguments", "type2", lambda row: row["ground_truth"].update(kwargs=[{"N": -1.5}] * len(row["criteria"]))),
    ("unusable arguments", "type4", lambda row: row["ground_truth"].update(functions=[" "] * len(row["criteria"]))),
    ("field", "type3", lambda row: row["ground_truth"]["constraints"][1].pop()),
    ("unknown checker", "type4", lambda row: row["ground_truth"]["checker"].__setitem__(0, "[dice] six")),
    ("prompt differs", "type1", lambda row: row.update(prompt=row["prompt"].replace(" ", "  ", 1))),
    ("field", "type1", lambda row: row.update(prompt=[{"role": "system", "content": "Be brief."}, {"role": "user"}])),
    ("no task", "type4", lambda row: row["extra_info"].pop("question")),
    ("field", "type2", lambda row: row["extra_info"].update(question="")),
)  # fmt: skip


def bad_rows() -> list[tuple[Row, str]]:
    """32 rows with one fault each; their ids continue those of the good rows."""
    found = []
    for number, (reason, source, spoil) in enumerate(_FAULTS, start=168):
        row = copy.deepcopy(good_row(number, source, f"type{number % 6 + 1}")[0])
        spoil(row)
        found.append((row, reason))
    return found


def all_rows() -> Iterator[tuple[Row, Instruction | str]]:
    """The 200 rows: one bad row after every five good ones, until no bad row is left."""
    bad = bad_rows()
    for number, good in enumerate(good_rows()):
        yield good
        if number % 5 == 4 and number // 5 < len(bad):
            yield bad[number // 5]
