"""The scoring program against the published figures, and what it does with files that are not as they should be."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import wrong_results
from hir16k_rows import bad_rows, good_rows

from hir_jax.checks import registry
from hir_jax.checks.verifier import Verifier
from hir_jax.data.readers import RowError
from hir_jax.eval.benchmarks import BENCHMARKS
from hir_jax.eval.responses import RefusedError, Response
from hir_jax.eval.scoring import Score, score_files, score_responses
from hir_jax.run.files import write_jsonl
from hir_jax.types import Constraint, Instruction

REPOSITORY = Path(__file__).parents[1]
FIXTURES = REPOSITORY / "../shared/benchmarks"

PROMPTS = [
    {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "A title and no # sign.",
        "instruction_id_list": ["detectable_format:title", "keywords:letter_frequency"],
        "kwargs": [{}, {"letter": "#", "let_frequency": 1, "let_relation": "less than"}],
    },
    {
        "key": 3,
        "prompt": "Two sentences, quoted.",
        "instruction_id_list": ["startend:quotation", "punctuation:no_comma"],
        "kwargs": [{"num_words": None}, {}],
    },
]
RESPONSES = [
    {"key": 3, "response": '"One. Two."'},
    {"key": 1, "response": "Well, here it is:\nnone"},
    {"prompt": "A title and no # sign.", "response": "<<Title>>"},
    {"key": 3, "response": ""},
]
VERDICTS = [
    {"key": 3, "strict": [True, True], "loose": [True, True]},
    {"key": 1, "strict": [False], "loose": [True]},
    {"key": 2, "strict": [True, False], "loose": [True, False], "unknown": [1]},
    {"key": 3, "strict": [False, False], "loose": [False, False]},
]
SUMMARY = {
    "prompt_strict": 1 / 4,
    "instruction_strict": 3 / 7,
    "prompt_loose": 2 / 4,
    "instruction_loose": 4 / 7,
    "family": {
        "detectable_format:title": 1.0, "keywords:letter_frequency": 0.0, "punctuation:no_comma": 1 / 3,
        "startend:quotation": 1 / 2,
    },
    "rows": 4,
    "unknown": 1,
}  # fmt: skip


def _write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=0, timeout_seconds=10) as verifier:
        yield verifier


@pytest.fixture
def run(tmp_path, verifier):
    """Scores rows; the output file is tmp_path/out."""

    def score_them(prompts, responses):
        files = _write(tmp_path / "prompts", prompts), _write(tmp_path / "responses", responses)
        return score_files("ifeval", *files, str(tmp_path / "out"), verifier)

    return score_them


def _program(*flags):
    command = [sys.executable, "-m", "hir_jax.score", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the benchmark fixtures (../shared/benchmarks) are absent")
@pytest.mark.parametrize(
    ("benchmark", "model", "rows", "percent"),
    [
        ("ifeval", "llama_3b", 539, (70.32, 78.67, 75.88, 82.89)),
        ("ifeval", "qwen25_7b", 539, (72.91, 79.88, 74.77, 81.45)),
        ("ifbench", "llama_3b", 293, (23.89, 25.45, 26.96, 30.24)),
        ("ifbench", "qwen25_7b", 293, (26.28, 28.74, 28.67, 31.74)),
    ],
)
def test_the_recorded_responses_give_the_published_scorers_figures(tmp_path, benchmark, model, rows, percent):
    folder = FIXTURES / benchmark
    responses = folder / f"responses.{model}.jsonl"
    files = (f"--prompts={folder / 'prompts.jsonl'}", f"--responses={responses}", f"--output={tmp_path / 'out'}")
    done = _program(f"--benchmark={benchmark}", "--workers=2", *files)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    names = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")
    assert tuple(round(100 * summary[name], 2) for name in names) == percent
    assert (summary["rows"], summary["unknown"]) == (rows, 0)
    with responses.open(encoding="utf-8") as file:
        expected = [{name: row[name] for name in ("key", "strict", "loose")} for row in map(json.loads, file)]
    assert [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()] == expected


def test_rows_by_key_or_prompt_and_an_unknown_verdict(tmp_path, run, verifier):
    before = verifier.unknown_counts.total()
    summary, errors = run(PROMPTS, RESPONSES)
    assert summary == SUMMARY and errors == []
    assert [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()] == VERDICTS
    assert verifier.unknown_counts.total() == before + 1  # the unusable constraint is not tried again in loose mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "prompts", "responses"]


BAD_RESPONSES = [
    ('{"key": 1, "response": "cut', "not JSON"),
    ("[1]", "a JSON object is wanted, not list"),
    ('{"key": 1}', "'response' is missing"),
    ('{"key": 1, "response": null}', "'response' is not a string"),
    ('{"response": "text"}', "'key' is missing, and so is 'prompt'"),
    ('{"key": 7, "response": "text"}', "no prompt has the key 7"),
    ('{"prompt": "Another.", "response": "text"}', "no prompt has the prompt 'Another.'"),
    ('{"prompt": "Twice.", "response": "text"}', "2 prompts have this text; give the 'key'"),
]


def test_bad_response_rows_are_named_and_the_rest_is_scored(tmp_path, run, capsys):
    twice = [{**PROMPTS[0], "key": key, "prompt": "Twice."} for key in ("a", "b")]
    responses = [*RESPONSES[:2], *(row for row, _ in BAD_RESPONSES), "", *RESPONSES[2:]]
    summary, errors = run(PROMPTS + twice, responses)
    assert summary == SUMMARY
    assert [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()] == VERDICTS
    assert capsys.readouterr().err.splitlines() == [str(error) for error in errors]
    for line, (error, (_, message)) in enumerate(zip(errors, BAD_RESPONSES, strict=True), start=3):
        assert str(error).startswith(f"{tmp_path / 'responses'}:{line}: ") and message in str(error)


def test_an_existing_output_is_not_replaced_by_an_incomplete_one(tmp_path, run, capsys):
    (tmp_path / "out").write_text("earlier\n")
    run(PROMPTS, [*RESPONSES, "{"])
    assert (tmp_path / "out").read_text() == "earlier\n"
    assert len((tmp_path / "out.partial").read_text().splitlines()) == 4
    assert "is left as it is" in capsys.readouterr().err
    run(PROMPTS, RESPONSES)
    assert len((tmp_path / "out").read_text().splitlines()) == 4


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path, verifier):
    prompts, responses = _write(tmp_path / "prompts", PROMPTS), _write(tmp_path / "responses", RESPONSES)
    for output, message in (
        (prompts, "must not be one of the input files"),
        (str(tmp_path), "not a directory"),
        (str(tmp_path / "absent" / "out"), "does not exist"),
    ):
        with pytest.raises(RefusedError, match=message):
            score_files("ifeval", prompts, responses, output, verifier)
    assert (tmp_path / "prompts").read_text().count("\n") == len(PROMPTS)


def test_nothing_is_written_where_no_row_can_be_scored(tmp_path, run):
    with pytest.raises(RefusedError, match="no row can be scored"):
        run(PROMPTS, ["{"])
    with pytest.raises(RowError, match=r"prompts:2: unknown constraint id 'punctuation:no_coma'"):
        run([PROMPTS[0], {**PROMPTS[0], "key": 9, "instruction_id_list": ["punctuation:no_coma"]}], RESPONSES)
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    def rows():
        yield {"key": 1}
        raise OSError("disk full")

    (tmp_path / "out").write_text("earlier\n")
    with pytest.raises(OSError, match="disk full"):
        write_jsonl(tmp_path / "out", rows())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "earlier\n"


@pytest.mark.parametrize("kind", ["device", "pipe", "link", "link to nothing"])
def test_devices_pipes_and_links_are_written_into(tmp_path, verifier, kind):
    """The case "12 output" of the recorded wrong results, and its kin."""
    prompts, responses = _write(tmp_path / "prompts", PROMPTS), _write(tmp_path / "responses", RESPONSES)
    output, there, found = tmp_path / "output", tmp_path / "there", []
    if kind == "device":
        try:
            os.mknod(output, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            output.open("w").close()
        except PermissionError:
            pytest.skip("only root makes devices, and not in every container")
    elif kind == "pipe":
        os.mkfifo(output)
        reader = threading.Thread(target=lambda: found.append(output.read_text()))
        reader.start()
    else:
        output.symlink_to(there)
        if kind == "link":
            there.write_text("earlier\n")
    summary, _ = score_files("ifeval", prompts, responses, str(output), verifier)
    assert summary == SUMMARY
    if kind == "device":
        assert output.is_char_device()
    elif kind == "pipe":
        reader.join()
        assert output.is_fifo() and [json.loads(line) for line in found[0].splitlines()] == VERDICTS
    else:
        assert output.is_symlink() and [json.loads(line) for line in there.read_text().splitlines()] == VERDICTS
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "output.partial").exists()


def test_recorded_outputs(tmp_path):
    """The recorded command, its files filled in; N is made as its first part says."""
    prompts, responses = _write(tmp_path / "prompts", PROMPTS), _write(tmp_path / "responses", RESPONSES)
    files = "--benchmark=ifeval", "--workers=0", f"--prompts={prompts}", f"--responses={responses}"
    for case in wrong_results.cases("12 output"):
        make, program = (part.split() for part in case["command"].split(";"))
        name = tmp_path / make[1]
        if subprocess.run([make[0], str(name), *make[2:]], capture_output=True).returncode:
            pytest.skip("only root makes devices, and not in every container")
        assert program[:3] == ["python", "-m", "hir_jax.score"] and f"--output={make[1]}" in program
        done = _program(*files, f"--output={name}")
        assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1]) == SUMMARY, done.stderr
        assert case["right"] == f"{make[1]} is still a character device" and name.is_char_device()


def test_what_utf_8_cannot_hold_is_named_by_line_and_marks_are_passed_over(tmp_path, run, capsys):
    halves = [{"key": 1, "response": "cut \ud83d"}, {"key": "\udc00", "response": "text"}, {"\ud800": 1}]
    summary, errors = run(PROMPTS, [*RESPONSES, *halves])
    assert summary == SUMMARY
    assert [str(error).split(" holds ")[0] for error in errors] == [f"{tmp_path / 'responses'}:{n}:" for n in (5, 6, 7)]
    assert capsys.readouterr().err.count("half of a surrogate pair, which is no character") == 3
    marked = "\ufeff" + json.dumps(RESPONSES[0])
    assert run(["\ufeff" + json.dumps(PROMPTS[0]), *PROMPTS[1:]], [marked, *RESPONSES[1:]]) == (SUMMARY, [])


def test_utf_16_is_one_message(tmp_path):
    prompts, responses = _write(tmp_path / "prompts", PROMPTS), tmp_path / "responses"
    responses.write_text("".join(json.dumps(row) + "\n" for row in RESPONSES), encoding="utf-16")
    files = f"--prompts={prompts}", f"--responses={responses}", f"--output={tmp_path / 'out'}"
    done = _program("--benchmark=ifeval", "--workers=0", *files)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{responses}: is UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)\n"


def test_the_programs_exit_status_and_message(tmp_path):
    prompts, responses = _write(tmp_path / "prompts", PROMPTS), _write(tmp_path / "responses", [*RESPONSES, "{"])
    flags = ("--benchmark=ifeval", "--workers=0", f"--responses={responses}", f"--output={tmp_path / 'out'}")
    done = _program(*flags, f"--prompts={tmp_path / 'absent'}")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == f"{tmp_path / 'absent'}: cannot be read: No such file or directory\n"
    done = _program(*flags, f"--prompts={prompts}")
    assert done.returncode == 1 and json.loads(done.stdout.splitlines()[-1]) == SUMMARY
    assert f"{responses}:5: not JSON" in done.stderr
    assert f"{responses}:3: constraint 1 (keywords:letter_frequency) is unknown, bad_arguments" in done.stderr


def test_scoring_instructions_of_our_own(verifier):
    instruction = Instruction("Say hello.", (Constraint("punctuation:no_comma", text="Do not use any commas."),))
    responses = [Response(instruction, text, f"row {i}") for i, text in enumerate(("Hello.", "Hello, you."))]
    scores, summary = score_responses(BENCHMARKS["ifeval"], responses, verifier)
    assert scores == [Score([True], [True], [True]), Score([False], [False], [True])]
    assert summary["prompt_strict"] == summary["instruction_loose"] == 0.5
    assert summary["pass_at_k"] == {"1": 0.5, "2": 1.0} and summary["family"] == {"punctuation:no_comma": 0.5}
    with pytest.raises(ValueError, match="no responses"):
        score_responses(BENCHMARKS["ifeval"], [], verifier)


def test_pass_at_k_of_several_responses_goes_up_to_what_every_prompt_has(run):
    responses = [{"key": 1, "response": text} for text in ("a,", "b,", "c", "d,", "e")]
    responses += [{"key": 3, "response": text} for text in ('"x"', "y", '"z"', "w")]
    summary, _ = run(PROMPTS, responses)
    # key 1: 2 of 5 pass, key 3: 2 of 4
    assert summary["pass_at_k"] == {
        "1": pytest.approx((2 / 5 + 2 / 4) / 2),
        "2": pytest.approx((1 - 3 / 10 + 1 - 1 / 6) / 2),
        "4": pytest.approx(1.0),
    }
    summary, _ = run(PROMPTS, [{"key": 1, "response": text} for text in ("a,", "b,", "c")])
    assert summary["pass_at_k"] == {"1": pytest.approx(1 / 3), "2": pytest.approx(2 / 3), "3": 1.0}


MULDIMIF_ROWS = [
    ("a", "Listing", "Level 1", [["Length", "Words", "At most 3 words"]]),
    ("b", "Listing", "Level 2", [["Length", "Words", "At most 3 words"], ["Content", "Keywords", "Include 'sea'"]]),
    ("c", "Example", "Level 2", [["Content", "Keywords", "Include 'sea'"]]),
]


def test_muldimif_rows_have_one_verdict_and_are_broken_down(tmp_path, verifier):
    prompts = [
        {"id": id, "conversations": [{"role": "user", "content": f"{id}?"}], "constraints": constraints,
         "constraint_pattern": pattern, "difficulty": level}
        for id, pattern, level, constraints in MULDIMIF_ROWS
    ]  # fmt: skip
    responses = [{"id": "b", "response": "the sea"}, {"id": "a", "response": "one two three four"}]
    responses += [{"id": "c", "response": "the sea"}, {"prompt": "b?", "response": "the sky"}]
    files = _write(tmp_path / "prompts", prompts), _write(tmp_path / "responses", responses)
    summary, errors = score_files("muldimif", *files, str(tmp_path / "out"), verifier)
    assert not errors
    assert [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()] == [
        {"id": "b", "satisfied": [True, True]},
        {"id": "a", "satisfied": [False]},
        {"id": "c", "satisfied": [True]},
        {"id": "b", "satisfied": [True, False]},
    ]
    assert summary == {
        "overall": 0.5,
        "constraints": 4 / 6,
        "pattern": {"Example": 1.0, "Listing": 1 / 3},
        "level": {"Level 1": 0.0, "Level 2": 2 / 3},
        "family": {"muldimif:content_keywords": 2 / 3, "muldimif:length_words": 2 / 3},
        "rows": 4,
        "unknown": 0,
    }


def test_hir16k_rows_that_are_broken_or_need_a_decider_are_named(tmp_path, verifier, capsys):
    rows = [row for row, _ in (*good_rows(), *bad_rows())]
    prompts = _write(tmp_path / "prompts", rows)
    usable, errors = BENCHMARKS["hir16k"].read(prompts)
    plain = [q for q in usable if not registry.missing_decider(q.constraints, ())]
    assert 0 < len(plain) < len(usable) and errors
    responses = _write(tmp_path / "responses", [{"id": q.key, "response": "Words."} for q in usable])
    summary, found = score_files("hir16k", prompts, responses, str(tmp_path / "out"), verifier)
    assert summary["rows"] == len(plain) and set(summary["source"]) == {"type1", "type2", "type3"}
    said = capsys.readouterr().err
    assert len(found) == len(errors) and all(str(error) in said for error in errors)
    assert "responses are left out: their prompts need the decider 'code', which is off" in said
