"""The program: recorded judgements in, one summary out; a judge behind HTTP, and a run that is taken up again."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from judge_server import KEY, JudgeServer, completion, set_environment, settings
from judged_fixtures import SHARED, near, needs_shared, write

from hir_jax.checks.judge.soft import digest
from hir_jax.data.readers import RowError
from hir_jax.eval.judging import _mend_end, judge_files
from hir_jax.eval.responses import RefusedError

REPOSITORY = Path(__file__).parents[2]
PROMPTS = [
    {"id": name, "instruction": f"do {name}", "input": "", "subset": subset, "decomposed_questions": ["one?", "two?"],
     "question_label": [["Style"], ["Number"]]}
    for name, subset in (("a", "Easy_set"), ("b", "Easy_set"), ("c", "Hard_set"), ("d", "Hard_set"))
]  # fmt: skip
RESPONSES = [{"id": "a", "response": "A."}, {"prompt": "do b", "response": "B."}, {"id": "c", "response": "C."}]
JUDGEMENTS = [
    {"id": "a", "replies": ["YES", "hm"]},
    {"id": "b", "verdicts": [1]},
    {"id": "c", "verdicts": [False, False]},
    {"id": "c", "verdicts": [True, None], "response": digest("C."), "judge": "m"},
]
SUMMARY = {
    "overall": 0.5, "Easy_set": 0.5, "Hard_set": 0.5, "labels": {"Style": 1.0, "Number": 0.0}, "rows": 3, "questions": 6,
    "met": 3, "unknown": 3, "unknown_rows": 3, "missing": 1, "intervals": {"ila": (0, 0, 0), "cla": (0.5, 0.5, 0.5)},
}  # fmt: skip


@pytest.fixture
def files(tmp_path):
    def make(responses=RESPONSES, judgements=JUDGEMENTS, prompts=PROMPTS):
        return [
            write(tmp_path / name, rows)
            for name, rows in (("prompts", prompts), ("responses", responses), ("judgements", judgements))
        ]

    return make


def _program(name, files, *more):
    flags = [f"--{flag}={path}" for flag, path in zip(("prompts", "responses", "judgements"), files)]
    command = [sys.executable, "-m", "hir_jax.judged", f"--benchmark={name}", *flags, *more]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)


def test_the_program(files):
    done = _program("infobench", files(), "--published_quirks")
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["overall"], summary["not_counted"], summary["missing"]) == (0.5, 0, 1)
    done = _program("infobench", files(judgements=[*JUDGEMENTS, "{"]))
    assert done.returncode == 1 and json.loads(done.stdout.splitlines()[-1]) == json.loads(json.dumps(SUMMARY))
    assert done.stderr.startswith(f"{files()[2]}:5: not JSON")
    done = _program("infobench", files(), "--judge=endpoint:m")
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.startswith("give either --judgements")


def test_several_models_are_compared_on_the_prompts_that_both_answered(tmp_path, files):
    prompts, *first = files()
    responses = [{"id": name, "response": "B."} for name in "bcd"]
    judged = [{"id": "b", "verdicts": [1, 1]}, {"id": "c", "verdicts": [0, 1]}, {"id": "d", "verdicts": [1, 1]}]
    second = [write(tmp_path / "other", responses), write(tmp_path / "theirs", judged)]
    paths = [f"{a},{b}" for a, b in zip(first, second)]
    done = _program("infobench", [prompts, *paths])
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["runs"][str(first[0])] == json.loads(json.dumps(SUMMARY))
    other = found["runs"][str(second[0])]
    assert other["missing"] == 1 and other["intervals"]["ila"][0] == pytest.approx(2 / 3)
    # b: 0 to 1 and 1/2 to 1; c: 0 to 0 and 1/2 to 1/2; of a and d one answer is missing
    assert {name: gap[0] for name, gap in found["differences"][str(second[0])].items()} == {"ila": 0.5, "cla": 0.25}
    done = _program("infobench", [prompts, paths[0], first[1]])
    assert done.returncode == 1 and done.stderr.startswith("--judgements: 1 files for 2 of --responses")


BAD_JUDGEMENTS = [
    ({"replies": ["YES"]}, "'id' is missing"),
    ({"id": "z", "replies": ["YES"]}, "no prompt has the id 'z'"),
    ({"id": "d", "replies": ["YES"]}, "a judgement of 'd', but there is no response"),
    ({"id": "a", "replies": ["YES"], "response": digest("B.")}, "a judgement of 'a', of another response"),
    ({"id": "a"}, "give either 'replies' or 'verdicts'"),
    ({"id": "a", "replies": [], "verdicts": []}, "give either 'replies' or 'verdicts'"),
    ({"id": "a", "replies": "YES"}, "'replies' must be a list of texts and nulls"),
    ({"id": "a", "replies": ["YES"] * 3}, "'replies' has 3 entries, and the prompt 2"),
    ({"id": "a", "verdicts": ["YES"]}, "'verdicts' must be a list of verdicts and nulls"),
    ({"id": "a", "verdicts": [2]}, "a verdict is true, false or null"),
]


def test_bad_rows_are_named_and_the_rest_is_scored(files, capsys):
    bad = [row for row, _ in BAD_JUDGEMENTS]
    responses = [*RESPONSES, {"id": "a", "response": "again"}, {"id": "z", "response": ""}]
    paths = files(responses, [*JUDGEMENTS, *bad])
    summary, _, errors = judge_files("infobench", *paths)
    assert summary == SUMMARY
    assert capsys.readouterr().err.splitlines() == [str(error) for error in errors]
    assert [str(error) for error in errors[:2]] == [
        f"{paths[1]}:5: no prompt has the id 'z'", f"{paths[1]}:4: a second response for 'a'",
    ]  # fmt: skip
    for line, (error, (_, message)) in enumerate(zip(errors[2:], BAD_JUDGEMENTS, strict=True), start=5):
        assert str(error) == f"{paths[2]}:{line}: {message}"


def test_what_cannot_be_scored_at_all(files):
    with pytest.raises(RefusedError, match="no row can be scored"):
        judge_files("infobench", *files([]))
    with pytest.raises(RowError, match="prompts:1: 'decomposed_questions' must be"):
        judge_files("infobench", *files(prompts=[{}]))
    with pytest.raises(RowError, match="no row has questions"):
        judge_files("complexbench", *files(prompts=[{"main_id": 0, "instruction": "i"}]))


@needs_shared
@pytest.mark.parametrize(
    "name, prompts, id, field",
    [
        ("cfbench", "cfbench/prompts.jsonl", "idx", "prompt"),
        ("followbench", "followbench/prompts.jsonl", None, "instruction"),
        ("followbench_zh", "followbench/prompts_zh.jsonl", None, "instruction"),
        ("complexbench_en", "complexbench/example_row.jsonl", "main_id", "instruction_en"),
        ("infobench", "infobench/prompts.jsonl", "id", None),
    ],
)
def test_the_published_prompts_without_any_judgement(tmp_path, name, prompts, id, field):
    """Every row takes a response, and is unknown where rules do not decide."""
    rows = [json.loads(line) for line in (SHARED / prompts).read_text(encoding="utf-8").split("\n") if line]
    rows = [row for row in rows if row.get("level") != 0]
    responses = [{id: row[id]} if id else {"prompt": row[field]} for row in rows]
    paths = [
        write(tmp_path / "responses", [row | {"response": "一。"} for row in responses]),
        write(tmp_path / "j", []),
    ]
    summary, _, errors = judge_files(name, str(SHARED / prompts), *paths)
    assert not errors and summary["rows"] == len(rows) and summary["missing"] == 0
    assert summary["unknown"] > 0 and json.dumps(summary)
    if name == "infobench":
        assert summary["unknown"] == summary["questions"] == 2250 and summary["overall"] == 0
    if name == "followbench":  # of 164 groups the 40 of type example and 30 others are decided by rules
        assert summary["unknown_rows"] == (164 - 40 - 30) * 5 and summary["rows_absent"] == 0
        assert summary["content"]["HSR"][0] == 0 and summary["example"]["groups"] == 40


def test_complexbench_by_replies_and_rules(tmp_path, files):
    base = {"constraint_dimensions": ["Length"], "composition_types": []}
    prompts = [{
        "main_id": 7, "group": "g", "instruction": "i", "task_types": "t", "category": "And", "composition_types": ["And"],
        "scoring_questions": [
            {"question": "q?", "rule": None, "dep": []} | base,
            {"question": "q?", "rule": "length:[2,2]", "dep": [0]} | base,
            {"question": "q?", "rule": "tone:calm", "dep": []} | base,
        ],
    }]  # fmt: skip
    replies = ["答案：是", "评分对象：all", "评分对象：all"]
    paths = files([{"main_id": 7, "response": "ab"}], [{"main_id": 7, "replies": replies}], prompts)
    summary, *_ = judge_files("complexbench", *paths)
    assert (summary["overall_drfr"], summary["unknown"]) == (pytest.approx(2 / 3), 1)
    assert summary["each"] == near({"Length": 2 / 3})
    summary, *_ = judge_files("complexbench", *paths, published_quirks=True)
    assert (summary["overall_drfr"], summary["each"], summary["unknown"]) == (pytest.approx(2 / 3), {"Length": 1.0}, 0)
    assert summary["intervals"]["cla"] == near((2 / 3, 2 / 3, 2 / 3))  # without the quirks
    paths = files([{"main_id": 7, "response": "ab"}], [{"main_id": 7, "verdicts": [False, True, 2]}], prompts)
    summary, accuracies, _ = judge_files("complexbench", *paths)
    assert summary["overall_drfr"] == 0 and accuracies == {7: {"ila": 0, "cla": 0}}  # the second depends on the first


# ---- a judge behind HTTP


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    set_environment(monkeypatch)


def _said(ask):
    """The last question of a conversation, and the text it is about."""
    messages = ask.body["messages"]
    first = messages[1]["content"]
    return messages[-1]["content"].split("\n")[-1], next(name for name in "ABC" if f"\n{name}.\n" in first)


def _judged(files, server, output, **changes):
    prompts, responses, _ = files()
    return judge_files("infobench", prompts, responses, output=str(output), settings=settings(server, **changes))


def test_a_judge_behind_http_and_a_run_that_is_taken_up(tmp_path, files, capsys):
    output, broken = tmp_path / "out", [("two?", "B"), ("one?", "C")]

    def script(ask):
        if _said(ask) in broken:
            return (500, {}, b"{}")
        return completion("YES" if _said(ask)[0] == "one?" else "Hm.")

    with JudgeServer(script) as server:
        summary, _, errors = _judged(files, server, output, concurrency=3)
        assert not errors and summary["unknown"] == 4 and summary["Easy_set"] == 0.5 and summary["Hard_set"] == 0
        said = capsys.readouterr().err
        assert "2 questions were not answered: the endpoint answers 500; tried 3 times" in said
        assert "requests, 300 prompt and 30 completion tokens" in said and KEY not in said
        written = {row["id"]: row for row in map(json.loads, output.read_text().splitlines())}
        assert written == {
            "a": {"id": "a", "judge": "grader", "response": digest("A."), "replies": ["YES", "Hm."]},
            "b": {"id": "b", "judge": "grader", "response": digest("B."), "replies": ["YES", None]},
        }
        before = len(server.bodies)
        with output.open("a") as file:
            file.write('{"id": "c", "repl')  # cut off by a kill
        broken.clear()
        summary, _, errors = _judged(files, server, output)
        assert not errors and summary["unknown"] == 3 and summary["Hard_set"] == 0.5
        assert len(server.bodies) == before + 3  # b's second, c's two; nothing again
        again, *_ = _judged(files, server, output)
        assert again == summary and len(server.bodies) == before + 3
        # the file is one of judgements
        prompts, responses, _ = files()
        found, _, errors = judge_files("infobench", prompts, responses, str(output))
        assert (found, errors) == (summary, [])
        # another judge, or another response, is asked anew
        _judged(files, server, output, model="other")
        assert len(server.bodies) == before + 3 + 6
    assert server.keys == {f"Bearer {KEY}"}


def test_replies_that_are_cut_within_a_character_and_an_output_that_is_a_pipe(tmp_path, files):
    output, found = tmp_path / "output", []
    os.mkfifo(output)
    reader = threading.Thread(target=lambda: found.append(output.read_text(encoding="utf-8")))
    reader.start()
    with JudgeServer(lambda ask: completion("because \ud83d\nYES")) as server:
        summary, _, errors = _judged(files, server, output)
    reader.join()
    assert not errors and output.is_fifo()
    replies = [json.loads(line)["replies"] for line in found[0].splitlines()]
    assert replies == [["because ?\nYES"] * 2] * 3 and summary["unknown"] == 0


def test_names_with_commas_are_files(tmp_path, files):
    prompts, *others = files()
    moved = [path.rename(tmp_path / f"a,b=c d {path.name}") for path in map(Path, others)]
    done = _program("infobench", [prompts, *moved])
    assert (done.returncode, done.stderr) == (0, "")


def test_no_request_is_sent_after_a_refusal_of_everything(tmp_path, files, capsys):
    with JudgeServer(lambda ask: (401, {}, b"{}")) as server:
        summary, *_ = _judged(files, server, tmp_path / "out", concurrency=1)
    assert summary["unknown"] == 6 and len(server.bodies) == 1 and (tmp_path / "out").read_text() == ""
    assert "3 questions were not answered: the endpoint answers 401: it refuses the key" in capsys.readouterr().err


def test_a_wait_beyond_the_deadline_is_not_waited(tmp_path, files):
    with JudgeServer(lambda ask: (429, {"Retry-After": "86400"}, b"{}")) as server:
        summary, *_ = _judged(files, server, tmp_path / "out", concurrency=1)
    assert summary["unknown"] == 6 and len(server.bodies) == 1


@pytest.mark.parametrize(
    "end, kept",
    [('{"i', ""), ('{"id": "a", "re', ""), ('{"id": "a"}', '{"id": "a"}\n'), ("notes", "notes\n"), ("", "")],
)
def test_only_a_row_that_was_cut_is_dropped(tmp_path, end, kept):
    (tmp_path / "f").write_text("whole\n" + end)
    _mend_end(tmp_path / "f", "id")
    assert (tmp_path / "f").read_text() == "whole\n" + kept


def test_the_output_must_not_be_an_input(files):
    prompts, responses, _ = files()
    with pytest.raises(RefusedError, match="must not be one of the input files"):
        judge_files("infobench", prompts, responses, output=responses, settings=settings("http://127.0.0.1:9/v1"))
