"""Precision and recall of judges whose errors are known, over HTTP; and the form of our own labelled pairs."""

from collections import Counter
from pathlib import Path

import pytest
from judge_server import JudgeServer, completion

from hir_jax.checks.judge.calibration import Pair, calibration, read_pairs
from hir_jax.checks.judge.soft import Case, JudgeError, JudgeSettings
from hir_jax.eval.verifiers import open_judge

PAIRS = [Pair(Case(f"Request {n}.", "Be kind.", f"Response {n}."), met=n < 6) for n in range(10)]  # 6 met, 4 not


def figures(server, **changes):
    settings = JudgeSettings("endpoint", "m", base_url=server.url, api_key_env="", retries=0, **changes)
    with open_judge(settings) as judge:
        return calibration(judge, PAIRS)


def script(said):
    """Says YES, NO or nothing that can be read, by the number of the request."""
    return lambda ask: completion({"y": "YES", "n": "NO", "-": "Perhaps"}[said[int(ask.prompt[8:-1])]])


@pytest.mark.parametrize(
    "said, precision, recall, accuracy, unknown",
    [
        ("yyyyyynnnn", 1.0, 1.0, 1.0, 0),
        ("yyyynnyynn", 4 / 6, 4 / 6, 6 / 10, 0),
        ("yyyyyyyyyy", 6 / 10, 1.0, 6 / 10, 0),
        ("nnnnnnnnnn", None, 0.0, 4 / 10, 0),
        ("yyn---y---", 2 / 3, 2 / 3, 2 / 4, 6),
        ("------ynnn", 0.0, None, 3 / 4, 6),
        ("----------", None, None, None, 10),
    ],
)
def test_figures_of_a_judge_with_known_errors(said, precision, recall, accuracy, unknown, monkeypatch):
    monkeypatch.setenv("SSL_CERT_DIR", str(Path(__file__).parent))  # no certificates to load
    with JudgeServer(script(said)) as server:
        assert figures(server) == {
            "precision": precision, "recall": recall, "accuracy": accuracy, "unknown": unknown, "pairs": 10,
        }  # fmt: skip


def test_our_pairs_are_many_different_and_balanced():
    pairs = read_pairs()
    assert len(pairs) == len({pair.case for pair in pairs}) >= 100
    assert 0.4 < sum(pair.met for pair in pairs) / len(pairs) < 0.6
    assert all(text.strip() == text and text for pair in pairs for text in pair.case)
    uses = Counter((pair.case.prompt, pair.case.constraint) for pair in pairs)
    assert set(uses.values()) == {2}  # each constraint is seen with two responses


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds no rows"),
        ("{\n", r"mine.jsonl:1: not JSON"),
        ("[1]\n", r"mine.jsonl:1: wants strings"),
        ('{"prompt": "p", "constraint": "c", "response": "r", "met": true}\n{"prompt": "p"}\n', r"mine.jsonl:2: wants"),
        ('{"prompt": "p", "constraint": "c", "response": "r", "met": 1}\n', r"mine.jsonl:1: wants .* met"),
    ],
)
def test_rows_that_are_no_pairs_are_named(text, message, tmp_path):
    (tmp_path / "mine.jsonl").write_text(text)
    with pytest.raises(JudgeError, match=message):
        read_pairs(tmp_path / "mine.jsonl")


def test_a_file_that_is_not_there():
    with pytest.raises(JudgeError, match="cannot be read"):
        read_pairs("nowhere.jsonl")
