"""Types from files of the user's own: the documented example through the programs, and every way in which a file can be wrong."""

import json
import os
import re
import subprocess
import sys
import textwrap

import pytest
from small_runs import ROOT, rows

from hir_jax.checks import registry, user
from hir_jax.checks.verifier import Row, Verifier
from hir_jax.types import Constraint, InputError

PAGE = (ROOT / "docs" / "constraints.md").read_text(encoding="utf-8").partition("## Your own")[2]
MODULE, COMMANDS, TEST = (
    textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", PAGE, re.MULTILINE)
)


def run(command, folder):
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_documented_example_makes_data_and_is_trained_on(tmp_path):
    """Takes long because four programs start and the tiny model compiles; it protects that the page works as written."""
    (tmp_path / "mine.py").write_text(MODULE)
    programs = {"python -m": f"{sys.executable} -m"}
    programs |= {f"hir-{name}": f"{sys.executable} -m hir_jax.{name}" for name in ("train", "evaluate")}
    commands = COMMANDS
    for name, program in programs.items():
        commands = commands.replace(name, program)
    done = run(commands, tmp_path)
    assert done.returncode == 0, done.stderr
    made = [c for row in rows(tmp_path / "rows.jsonl") for c in row["constraints"] if c["id"] == "mine:questions"]
    assert len(made) > 4 and {c["arguments"]["count"] for c in made} <= {1, 2, 3} and len({c["text"] for c in made}) > 2
    run_directory = tmp_path / "runs" / "mine"
    assert [row["step"] for row in rows(run_directory / "metrics.jsonl")] == [0, 1, 2]
    types = set().union(*(row["kept"] for row in rows(run_directory / "kept.jsonl")))
    assert "mine:questions" in types and any(id != "mine:questions" for id in types)
    (tmp_path / "test_mine.py").write_text(TEST)
    checked = run(f"{sys.executable} -c 'from hir_jax.checks import user; user.load_all([\"mine.py\"]); "
                  "import test_mine; test_mine.test_questions()'", tmp_path)  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["rows"] >= 8 and "mine:questions" in summary["family"]
    train = commands[commands.index(programs["hir-train"]) : commands.index(programs["hir-evaluate"])]
    without = run(train.replace("--checks=mine.py", "").replace("total_steps=2", "total_steps=3"), tmp_path)
    assert without.returncode == 1 and "unknown constraint id 'mine:questions'" in without.stderr
    assert "--checks=FILE adds types of your own" in without.stderr and "Traceback" not in without.stderr


@pytest.fixture
def loaded(tmp_path):
    """Loads a file with this text; its types are gone after the test."""
    before, paths = set(registry.ids()), []

    def load(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        paths.append(str(path))
        user.load_all([str(path)])
        return str(path)

    yield load
    for id in set(registry.ids()) - before:
        del registry._ENTRIES[id]
    for path in paths:
        sys.modules.pop(path, None)


HEAD = "from hir_jax.checks.registry import register\n"


def type_of(id, body="return True", name="check"):
    return f"@register('{id}', lambda: 'Do.')\ndef {name}(response: str) -> bool:\n    {body}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "import no_such_module\n", r"mine\.py:2: ModuleNotFoundError: No module named 'no_such_module'"),
        (HEAD + "def broken(:\n", r"mine\.py:2: SyntaxError: "),
        (HEAD + "raise SystemExit(3)\n", r"mine\.py:2: SystemExit: 3"),
        (HEAD, r"mine\.py: registers no constraint type"),
        (
            HEAD + type_of("mine:a") + type_of("mine:a"),
            r"mine\.py:5: ValueError: constraint id 'mine:a' is already registered",
        ),
        (
            HEAD + type_of("punctuation:no_comma"),
            r"mine\.py:2: ValueError: constraint id 'punctuation:no_comma' is already reg",
        ),
        (
            HEAD + "@register('mine:a', lambda: 'Do.')\ndef a(response, x: float): ...\n",
            r"mine\.py:2: ValueError: mine:a: ",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_message_and_leaves_nothing(loaded, text, message):
    before = registry.ids()
    with pytest.raises(InputError, match=message):
        loaded(text)
    assert registry.ids() == before


def test_no_file_is_a_message(tmp_path):
    for name in ("none.py", "", "mine.txt"):
        if name == "mine.txt":
            (tmp_path / name).write_text("")
        with pytest.raises(InputError, match="give a Python file"):
            user.load_all([str(tmp_path / name)])


def test_the_same_file_may_be_named_twice(loaded):
    path = loaded(HEAD + type_of("mine:a"))
    user.load_all([path, path])
    assert "mine:a" in registry.ids() and path in registry.modules()


def test_checks_run_in_workers_with_a_limit_and_failures_name_the_line(loaded, caplog):
    body = (
        "if response == 'raise':\n        raise KeyError('no')\n"
        "    while response == 'hang':\n        pass\n    return response == 'yes'"
    )
    path = loaded(HEAD + type_of("mine:a", body))
    asked = [Row((Constraint("mine:a"),), text, "", f"row {text}") for text in ("yes", "no", "raise", "hang")]
    with Verifier(1, 1.0, ids=["mine:a"]) as verifier:
        verdicts = verifier.verify(asked, 1)
    assert verdicts.satisfied[:, 0].tolist() == [True, False, False, False]
    assert verdicts.known[:, 0].tolist() == [True, True, False, False]
    assert f"row raise: constraint 0 (mine:a) is unknown, raised: KeyError: 'no' ({path}:5)" in caplog.text
    assert "row hang: constraint 0 (mine:a) is unknown, timed_out" in caplog.text


def test_score_takes_checks(tmp_path):
    (tmp_path / "mine.py").write_text(HEAD + type_of("mine:a", "return 'a' in response"))
    row = {"key": 1, "prompt": "Go.", "instruction_id_list": ["mine:a"], "kwargs": [{}]}
    (tmp_path / "prompts").write_text(json.dumps(row) + "\n")
    (tmp_path / "responses").write_text("".join(json.dumps({"key": 1, "response": text}) + "\n" for text in ("a", "b")))
    command = (
        f"{sys.executable} -m hir_jax.score --benchmark=ifeval --prompts=prompts --responses=responses --output=out"
    )
    done = run(f"{command} --checks=mine.py --workers=1", tmp_path)
    assert done.returncode == 0, done.stderr
    assert [one["strict"] for one in rows(tmp_path / "out")] == [[True], [False]]
    done = run(f"{command} --checks=other.py", tmp_path)
    assert done.returncode == 1 and "other.py: no such file; give a Python file (.py) that registers" in done.stderr
