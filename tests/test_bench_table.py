"""The Markdown table of a report, made from figures in this file, and of the committed reports."""

import json
from pathlib import Path

import pytest

from hir_jax.bench import scaling, table
from hir_jax.types import InputError

SECONDS = {"median": 20.0, "min": 19.0, "max": 1234.5}
HEAD = {
    "config_file": "configs/x.py", "device": "cpu", "cpus": 2, "devices": 1, "date": "2026-11-23T04:05:06Z",
    "dtype": "float32", "versions": {"python": "3.11.2", "jax": "0.10.2", "jaxlib": "0.10.2"},
    "matmul_flops_per_s": {"float32": 190e9}, "read_bytes_per_s": 13.6e9, "peak_memory_gb": 6.94,
    "load_average": [0.1, 2.04], "sizes": {"rounds": 5},
}  # fmt: skip
ROLLOUT = {
    "rows": 48, "prompt_tokens": 80.0, "new_tokens": 128, "seconds": SECONDS, "tokens_per_s": 307.2,
    "fraction_of_floor": 0.634, "floor_seconds": 12.68,
}  # fmt: skip
PEER = {
    "peer_seconds": {"median": 50.0, "min": 49.5, "max": 51.0},
    "times_peer": {"median": 2.5, "min": 2.0, "max": 2.6},
}


def test_one_row_worked_by_hand():
    caption, _, *rows = table.markdown(HEAD | {"rollout": ROLLOUT | PEER}).splitlines()
    assert caption == (
        "configs/x.py on cpu (2 cores, 1 devices), 2026-11-23, float32, python 3.11.2, jax 0.10.2; measured in the same run: "
        "matmul 190 GFLOP/s float32, memory 13.6 GB/s; memory of the process up to 6.9 GB; load average 0.1, then 2.0; 5 rounds"
    )
    assert rows == [
        "| what | seconds, median (range) | tokens/s | of the ceiling | against | its seconds | times as fast |",
        "|---|---|---|---|---|---|---|",
        "| rollout, 48 x (80 + 128) | 20.0 (19.0 to 1,234) | 307 | 63% (floor 12.7 s) | transformers' generate "
        "| 50.0 (49.5 to 51.0) | 2.50 (2.00 to 2.60) |",
    ]


def test_columns_in_which_nothing_stands_are_left_out():
    rows = table.markdown(HEAD | {"rollout": ROLLOUT}).splitlines()[2:]
    assert (
        rows[0] == "| what | seconds, median (range) | tokens/s | of the ceiling |" and rows[1] == "|---|---|---|---|"
    )


def test_a_step_says_what_was_left_out():
    step = {
        "sequences": 32, "steps_per_s": 0.05, "steps": 4, "steps_compiling": 2, "seconds": SECONDS, "padding": 0.083,
        "sampled_tokens_per_s": 20.0, "overhead_share": 0.004,
    }  # fmt: skip
    row = table.markdown(HEAD | {"step": step}).splitlines()[-1]
    what = "a step of 32 sequences, 0.05 steps/s, padding 8%; 4 steps, 2 that compiled left out"
    assert row == f"| {what} | 20.0 (19.0 to 1,234) | 20.0 | overhead 0.4% |"


def test_both_starts_have_a_row():
    first = {"seconds": 80.0, "seconds_to_step": 24.0, "compilations": 240, "compile_seconds": 52.0, "from_cache": 0}
    second = first | {"seconds": 20.0, "compile_seconds": 6.5, "from_cache": 31}
    rows = table.markdown(HEAD | {"start": {"first": first, "second": second, "seconds_ratio": 0.25}}).splitlines()
    assert rows[4:] == [
        "| first start, to the end of a step: the step begins after 24.0 s; 240 compilations of 52.0 s, 0 read from the cache "
        "| 80.0 |  |  |  |",
        "| second start: the step begins after 24.0 s; 240 compilations of 6.50 s, 31 read from the cache "
        "| 20.0 | the first | 80.0 | 4.00 |",
    ]


def test_growth_is_the_power():
    assert scaling.growth([8, 16, 32], [1.0, 5.0, 16.0]) == pytest.approx(2.0)
    case = {"batch": 8, "rollout": {"seconds": SECONDS, "tokens_per_s": 1.0}}
    case["learner"] = case["rollout"]
    parts = {
        axis: {"cases": [case | {axis: 8, "parameters": 9}], "growth": {"rollout": 1.0, "learner": 0.5}}
        for axis in ("batch", "response", "model", "devices")
    }
    found = table.lines(HEAD | {"scaling": parts})
    assert len(found) == 8 and found[1].ceiling == "seconds ~ batch^0.50" and "parameters 9" in found[4].what


def test_committed_reports_are_read(capsys):
    paths = sorted((Path(__file__).parents[1] / "experiments" / "results" / "bench").glob("*.json"))
    table.main([str(path) for path in paths])
    assert len(paths) > 5 and capsys.readouterr().out.count("measured in the same run") == len(paths)


def test_files_are_read_or_refused_by_name(tmp_path, capsys):
    good, old, broken = tmp_path / "good.json", tmp_path / "old.json", tmp_path / "broken.json"
    good.write_text(json.dumps(HEAD | {"rollout": ROLLOUT}))
    old.write_text(json.dumps({k: v for k, v in HEAD.items() if k != "read_bytes_per_s"} | {"rollout": ROLLOUT}))
    broken.write_text("{")
    table.main([str(good), str(good)])
    assert capsys.readouterr().out.count("| rollout, 48") == 2
    with pytest.raises(InputError, match=r"old.json: lacks 'read_bytes_per_s'.*\n.*broken.json: not valid JSON"):
        table.main([str(old), str(broken), str(good)])
    assert capsys.readouterr().out.count("| rollout, 48") == 1
    with pytest.raises(InputError, match="--output"):
        table.main([])
