"""The data of the report page against NumPy and the run's files; nasty texts, broken lines, the size of the page."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hir_jax.run import report
from hir_jax.run.files import RunError
from hir_jax.run.report_data import MAX_POINTS

NASTY = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "\"quotes\" \\ and 'others'",
    "line\u2028 and paragraph\u2029 separators",
    "\U0001f680 emoji, \ud83d half of one, \x00 nul, \x1b escape, \u202e turned, عربي",
    "{{data}} {{title}} ${x} `",
    "<img src=x onerror=alert(1)>",
    "",
    " \n\r\n\t ",
)
ROOT = Path(__file__).parents[2]


def write_run(directory, metrics=(), replays=(), config=None, kept=()):
    """Writes a run directory by hand."""
    directory.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    for name, rows in (("metrics", metrics), ("replays", replays), ("kept", kept)):
        if name == "kept" and not kept:
            continue  # a run from before there was one
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        halves = [re.search("[\ud800-\udfff]", line) for line in lines]  # these JSON can only name
        text = "".join((json.dumps(row) if h else x) + "\n" for row, x, h in zip(rows, lines, halves, strict=True))
        (directory / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
    return directory


def replay(step, response="words", marks=(True, False), **fields):
    constraints = [{"id": f"kind:{c}", "text": f"Do {c}.", "satisfied": met} for c, met in enumerate(marks)]
    kept = [c["text"] for c in constraints if c["satisfied"]]
    row = {"step": step, "key": f"k{step}", "task": "Write.", "template": "type1", "constraints": constraints}
    row |= {
        "original": " ".join(["Write.", *(c["text"] for c in constraints)]),
        "rewritten": " ".join(["Write.", *kept]),
    }
    return row | {"response": response, "score": 1.5, "integrity": len(kept) / max(1, len(marks))} | fields


class Page(HTMLParser):
    """The scripts of a page, as a browser would cut them out, and its elements."""

    def __init__(self, path):
        super().__init__()
        self.scripts, self.tags = [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.data = json.loads(self.scripts[0], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def read_back(data):
    """Replays as the page's script puts them together again."""
    strings = data["strings"]
    for row in data["replays"]:
        key, response = strings[row[4]], strings[row[10]]
        original, rewritten = ("".join(strings[i] for i in row[place]) for place in (9, 11))
        yield (
            key,
            [(strings[a], strings[b]) for a, b in zip(row[6], row[7], strict=True)],
            original,
            response,
            rewritten,
        )


def test_nasty_texts_come_back_as_they_were(tmp_path):
    rows = []
    for step, nasty in enumerate(NASTY, start=1):
        constraints = [
            {"id": nasty, "text": nasty, "satisfied": True},
            {"id": "b", "text": nasty + "!", "satisfied": None},
        ]
        row = {"original": f"{nasty} before {nasty}!", "rewritten": nasty, "key": nasty, "task": nasty}
        rows.append(replay(step, nasty, constraints=constraints, **row))
    write_run(tmp_path / "run", [{"step": 1, NASTY[0]: 1.0}], rows, {"model.checkpoint": NASTY[0], "method": NASTY[2]})
    assert report.write_report(tmp_path / "r.html", {NASTY[0]: [tmp_path / "run"]}, title=" ".join(NASTY)) == []
    page = Page(tmp_path / "r.html")
    found = list(read_back(page.data))
    for row, (key, constraints, original, response, rewritten) in zip(rows, found, strict=True):
        assert (key, original, response, rewritten) == tuple(
            row[n] for n in ("key", "original", "response", "rewritten")
        )
        assert constraints == [(c["id"], c["text"]) for c in row["constraints"]]
    assert [row[8] for row in page.data["replays"]] == ["1?"] * len(NASTY)
    assert len(page.scripts) == 4 and page.data["title"] == " ".join(NASTY) and NASTY[0] in page.data["curves"]
    assert not {"img", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert not re.search(r"[\u2028\u2029]", page.scripts[0])


def test_page_forbids_all_network(tmp_path):
    report.write_report(tmp_path / "r.html", {"a": [write_run(tmp_path / "run")]})
    page = Page(tmp_path / "r.html")
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and not re.search("https?:|\\*|'self'|connect|unsafe-eval", policy)
    assert all(not re.match("(?!#|data:)", a.get("href", "#")) and "src" not in a for _, a in page.tags)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(", "".join(page.scripts[1:])
    )


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_groups_are_means_with_standard_errors(tmp_path, seeds):
    """Seeds have different lengths: the mean at a step is over the seeds that reach it."""
    rng = np.random.default_rng(seeds)
    values = rng.normal(size=(seeds, 30)) * 10.0 ** rng.integers(-3, 4, (seeds, 1))
    lengths = 30 - np.arange(seeds) * 3
    for seed in range(seeds):
        rows = [{"step": s, "ila": values[seed, s], "samples": 8 + seed} for s in range(lengths[seed])]
        write_run(tmp_path / f"{seed}", rows)
    write_run(tmp_path / "other", [{"step": 3, "ila": 0.5}, {"step": 4, "ila": float("nan")}, {"step": 5, "ila": None}])
    groups = {"many": [tmp_path / f"{s}" for s in range(seeds)], "one": [tmp_path / "other"]}
    data, _ = report.page_data(groups, "")
    (steps, mean, error, number), one = data["curves"]["ila"]
    assert steps == list(range(30)) and one == [[3, 4, 5], [0.5, None, None], [None] * 3, [1, 0, 0]]
    for step in steps:
        there = values[: int((lengths > step).sum()), step]
        assert number[step] == len(there)
        np.testing.assert_allclose(mean[step], there.mean(), rtol=1e-6)
        if len(there) > 1:
            np.testing.assert_allclose(error[step], there.std(ddof=1) / np.sqrt(len(there)), rtol=1e-6)
        else:
            assert error[step] is None
    generated = dict(zip(*data["samples"][0], strict=True))
    assert generated[10] == pytest.approx(np.mean([(8 + s) * 11 for s in range(seeds)])) and data["samples"][1] is None


def test_long_runs_are_means_of_neighbours(tmp_path):
    n, width = 3 * MAX_POINTS - 1, 3
    ila = np.random.default_rng(0).random(n)
    rows = [
        {"step": s, "ila": ila[s - 1], "samples": 4} | ({"held": s} if s % 50 == 0 else {}) for s in range(1, n + 1)
    ]
    data, _ = report.page_data({"a": [write_run(tmp_path, rows)]}, "")
    steps, mean, *_ = data["curves"]["ila"][0]
    assert data["width"] == width and len(steps) == MAX_POINTS and steps[:2] == [3, 6] and steps[-1] == n
    np.testing.assert_allclose(mean[:-1], ila[:-2].reshape(-1, width).mean(1), rtol=1e-6)
    np.testing.assert_allclose(mean[-1], ila[-2:].mean(), rtol=1e-6)
    assert data["curves"]["held"][0][:2] == [list(range(50, n, 50))] * 2  # rare points keep their steps
    assert data["samples"][0] == [steps, [4 * s for s in steps]]


def test_broken_lines_are_named_but_for_an_unfinished_last_one(tmp_path):
    run = write_run(tmp_path / "run", [{"step": 1, "ila": 0.1}], [replay(1)])
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(
            b'{"step": 2, "ila"\n[1]\n\n\xff\n{"step": 3, "ila": 0.3}\n{"ila": 1}\n{"step": true}\n{"step": 4, "il'
        )
    with (run / "replays.jsonl").open("a") as file:
        file.write(json.dumps(replay(2)))  # whole, though its newline is lacking
    (run / "config.json").write_text("{")
    notes = report.write_report(tmp_path / "r.html", {"a": [run]})
    starts = [
        f"{run}/config.json: not JSON",
        *(f"{run}/metrics.jsonl:{n}: " for n in (2, 3, 5)),
        f"{run}/metrics.jsonl: 2 rows",
    ]
    assert len(notes) == len(starts) and all(any(n.startswith(s) for n in notes) for s in starts)
    data = Page(tmp_path / "r.html").data
    assert data["notes"] == notes and data["curves"]["ila"][0][0] == [1, 3] and len(data["replays"]) == 2


def test_many_broken_lines_are_counted(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("no\n" * 500)
    notes = report.write_report(tmp_path / "r.html", {"a": [tmp_path]})
    assert len(notes) == 6 and "495 more lines" in notes[-1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ODD = st.dictionaries(st.sampled_from((*replay(1), "ila", "samples", "seconds/step", "loss")), JSON, max_size=8)
ODD_CONSTRAINT = st.lists(st.dictionaries(st.sampled_from(("id", "text", "satisfied")), JSON) | JSON, max_size=3)


@settings(max_examples=60)
@given(metrics=st.lists(ODD, max_size=4), replays=st.lists(ODD, max_size=4), constraints=ODD_CONSTRAINT, config=JSON)
def test_odd_data_makes_a_page(tmp_path_factory, metrics, replays, constraints, config):
    rows = [row | ({"constraints": constraints} if i % 2 else {}) for i, row in enumerate(replays)]
    path = tmp_path_factory.mktemp("odd")
    kept = [{"step": step, "kept": row} for step, row in enumerate(metrics)]
    write_run(path / "run", metrics, rows, config, kept)
    report.write_report(path / "r.html", {"a": [path / "run"], "b": [path / "run", path / "run"]})
    assert len(Page(path / "r.html").data["replays"]) == 3 * len(rows)


@pytest.mark.parametrize("typical", [600, 3_000])
def test_5000_replays_make_less_than_10_mb(tmp_path, typical):
    """Instructions that hardly repeat; responses of log-normal length, cut where they are too long for the page."""
    rng = np.random.default_rng(0)
    words = ["the", "a", "of", "lantern", "harbour", "writes", "<b>", "größer", "火", "because", "☃", "and", "seven"]
    book = " ".join(rng.choice(words, 60_000))
    rows = []
    for i in range(5000):
        length, begin = min(16_000, int(rng.lognormal(np.log(typical), 0.8))), int(rng.integers(200_000))
        constraints = [
            {"id": f"kind:{c}", "text": book[begin + 90 * c : begin + 90 * c + 80], "satisfied": c % 3 > 0}
            for c in range(6)
        ]
        texts = [c["text"] for c in constraints]
        original = f"Write {i}. " + " ".join(texts)
        rewritten = f"Write {i}. " + " ".join(t for c, t in enumerate(texts) if c % 3)
        row = {"constraints": constraints, "original": original, "rewritten": rewritten, "task": f"Write {i}."}
        rows.append(replay(i // 5, book[begin : begin + length], **row))
    report.write_report(tmp_path / "r.html", {"a": [write_run(tmp_path / "run", replays=rows)]})
    assert (tmp_path / "r.html").stat().st_size < 10_000_000
    data = Page(tmp_path / "r.html").data
    assert data["replays_found"] == 5000
    found = dict(zip((r["original"] for r in rows), rows, strict=True))
    for (_, _, original, response, rewritten), row in zip(read_back(data), data["replays"], strict=True):
        whole = found[original]["response"]
        assert rewritten == found[original]["rewritten"] and whole.startswith(response)
        assert row[12] == len(whole) - len(response) and len(response) >= min(len(whole), 300)
    assert typical > 600 or (len(data["replays"]) == 5000 and not any(row[12] for row in data["replays"]))


def test_constraint_types_are_counted_in_halves(tmp_path):
    first = write_run(tmp_path / "1", replays=[replay(1, marks=(True, False)), replay(10, marks=(True, True, None))])
    second = write_run(tmp_path / "2", replays=[replay(2, marks=(False,)), replay(None, marks=(True,))])
    data, _ = report.page_data({"a": [first, second], "b": [first]}, "")
    assert data["types"] == [
        ["kind:0", [[[3, 2, 0], [1, 1, 0]], [[1, 1, 0], [1, 1, 0]]]],
        ["kind:1", [[[1, 0, 0], [1, 1, 0]], [[1, 0, 0], [1, 1, 0]]]],
        ["kind:2", [[[0, 0, 0], [1, 0, 1]], [[0, 0, 0], [1, 0, 1]]]],
    ]


def test_types_are_counted_over_all_replays_where_the_run_did(tmp_path):
    kept = [{"step": 2, "kept": {"a": [3, 4], "b": [0, 2]}}, {"step": 10, "kept": {"a": [1, 4]}},
            {"step": 11, "kept": {"a": [5, 4], "b": [1], "c": [True, 2], "d": [0, 0], "e": None}},
            {"kept": {"a": [1, 1]}}]  # fmt: skip
    new = write_run(tmp_path / "new", replays=[replay(1, marks=(True, False))], kept=kept)
    other = write_run(tmp_path / "other", kept=[{"step": 2, "kept": {"a": [1, 4]}}])
    old = write_run(tmp_path / "old", replays=[replay(1, marks=(True,))])
    data, _ = report.page_data({"counted": [new, other], "before": [old]}, "")
    assert data["types"] == [
        ["a", [[[8, 4, 0], [4, 1, 0]], [[0, 0, 0], [0, 0, 0]]]],
        ["b", [[[2, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]],
        ["kind:0", [[[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [1, 1, 0]]]],
    ]
    assert data["sampled"] == [2] and data["notes"] == []
    # 3/4 and 1/4 at step 2: mean 1/2, standard error 1/4
    assert data["kept"] == {
        "a": [[[2, 10], [0.5, 0.25], [0.25, None], [2, 1]], None],
        "b": [[[2], [0.0], [None], [1]], None],
    }


def test_config_says_in_what_runs_differ(tmp_path):
    a = write_run(tmp_path / "a", config={"seed": 1, "method": "hir", "x": [1]})
    b = write_run(tmp_path / "b", config={"seed": 2, "method": "hir"})
    data, _ = report.page_data({"one": [a, b]}, "")
    assert data["config"] == [
        ["method", [["hir", [0, 1]]]],
        ["seed", [["1", [0]], ["2", [1]]]],
        ["x", [["[1]", [0]], [None, [1]]]],
    ]
    assert [(run["name"], run["seed"], run["steps"]) for run in data["runs"]] == [("a", "1", None), ("b", "2", None)]


@pytest.mark.parametrize("groups", [{}, {"a": []}, {"a": ["absent"]}, {"a": ["empty"]}, {"a": ["file"]}])
def test_what_is_no_run_is_an_error(tmp_path, groups):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="give"):
        report.write_report(tmp_path / "r.html", {n: [tmp_path / d for d in found] for n, found in groups.items()})
    assert not (tmp_path / "r.html").exists()


def program(*arguments):
    command = [sys.executable, "-m", "hir_jax.run.report", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_command(tmp_path):
    run = write_run(tmp_path / "a=b", [{"step": 1, "ila": 0.5}])
    done = program(run)
    assert done.returncode == 0 and Page(run / "report.html").data["groups"] == ["a=b"], done.stderr
    done = program(run, f"x={run}", f"x={run}", f"--output={tmp_path / 'r.html'}", "--title=T")
    data = Page(tmp_path / "r.html").data
    assert done.returncode == 0 and data["groups"] == ["a=b", "x"] and data["title"] == "T" and len(data["runs"]) == 3
    (run / "metrics.jsonl").write_text("{}x\n")
    done = program(run)
    assert done.returncode == 1 and f"{run}/metrics.jsonl:1: not JSON" in done.stderr
    for wrong in ((), (tmp_path / "no",), (run, run)):
        done = program(*wrong)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr


def test_module_imports_no_jax():
    """A report needs no accelerator and starts at once."""
    code = "import sys, hir_jax.run.report; sys.exit(bool({'jax', 'numpy', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def control(ila, following, held=True):
    """Metrics of 12 steps; ILA and following are each a function of the step."""
    rows = [{"step": n, "ila": ila(n), "following": following(n)} for n in range(1, 13)]
    if held:
        rows = [row | {"heldout_ila": row["ila"], "heldout_following": row["following"]} for row in rows]
    return rows


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (control(lambda n: 0.2 + n / 100, lambda n: 0.15 + n / 100), []),
        (control(lambda n: 0.3, lambda n: 0.16), []),
        (control(lambda n: 0.3, lambda n: 0.14), [r"held-out following is 0\.140, less than half of its ILA of 0\.300"]),
        (control(lambda n: 0.3, lambda n: 0.14, held=False), [r"b: following is 0\.140, less than half"]),
        # half of 0.4 to 0.62, so that only the fall is left to say; noise of one in a hundred from step to step
        (control(lambda n: 0.4 + n / 50 + n % 2 / 100, lambda n: 0.5 - n / 80), [r"rose by 0\.160 and following fell by 0\.100"]),
        (control(lambda n: 0.4 + n / 50, lambda n: 0.5 - n / 80 + (n in (9, 11)) / 2), []),  # it did not surely fall
        (control(lambda n: 0.0, lambda n: 0.0), []),
        ([{"step": 1, "ila": 0.5}, {"step": 2, "ila": 0.6}], []),
    ],
)  # fmt: skip
def test_what_the_control_says_against_a_run(metrics, words, tmp_path):
    data, _ = report.page_data({"b": [write_run(tmp_path / "b", metrics)]}, "")
    assert len(data["warnings"]) == len(words), data["warnings"]
    for found, wanted in zip(data["warnings"], words, strict=True):
        assert re.search(wanted, found)
