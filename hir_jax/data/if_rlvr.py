"""Reads IF-RLVR's training data (arXiv 2507.02833; allenai/IF_multi_constraints_upto5 and data sets of the same form).

A row has `messages`, `ground_truth` and, mostly, `key`. Assumed about them, from the data sets' cards and public code that reads
the rows:

- `messages` is a chat of one user message, in which the constraints follow the task.
- `ground_truth` is JSON or a Python literal: an object {instruction_id, kwargs}, a list of one, or a list of one JSON string of
  one. `instruction_id` lists ids of IFEval's and IF-RLVR's types (`checks.ifeval`, `checks.iftrain`), `kwargs` is a list of as
  many objects or nulls; null entries of an object count as absent.
- a row without a key gets its place as its key.

The earlier data set RLVR-IFeval, whose ground truth names a function (`func_name`), is another form and refused.

A row does not say which words of the message belong to which constraint. `STARTS` holds, for each type, the few words with which
its published wording begins; a constraint's text goes from there to the start of the next one, the last one's to the end of the
message, and the task is what comes before the first. A row in which a start is not found is broken, and counted as such.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hir_jax.data.rows import BrokenRowError, FaultError, read_each, valid_key, validated
from hir_jax.data.templates import render
from hir_jax.textfiles import RowError, parse_json
from hir_jax.types import Constraint, Instruction

_RELATION = "(?:at least|less than)"

# By type: a pattern of the first words of its wording, with the constraint's arguments, escaped, by name.
STARTS: Mapping[str, str] = {
    "change_case:capital_word_frequency": "In your response, words with all capital letters",
    "change_case:english_capital": "Your entire response should be in English, and in all capital",
    "change_case:english_lowercase": "Your entire response should be in English, and in all lowercase",
    "combination:repeat_prompt": "First repeat the request word for word",
    "combination:two_responses": "Give two different responses",
    "copy:copy": "Copy this instruction verbatim",
    "copy:copying_multiple": r"Repeat the request without change {N} times",
    "copy:copying_simple": r"Repeat the request without change \(",
    "copy:repeat_phrase": "Repeat the phrase {phrase}",
    "count:count_increment_word": "Include keyword {keyword1} once",
    "count:count_unique": "Only use unique words",
    "count:counting_composition": "Write 3 paragraphs, delimited",
    "count:lowercase_counting": "In your response, all lowercase words",
    "detectable_content:number_placeholders": "The response must contain at least {num_placeholders} placeholders",
    "detectable_content:postscript": "At the end of your response, please explicitly add",
    "detectable_format:bigram_wrapping": "Wrap every word bigram",
    "detectable_format:constrained_response": "Answer with one of the following options",
    "detectable_format:json_format": "Entire output should be wrapped in JSON",
    "detectable_format:multiple_sections": "Your response must have {num_sections} sections",
    "detectable_format:number_bullet_lists": "Your answer must contain exactly {num_bullets} bullet",
    "detectable_format:number_highlighted_sections": "Highlight at least {num_highlights} sections",
    "detectable_format:sentence_hyphens": "All sentences must be connected",
    "detectable_format:square_brackets": "Enclose every word",
    "detectable_format:title": "Your answer must contain a title",
    "first_word:first_word_answer": "The first word of your response",
    "first_word:first_word_sent": "The first word of each sentence",
    "keywords:exclude_word_harder": "Do not include keyword {keyword}",
    "keywords:existence": "Include keywords ",
    "keywords:forbidden_words": "Do not include keywords ",
    "keywords:frequency": f"In your response, the word {{keyword}} should appear {_RELATION}",
    "keywords:keyword_specific_position": "Include keyword {keyword} in the {n}-th sentence",
    "keywords:letter_frequency": "In your response, the letter {letter} should appear",
    "keywords:no_adjacent_consecutive": "No two adjacent words",
    "keywords:palindrome": "Include a palindrome",
    "keywords:start_end": "Start and end your response",
    "keywords:word_count_different_numbers": "In your response, the word {keyword} should appear {frequency}",
    "keywords:word_once": "Include keyword {keyword} in your response",
    "language:response_language": "Your ENTIRE response should be in",
    "last_word:last_word_answer": "The last word of your response",
    "last_word:last_word_sent": "The last word of each sentence",
    "length_constraints:nth_paragraph_first_word": "There should be {num_paragraphs} paragraphs. Paragraphs and only",
    "length_constraints:number_paragraphs": "There should be {num_paragraphs} paragraphs. Paragraphs are",
    "length_constraints:number_sentences": f"Your response should contain {_RELATION} {{num_sentences}} sentences",
    "length_constraints:number_words": f"Answer with {_RELATION} {{num_words}} words",
    "letters:letter_counting": f"Answer with {_RELATION} {{N}} letters",
    "letters:letter_counting2": "In your response, the letter {letter} should appear",
    "new:copy_span_idx": "Copy the span of words",
    "paragraphs:paragraphs": "There should be 2 paragraphs. Paragraphs are",
    "paragraphs:paragraphs2": "There should be 2 paragraphs. Paragraphs and only",
    "punctuation:no_comma": "In your entire response, refrain from the use of any commas",
    "punctuation:punctuation_dot": r"In your entire response, refrain from the use of \.",
    "punctuation:punctuation_exclamation": "In your entire response, refrain from the use of !",
    "startend:end_checker": "Finish your response with this exact phrase",
    "startend:quotation": "Wrap your entire response with double",
}
_TEMPLATES = ("type1", "type2", "type6")  # a space between the texts, or a line for each


def _request(messages: Any) -> str:
    if not isinstance(messages, list) or not messages or not all(isinstance(one, Mapping) for one in messages):
        raise FaultError("field", f"messages must be a list of objects, not {messages!r:.80}")
    if len(messages) != 1 or messages[0].get("role") != "user":
        roles = ", ".join(str(one.get("role")) for one in messages)
        raise FaultError("several messages", f"messages must be one message of the user, not of {roles:.80}")
    content = messages[0].get("content")
    if not isinstance(content, str) or not content.strip():
        raise FaultError("field", f"messages[0].content must be a non-blank string, not {content!r:.80}")
    return content.strip()


def _literal(text: str) -> Any:
    """The value of a text in JSON or of a Python literal; no code is run."""
    try:
        return parse_json(text, "ground_truth")
    except RowError as error:
        try:
            value = ast.literal_eval(text)
            json.dumps(
                value, ensure_ascii=False
            ).encode()  # ValueError for half of a surrogate pair, which is no character
            return value
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise FaultError("field", f"ground_truth is neither JSON nor a Python literal ({error})") from None


def _truth(value: Any) -> Mapping[str, Any]:
    for _ in range(3):  # a text of a list of a text of an object
        value = _literal(value) if isinstance(value, str) else value
        value = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    if not isinstance(value, Mapping):
        raise FaultError("field", f"ground_truth must be an object or a list of one, not {value!r:.80}")
    if "func_name" in value:
        raise FaultError(
            "another form", "ground_truth names a function (func_name), as in RLVR-IFeval, which is not read"
        )
    return value


def _constraints(truth: Mapping[str, Any]) -> Iterator[Constraint]:
    ids, given = truth.get("instruction_id"), truth.get("kwargs")
    if not isinstance(ids, list | tuple) or not ids:
        raise FaultError("field", f"ground_truth.instruction_id must be a non-empty list, not {ids!r:.80}")
    if not isinstance(given, list | tuple) or len(given) != len(ids):
        raise FaultError("lengths differ", f"{len(ids)} instruction ids, but ground_truth.kwargs is {given!r:.80}")
    for i, (id, arguments) in enumerate(zip(ids, given, strict=True)):
        if not isinstance(arguments, Mapping | None):
            raise FaultError("field", f"ground_truth.kwargs[{i}] must be an object or null, not {arguments!r:.80}")
        if not isinstance(id, str) or id not in STARTS:
            raise FaultError("unknown constraint", f"ground_truth.instruction_id[{i}] is {id!r}, no type of IF-RLVR")
        yield Constraint(id, {name: value for name, value in (arguments or {}).items() if value is not None})


def _escaped(value: Any) -> str:
    """A pattern for an argument in a text: of a list of one its entry, any white space for white space."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return r"\s+".join(map(re.escape, str(value).split()))


def _start(constraint: Constraint, request: str, taken: set[int]) -> int:
    """Where the constraint's wording begins in the request: the last place that no other constraint has taken."""
    arguments = {name: _escaped(value) for name, value in constraint.arguments.items()}
    words = r"(?<!\S)" + STARTS[constraint.id].format_map(arguments).replace(" ", r"\s+")
    places = [found.start() for found in re.finditer(words, request) if found.start() not in taken]
    if not places:
        raise FaultError("constraint not found", f"{constraint.id} {dict(constraint.arguments)} in {request!r:.200}")
    return places[-1]


def cut(request: str, constraints: tuple[Constraint, ...]) -> tuple[str, tuple[Constraint, ...]]:
    """(task, the constraints with their texts, in the order of the request). Raises FaultError if a constraint's first words are
    not found, or nothing comes before them."""
    found: dict[int, Constraint] = {}
    for constraint in constraints:
        found[_start(constraint, request, set(found))] = constraint
    starts = sorted(found)
    task = request[: starts[0]].strip()
    if not task:
        raise FaultError("no task before the constraints", f"the message begins with a constraint: {request!r:.80}")
    ends = [*starts[1:], len(request)]
    texts = [request[start:end].strip() for start, end in zip(starts, ends, strict=True)]
    return task, tuple(
        Constraint(found[start].id, found[start].arguments, text) for start, text in zip(starts, texts, strict=True)
    )


def _instruction(row: Mapping[str, Any], place: str, *, whole: bool) -> Instruction:
    request, constraints = _request(row.get("messages")), validated(_constraints(_truth(row.get("ground_truth"))))
    key = row.get("key")
    key = place if key is None or key == "" else valid_key(key, "key")
    if whole:
        return Instruction(request, constraints, "verbatim", key, place)
    task, constraints = cut(request, constraints)
    made = [Instruction(task, constraints, template, key, place) for template in _TEMPLATES]
    return next((one for one in made if render(one) == request), made[0])


def read(path: str | Path, *, whole: bool = False) -> tuple[list[Instruction], list[BrokenRowError]]:
    """(the instructions, one `BrokenRowError` for each row that breaks the schema), both in the order of the rows.

    path: a JSON Lines or parquet file, a directory of them or of the `datasets` library, or a hub id
      ("allenai/IF_multi_constraints_upto5"). An instruction's `source` is "FILE:NUMBER".
    whole: leaves the message as it is, in the template "verbatim", which cannot be rewritten; for scoring. Otherwise it is cut
      into task and constraints (`cut`) and rendered by type1, type2 or type6: by the one that gives the message again, or else by
      type1, which differs from the message in white space and in a period after a text that ends without a mark.

    Raises RowError if the path cannot be read at all or holds no rows.
    """
    return read_each(path, partial(_instruction, whole=whole))
