"""Tables of made-up runs against numbers worked by hand, and what is refused."""

import csv
import json
import math
import re
from pathlib import Path

import pytest
from scipy import stats

from experiments import report
from hir_jax.types import InputError

CURVES = {  # held-out following at steps 0, 10 and 20, of seeds 0 and 1; 8 samples a step
    "batch": ([0.0, 0.1, 0.2], [0.0, 0.2, 0.4]),
    "group": ([0.0, 0.2, 0.4], [0.0, 0.4, 0.5]),
}


def write_run(directory, curve, passes, samples=8):
    directory.mkdir(parents=True)
    rows = [{"step": 0, "heldout_following": curve[0]}]
    for step in range(1, 21):
        row = {"step": step, "samples": samples, "ila": 0.1}
        if step % 10 == 0:
            row |= {"heldout_following": curve[step // 10]}
        rows.append(row)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "metrics.jsonl").write_text(text + '{"step": 21, "sam')  # as a kill leaves it
    (directory / "config.json").write_text('{"total_steps": 20, "rollout.temperature": 1.0}')
    intervals = {"following": [curve[-1], 0, 1], "ila_shuffled": [0.02, 0, 1], "distinct": [0.9, 0, 1]}
    sampled = {"intervals": intervals, "entropy": 1.5}
    for step, found in ((9, {"1": 0.9, "8": 0.9}), (20, passes)):  # an earlier one, which comes later in the alphabet
        evaluation = directory / "evaluations" / f"heldout-step-{step}-t1-n8"
        evaluation.mkdir(parents=True)
        (evaluation / "summary.json").write_text(json.dumps({"pass_at_k": found} | sampled))


@pytest.fixture
def runs(tmp_path):
    for label, curves in CURVES.items():
        for seed, curve in enumerate(curves):
            write_run(tmp_path / "scope" / label / f"seed-{seed}", curve, {"1": curve[-1] / 2, "8": 0.5 + seed / 10})
    write_run(tmp_path / "scope" / "even" / "seed-0", [0.0, 0.9, 0.9], {})
    (tmp_path / "scope" / "even" / "seed-0" / "config.json").write_text(
        '{"total_steps": 30, "rollout.temperature": 1.0}'
    )  # not finished
    return tmp_path


def test_figures_worked_by_hand(runs):
    record = report.gather(runs / "scope")["runs"]
    assert report.figures(record["batch"][1], level=0.3, budget=120) == {
        "start": 0.0, "following": 0.4, "ila_shuffled": 0.02, "distinct": 0.9, "entropy": 1.5, "pass@1": 0.2, "pass@8": 0.6,
        "area_steps": pytest.approx(0.2), "to_level": pytest.approx(120),
        # 0, 0.2 and 0.3 after 0, 80 and 120 samples
        "area_samples": pytest.approx((0.1 * 80 + 0.25 * 40) / 120),
    }  # fmt: skip
    assert report.figures(record["batch"][0], level=0.3, budget=160)["to_level"] == math.inf


def test_means_over_samples_end_with_the_run_that_has_generated_the_fewest(runs):
    write_run(runs / "scope" / "even" / "seed-1", [0.0, 0.2, 0.4], {"1": 0.1, "8": 0.2}, samples=6)
    found = report.collect(report.gather(runs / "scope")["runs"], 0.3)
    assert [found["even"][1][name] for name in ("area_samples", "area_steps")] == pytest.approx([0.2, 0.2])
    assert found["batch"][1]["area_samples"] == pytest.approx((0.1 * 80 + 0.25 * 40) / 120)


def test_a_report_can_be_made_again_without_the_runs(runs):
    """From the files SUITE.json of the first report; the commands are there too."""
    (runs / "scope" / "commands.txt").write_text("2026-11-29, commit 1f14a36: python -m experiments.run scope\n")
    shown = report.write(runs, runs / "report", level=0.3)
    assert report.write(runs / "report", runs / "again", level=0.3) == shown and "commit 1f14a36" in shown
    for name in ("scope.json", "scope.csv", "report.md"):
        assert (runs / "again" / name).read_text() == (runs / "report" / name).read_text()
    write_run(runs / "more" / "scope" / "batch" / "seed-2", [0.0, 0.1, 0.6], {"1": 0.1, "8": 0.2})  # made later
    (runs / "more" / "scope.json").write_text((runs / "report" / "scope.json").read_text())
    assert "| batch | 3 | 0.400 +- 0.115 |" in report.write(runs / "more", runs / "together", level=0.3)
    (runs / "again" / "scope.json").write_text('{"runs": []}')
    with pytest.raises(InputError, match=r"again/scope\.json: not a file that experiments\.report has written"):
        report.write(runs / "again", runs / "report", level=0.3)


def test_tables_hold_means_and_paired_differences(runs):
    shown = report.write(runs, runs / "report", level=0.15)
    assert "| batch | 2 | 0.300 +- 0.100 | 0.020 +- 0.000 |" in shown and "even" not in shown
    assert (runs / "report" / "scope.png").stat().st_size > 10_000
    assert shown in (runs / "report" / "report.md").read_text()
    page = (runs / "report" / "report.html").read_text()
    cells = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", line) for line in page.splitlines() if line.startswith("<tr>")]
    assert ["batch", "2", "0.300 +- 0.100", "0.020 +- 0.000"] in [line[:4] for line in cells]
    assert page.count("data:image/png;base64,") == 1 and not re.search(r'(src|href)="(?!data:|#)', page)
    with open(runs / "report" / "scope.csv") as file:
        rows = {(row["variant"], row["figure"]): row for row in csv.DictReader(file)}
    gap = rows["group", "following"]  # 0.2 and 0.1: mean 0.15, standard error 0.05
    assert float(gap["difference"]) == pytest.approx(0.15)
    assert float(gap["high"]) - 0.15 == pytest.approx(0.05 * stats.t.ppf(0.975, 1))
    assert (
        gap["against"] == "batch"
        and rows["batch", "following"]["against"] == rows["batch", "following"]["difference"] == ""
    )
    assert "| variant | against |" in shown and "\n| group | batch | " in shown
    assert float(rows["group", "to_level"]["mean"]) == pytest.approx((80 * 0.75 + 80 * 0.375) / 2)


def test_samples_to_a_level_are_of_the_seeds_that_reach_it(runs):
    """The second seed of `batch` reaches 0.3 after 120 samples, the first never; both seeds of `group` do, after 120 and 60."""
    shown = report.write(runs, runs / "report", level=0.3)
    assert "mean of the seeds that reach it" in shown and "| 120 (1 of 2) |" in shown
    with open(runs / "report" / "scope.csv") as file:
        rows = {(row["variant"], row["figure"]): row for row in csv.DictReader(file)}
    batch, group = rows["batch", "to_level"], rows["group", "to_level"]
    assert (batch["seeds"], batch["reached"], float(batch["mean"])) == ("2", "1", pytest.approx(120))
    assert (group["seeds"], group["reached"], float(group["mean"])) == ("2", "2", pytest.approx(90))
    assert float(group["standard_error"]) == pytest.approx(30) and group["difference"] == ""
    assert rows["batch", "following"]["reached"] == "2"


def test_methods_are_compared_at_the_same_setting(tmp_path):
    """Compares hir-0.5 with ilr-0.5 and hir-0.9 with ilr-0.9, not with the first variant, hir-0.5; ilr-0.97 is not finished."""
    last = {
        "hir-0.5": (0.3, 0.5),
        "ilr-0.5": (0.2, 0.2),
        "hir-0.9": (0.1, 0.2),
        "ilr-0.9": (0.3, 0.3),
        "hir-0.97": (0, 0),
    }
    for label, ends in last.items():
        for seed, end in enumerate(ends):
            write_run(tmp_path / "difficulty" / label / f"seed-{seed}", [0.0, 0.0, end], {"1": 0.1, "8": 0.2})
    shown = report.write(tmp_path, tmp_path / "report", level=0.2)
    # gaps 0.1 and 0.3, -0.2 and -0.1: standard errors 0.1 and 0.05
    t = stats.t.ppf(0.975, 1)
    assert f"\n| hir-0.5 | ilr-0.5 | +0.200 ({0.2 - 0.1 * t:+.3f} to {0.2 + 0.1 * t:+.3f}) |" in shown
    assert f"\n| hir-0.9 | ilr-0.9 | -0.150 ({-0.15 - 0.05 * t:+.3f} to {-0.15 + 0.05 * t:+.3f}) |" in shown
    assert shown.count("\n| hir-0.97 |") == 1 == shown.count("\n| ilr-0.5 |")  # in the table of figures alone
    with open(tmp_path / "report" / "difficulty.csv") as file:
        rows = {(row["variant"], row["figure"]): row for row in csv.DictReader(file)}
    assert [rows[label, "following"]["against"] for label in last] == ["ilr-0.5", "", "ilr-0.9", "", ""]
    assert float(rows["hir-0.9", "following"]["difference"]) == pytest.approx(-0.15)


def test_nothing_to_report_and_broken_rows_are_named(tmp_path, runs):
    with pytest.raises(InputError, match="no finished run"):
        report.write(tmp_path / "empty", tmp_path / "out", 0.2)
    path = runs / "scope" / "group" / "seed-0" / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "samples": 8}) + "\n" for step in range(21)))
    with pytest.raises(InputError, match=r"group/seed-0: no held-out following was measured.*eval_every"):
        report.write(runs, tmp_path / "out", 0.2)
    path = runs / "scope" / "batch" / "seed-0" / "metrics.jsonl"
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(InputError, match=r"metrics\.jsonl:1"):
        report.write(runs, tmp_path / "out", 0.2)


def test_committed_results_are_small_and_their_pages_need_no_network():
    results = Path(report.__file__).parent / "results"
    files = [path for path in results.rglob("*") if path.is_file()]
    pages = [path for path in files if path.suffix == ".html"]
    assert results / "smollm2" / "report.html" in pages
    assert all(path.stat().st_size < 2_000_000 for path in pages)
    assert all(path.stat().st_size < 300_000 for path in files if path not in pages)
    for page in pages:
        assert not re.search(r"(src|href)=[\"']?(https?:)?//", page.read_text(encoding="utf-8")), page
