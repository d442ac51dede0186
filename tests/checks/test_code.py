"""Checkers from data: right verdicts, and hostile ones that try to get out of the cage."""

import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hir_jax.checks import registry
from hir_jax.checks.sandbox import code
from hir_jax.checks.sandbox.code import Cage
from hir_jax.checks.verifier import Question, Row, Verifier
from hir_jax.types import Constraint, InputError

RUNNING_LIMIT = 60.0  # seconds: no check is to come near it, however busy the machine
PROMPT, RESPONSE = "Write two words.", "hello world"


@pytest.fixture(scope="module")
def cage():
    try:
        return Cage(workers=2, timeout_seconds=RUNNING_LIMIT)
    except InputError as error:
        pytest.skip(str(error))


def question(source, function="check_following", response=RESPONSE, prompt=PROMPT, row=0, position=0):
    constraint = Constraint(code.ID, {"source": source, "function": function})
    return Question(row, position, constraint, response, prompt, "rows:1")


def outcome(cage, body, **changes):
    """Of a checker of two parameters with this body."""
    lines = "\n".join("    " + line for line in body.splitlines())
    (result,) = cage([question(f"import os, sys\ndef check_following(instruction, response):\n{lines}\n", **changes)])
    return result


# Honest checkers


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def check_following(instruction, response):\n    return len(response.split()) == 2", True),
        ("def check_following(instruction, response):\n    return len(response.split()) > 2", False),
        ("def check_following(response):\n    return response.startswith('hello')", True),
        ("def check_following(instruction, response, least=2):\n    return response.count('l') > least", True),
        ("def check_following(instruction, response):\n    return bool(re.search(r'\\bworld$', response))", True),
        ("LEAST = 1\ndef words(t):\n    return t.split()\ncheck_following = lambda i, r: len(words(r)) > LEAST", True),
        ("import json, string, collections, statistics, datetime, unicodedata, math\n"
         "def check_following(instruction, response):\n"
         "    print('looking at', response, flush=True)\n"
         "    return collections.Counter(response).most_common(1)[0][0] == 'l' and 'two' in instruction", True),
    ],
)  # fmt: skip
def test_a_checker_decides(cage, source, expected):
    (result,) = cage([question(source, row=3, position=4)])
    assert result == (3, 4, expected, "", "")


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=6))
def test_texts_arrive_as_they_are(cage, pairs):
    sources = [f"def check_following(i, r):\n    return (i, r) == {pair!r}" for pair in pairs]
    questions = [
        question(source, prompt=prompt, response=response, row=row)
        for row, (source, (prompt, response)) in enumerate(zip(sources, pairs, strict=True))
    ]
    assert [(result.row, result.satisfied, result.reason) for result in cage(questions)] == [
        (row, True, "") for row in range(len(pairs))
    ]


def test_a_long_response_fits(cage):
    assert outcome(cage, "return len(response) == 3_000_000", response="x" * 3_000_000).satisfied


def test_equal_runs_see_sets_in_equal_order(cage):
    body = "raise ValueError(' '.join({'ox', 'ape', 'elk', 'cat', 'dog', 'emu'}))"
    assert len({outcome(cage, body).detail for _ in range(4)}) == 1


# Checkers without a verdict


@pytest.mark.parametrize(
    ("source", "reason", "detail"),
    [
        ("def check_following(a, b):\n    return 1", "nonsense", "a bool is wanted, but check_following returned int"),
        ("def check_following(a, b):\n    return None", "nonsense", "returned NoneType"),
        ("def check_following(a, b):\n    return 'true'", "nonsense", "returned str"),
        ("def check_following(a, b):\n    return 1 / 0", "raised", "ZeroDivisionError: division by zero"),
        ("def check_following(a, b):\n    raise SystemExit(0)", "raised", "SystemExit: 0"),
        ("def check_following(a, b):\n    return check_following(a, b)", "raised", "RecursionError"),
        ("def check_following(a, b, c):\n    return True", "raised", "TypeError"),
        ("import numpy\ndef check_following(a, b):\n    return True", "raised", "No module named 'numpy'"),
        ("from llm_call import llm_score\ndef check_following(a, b):\n    return True", "raised", "'llm_call'"),
        ("raise ValueError('at once')", "raised", "ValueError: at once"),
        ("def check_following(a, b:\n    return True", "refused", "the source is not Python: '(' was never closed"),
        ("(" * 5000, "refused", "the source is not Python"),
        ("def check(a, b):\n    return True", "refused", "the source defines no function 'check_following'"),
        ("check_following = True", "refused", "the source defines no function 'check_following'"),
    ],
)
def test_what_is_no_verdict_has_its_reason(cage, source, reason, detail):
    (result,) = cage([question(source)])
    assert (result.satisfied, result.reason) == (False, reason)
    assert detail in result.detail


def test_an_error_cannot_write_lines_into_the_log(cage):
    result = outcome(cage, "raise ValueError('one\\nERROR two\\x1b[2J' + 'x' * 100_000)")
    assert result.detail.startswith("ValueError: one ERROR two [2J") and len(result.detail) <= 500


# Attempts to get out. Each returns True if it got somewhere, so that the verdict must be a known False.


def attempt(*statements):
    lines = ["got = []"]
    for statement in statements:
        lines += ["try:", f"    got.append({statement})", "except OSError:", "    pass"]
    return "\n".join([*lines, "return any(got)"])


def test_no_file_of_the_host_can_be_read(cage, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    paths = ["/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/1/environ", "/sys/kernel", "/dev/mem", secret]
    folders = [Path.home(), Path(__file__).parents[2], "/tmp", "/home", "/etc", "/var", "/proc", tmp_path]
    # Parts of the interpreter may lie under the home directory; then its name exists, and nothing else of it.
    shown = "[name for name in os.listdir({}) if not sys.executable.startswith(os.path.join({}, name) + '/')]"
    statements = [f"open({str(path)!r}, 'rb').read()" for path in paths]
    statements += [shown.format(repr(str(folder)), repr(str(folder))) for folder in folders]
    result = outcome(cage, attempt(*statements))
    assert (result.satisfied, result.reason) == (False, "")


def test_nothing_can_be_written(cage, tmp_path):
    places = ["/x", "/tmp/x", "/dev/x", "/dev/shm/x", "/usr/x", "/usr/lib/x", "/caged.py", str(tmp_path / "x"), "x"]
    statements = [f"open({place!r}, 'a').write('x')" for place in places]
    statements += ["os.mkdir('/y') or 1", "open(os.__file__, 'a') and 1", "os.chmod('/caged.py', 0o777) or 1"]
    statements += ["os.write(os.memfd_create('x'), b'x')", "os.truncate(os.memfd_create('x'), 1 << 40) or 1"]
    result = outcome(cage, attempt(*statements))
    assert (result.satisfied, result.reason) == (False, "")
    assert not list(tmp_path.iterdir())


def test_there_is_no_network(cage):
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0cage-{os.getpid()}")
        abstract.listen()
        statements = [
            f"socket.create_connection({listener.getsockname()!r}, 1) and 1",
            "socket.create_connection(('1.1.1.1', 53), 1) and 1",
            "socket.getaddrinfo('example.com', 80)",
            f"socket.socket(socket.AF_UNIX).connect({abstract.getsockname().decode()!r}) or 1",
            "socket.if_nameindex() != [(1, 'lo')]",
        ]
        result = outcome(cage, "import socket\n" + attempt(*statements))
    assert (result.satisfied, result.reason) == (False, "")


def test_the_environment_tells_nothing(cage, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "secret")
    names = ["LC_CTYPE", "PWD", "PYTHONHASHSEED"]
    body = f"return sorted(os.environ) != {names} or os.getuid() == 0 or os.uname().nodename != 'cage'"
    result = outcome(cage, body)
    assert (result.satisfied, result.reason) == (False, "")


def test_no_process_and_no_thread_is_started(cage):
    statements = ["os.fork() >= 0", "os.posix_spawn(sys.executable, ['x'], {}) or 1"]
    statements += ["subprocess.run([sys.executable, '-c', ''])", "unshare(0x10000000) == 0"]  # a namespace of users
    prelude = "import ctypes, subprocess, threading\nunshare = ctypes.CDLL(None).unshare\n"
    body = (
        prelude + "try:\n    threading.Thread(target=print).start()\n    return True\nexcept RuntimeError:\n    pass\n"
    )
    result = outcome(cage, body + attempt(*statements))
    assert (result.satisfied, result.reason) == (False, "")


def test_a_fork_bomb_ends_with_its_check(cage):
    body = "while True:\n    try:\n        os.fork()\n    except OSError:\n        return False"
    assert outcome(cage, body) == (0, 0, False, "", "")


def test_the_cage_is_not_left_by_becoming_another_program(cage):
    result = outcome(cage, "os.execv(sys.executable, [sys.executable, '-c', 'import os; os.write(1, b\"true\")'])")
    assert (result.satisfied, result.reason) == (False, "died")  # standard output leads nowhere


def test_eight_gigabytes_are_refused(cage):
    result = outcome(cage, "return bool(bytearray(8 << 30))")
    assert (result.reason, result.detail[:11]) == ("raised", "MemoryError")
    grown = outcome(cage, "held = []\nwhile True:\n    held.append(bytearray(1 << 24))")
    assert grown.reason == "raised"


@pytest.mark.parametrize(
    "body",
    [
        "while True:\n    pass",
        "import time\ntime.sleep(1000)",
        "import signal\nfor s in set(signal.Signals) - {9, 19}:\n    signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        "os.closerange(0, 100)\nwhile True:\n    pass",
        "return bool(re.fullmatch('(a+)+b', 'a' * 40))",
        "try:\n    while True: pass\nfinally:\n    while True: pass",
    ],
)
def test_what_never_ends_is_ended(cage, body):
    short = Cage(workers=1, timeout_seconds=0.5)
    result = outcome(short, "import re\n" + body)
    assert (result.satisfied, result.reason) == (False, "timed_out")
    assert not caged_processes()


def caged_processes():
    """Command lines of what runs a check, after a while for the killed ones to be gone."""
    for _ in range(50):
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = file.read_bytes()
            except OSError:  # it has ended
                continue
            if b"/caged.py" in command and os.getpid() == _first_ancestor(file.parent, os.getpid()):
                found.append(command)
        if not found:
            return []
        time.sleep(0.1)
    return found


def _first_ancestor(process, wanted):
    """`wanted` if it is among the ancestors of a process, else 1 or 0."""
    try:
        while (parent := int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])) not in (0, 1, wanted):
            process = Path("/proc", str(parent))
    except OSError:
        return 0
    return parent


def test_a_million_lines_of_output_go_nowhere(cage):
    assert outcome(cage, "for i in range(1_000_000):\n    print('a line')\nreturn True").satisfied


def test_the_answer_is_bounded_and_strict(cage):
    flood = (
        "while True:\n    for fd in range(16):\n        try: os.write(fd, b'x' * 65536)\n        except OSError: pass"
    )
    result = outcome(cage, flood)
    assert (result.satisfied, result.reason) == (False, "nonsense")
    doubled = outcome(
        cage, "for fd in range(3, 16):\n    try: os.write(fd, b'true')\n    except OSError: pass\nreturn True"
    )
    assert (doubled.satisfied, doubled.reason) == (False, "nonsense")


@pytest.mark.parametrize(
    "body",
    [
        "os._exit(0)",
        "os._exit(3)",
        "os.closerange(0, 100)\nreturn True",
        "os.kill(os.getpid(), 9)",
        "import ctypes\nctypes.string_at(0)",
    ],
)
def test_a_process_that_ends_early_has_no_verdict(cage, body):
    result = outcome(cage, body)
    assert (result.satisfied, result.reason) == (False, "died")


def test_no_process_outside_can_be_signalled(cage):
    outside = {os.getpid(), os.getppid()} - {1}  # which in there is the cage's own
    statements = [*(f"os.kill({pid}, 9) or 1" for pid in outside), "os.kill(-1, 9) or 1"]
    result = outcome(cage, attempt("os.kill(os.getppid(), 9)", *statements))
    assert (result.satisfied, result.reason) == (False, "")


# In a run


def test_a_run_goes_on_after_hostile_checkers(cage):
    def constraint(source):
        return Constraint(code.ID, {"source": source, "function": "check_following"})

    hostile = [
        constraint("def check_following(i, r):\n    import os; os._exit(1)"),
        constraint("def check_following(i, r):\n    return [bytearray(1 << 33)]"),
    ]
    honest = constraint("def check_following(i, r):\n    return len(r.split()) == 2")
    rows = [
        Row((honest, hostile[0], Constraint("punctuation:no_comma", {})), "a b", "q", "rows:1"),
        Row((Constraint("punctuation:no_comma", {}), hostile[1]), "a, b", "q", "rows:2"),
        Row((honest,), "a b c", "q", "rows:3"),
    ]
    with Verifier(workers=0, timeout_seconds=RUNNING_LIMIT, deciders={"code": cage}) as verifier:
        for _ in range(2):
            verdicts = verifier.verify(rows, width=3)
            assert verdicts.satisfied.tolist() == [[True, False, True], [False] * 3, [False] * 3]
            assert verdicts.known.tolist() == [[True, False, True], [True, False, False], [True, False, False]]
        assert verifier.unknown_counts == {"died": 2, "raised": 2}


def test_without_bubblewrap_there_is_no_cage(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is no `bwrap` here: install it"):
        Cage(workers=1, timeout_seconds=1)


def test_where_bubblewrap_does_not_work_there_is_no_cage(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        InputError, match=r"it does not work here: bwrap: setting up uid map: Permission denied\. It needs"
    ):
        Cage(workers=1, timeout_seconds=1)
    monkeypatch.setattr("platform.machine", lambda: "s390x")
    with pytest.raises(InputError, match="on x86_64 and aarch64 only, not on s390x"):
        Cage(workers=1, timeout_seconds=1)


def test_arguments_of_the_constraint():
    assert registry.decider(code.ID) == "code"
    registry.validate(Constraint(code.ID, {"source": "x = 1", "function": "x"}))
    with pytest.raises(registry.ConstraintError, match="argument 'source' must be a non-blank string"):
        registry.validate(Constraint(code.ID, {"source": " ", "function": "x"}))
    with pytest.raises(ValueError, match="workers must be >= 1"):
        Cage(workers=0, timeout_seconds=1)
