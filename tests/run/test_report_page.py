"""The report page in a browser: headless Chromium, driven by Selenium (Debian: chromium, chromium-driver; pip: selenium)."""

import json
import random
import shutil
import time

import pytest
from test_report import NASTY, replay, write_run

from hir_jax.run import report

selenium = pytest.importorskip("selenium", reason="the Python package selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

DRIVER, CHROMIUM = shutil.which("chromedriver"), shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    not (DRIVER and CHROMIUM), reason="no chromium or chromedriver: apt-get install chromium chromium-driver"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1200,900",
)  # fmt: skip
METRICS = (
    "ila",
    "cla",
    "policy_entropy",
    "response_tokens",
    "loss",
    "grad_norm",
    "clipped",
    "kl_old",
    "replay_integrity",
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def window(chromium):
    """A browser; at the end, its page must have logged no error and requested no file but its own."""
    chromium.get_log("browser"), chromium.get_log("performance")
    yield chromium
    assert chromium.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file:///", "data:,")) for url in asked)


def metrics(steps, seed=0):
    rng = random.Random(seed)
    rows = [{"step": s, "samples": 8, **{name: rng.random() for name in METRICS}} for s in range(1, steps + 1)]
    return [row | ({"heldout_ila": rng.random(), "heldout_cla": 0.5} if row["step"] % 5 == 0 else {}) for row in rows]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A page of 5,000 replays, and the rows."""
    path = tmp_path_factory.mktemp("many")
    rng = random.Random(0)
    rows = []
    for i in range(5000):
        marks = [rng.choice((True, False, None)) for _ in range(rng.randint(1, 5))]
        words = " ".join(rng.choice(("lantern", "harbour", "storm", "Falcon", "a")) for _ in range(rng.randint(0, 400)))
        rows.append(replay(i // 5 + 1, words, marks, score=rng.random(), integrity=rng.choice((0.25, 0.5, 0.75))))
    write_run(path / "run", metrics(1000), rows, {"method": "hir", "seed": 0, "data.size": 7})
    report.write_report(path / "r.html", {"hir": [path / "run"]})
    return path / "r.html", rows


def open_page(window, path, width=1200):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    window.get(path.as_uri())


def one(window, selector):
    return window.find_element(By.CSS_SELECTOR, selector)


def count(window):
    """The number of matches that the page announces, once what was typed has taken effect."""
    time.sleep(0.3)
    return int(one(window, "#count").text.split()[0].replace(",", ""))


def shown_steps(window):
    texts = [e.text for e in window.find_elements(By.CSS_SELECTOR, "#browser ol button")]
    return [int(text.split("step ")[1].split()[0].rstrip(",").replace(",", "")) for text in texts]


def test_search_and_filters_count_right(window, many):
    path, rows = many
    open_page(window, path)
    assert count(window) == len(rows) and len(shown_steps(window)) == 20
    search = one(window, "#filter-text")
    search.send_keys("FALCON storm harbour")
    assert count(window) == sum("Falcon storm harbour" in row["response"] for row in rows) > 0
    assert one(window, "#browser mark").text == "Falcon storm harbour"
    search.clear()
    search.send_keys("no such words")
    assert count(window) == 0 and "No replay matches" in one(window, ".replay").text
    search.clear()

    def having(mark, kind, low=1, high=1000):
        c = int(kind.split(":")[1])
        marks = [[x["satisfied"] for x in row["constraints"]] for row in rows if low <= row["step"] <= high]
        return sum(len(m) > c and m[c] is mark for m in marks)

    Select(one(window, "#filter-type")).select_by_value("=kind:3")
    assert count(window) == sum(having(mark, "kind:3") for mark in (True, False, None))
    for value, mark in (("1", True), ("0", False), ("?", None)):
        Select(one(window, "#filter-verdict")).select_by_value(value)
        assert count(window) == having(mark, "kind:3")
    one(window, "#filter-from").send_keys("100")
    one(window, "#filter-to").send_keys("250")
    assert count(window) == having(None, "kind:3", 100, 250) > 0
    assert min(shown_steps(window)) >= 100
    next(b for b in window.find_elements(By.CSS_SELECTOR, ".filters button") if b.text == "Reset").click()
    assert count(window) == len(rows) and one(window, "#filter-type").get_attribute("value") == ""


def test_order(window, many):
    open_page(window, many[0])
    for order, key, sign in (("integrity", "integrity", -1), ("worst", "score", 1), ("newest", "step", -1)):
        Select(one(window, "#filter-sort")).select_by_value(order)
        assert shown_steps(window) == [r["step"] for r in sorted(many[1], key=lambda r: sign * r[key])[:20]]


def test_keyboard_moves_between_replays(window, many):
    open_page(window, many[0])
    first = one(window, "#browser ol button")
    first.send_keys(Keys.ARROW_DOWN)
    here = window.switch_to.active_element
    assert here.get_attribute("data-index") == "1" and here.get_attribute("aria-current") == "true"
    assert "Replay 2 of 5,000" in one(window, ".replay h3").text
    here.send_keys(Keys.PAGE_DOWN)
    window.switch_to.active_element.send_keys(Keys.ARROW_UP, Keys.ENTER)
    assert (
        window.switch_to.active_element.text.startswith("Replay 21 of 5,000")
        and "page 2 of 250" in one(window, ".list").text
    )
    next(b for b in window.find_elements(By.CSS_SELECTOR, ".replay button") if "Next" in b.text).send_keys(Keys.ENTER)
    assert one(window, ".replay h3").text.startswith("Replay 22 of 5,000")
    assert "Next" in window.switch_to.active_element.text  # the focus stays where the reader was
    one(window, "#browser [aria-current=true]").send_keys(Keys.END)
    assert one(window, ".replay h3").text.startswith("Replay 5,000 of 5,000")


def test_every_control_is_reached_by_tab(window, many):
    open_page(window, many[0])
    names = set()
    for _ in range(120):
        here = window.switch_to.active_element
        here.send_keys(Keys.TAB)
        here = window.switch_to.active_element
        names.add(here.get_attribute("id") or here.get_attribute("role") or here.tag_name)
        outline = window.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", here.get_attribute("outerHTML")[:200]
        if here.get_attribute("id") == "filter-sort":
            break
    assert {"slider", "summary", "filter-text", "filter-type", "filter-verdict", "filter-from", "filter-to"} <= names


def test_long_responses_open(window, many):
    path, rows = many
    open_page(window, path)
    Select(one(window, "#filter-sort")).select_by_value("score")
    response = max(rows, key=lambda row: row["score"])["response"]
    while len(response) < 1500:
        one(window, "#browser [aria-current=true]").send_keys(Keys.ARROW_DOWN)
        place = int(one(window, "#browser [aria-current=true]").get_attribute("data-index"))
        response = sorted(rows, key=lambda row: -row["score"])[place]["response"]
    text, button = one(window, "[data-part=response]"), one(window, ".more")
    assert len(text.text) < 1300 and button.get_attribute("aria-expanded") == "false"
    button.click()
    assert text.text == response and button.get_attribute("aria-expanded") == "true"


def test_curves_read_out_and_against_samples(window, many):
    open_page(window, many[0])
    plot = one(window, "[data-metric=heldout_cla] .plot")
    assert len(window.find_elements(By.CSS_SELECTOR, "#charts .curve")) == len(METRICS) - 1 + 2
    plot.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert plot.get_attribute("aria-valuetext") == "step 10; 0.5"
    one(window, "#axis input[value=samples]").click()
    plot.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert plot.get_attribute("aria-valuetext") == "step 10, 80 samples; 0.5"
    one(window, "[data-metric=heldout_cla] summary").click()
    time.sleep(0.1)
    cells = [
        [c.text for c in row.find_elements(By.TAG_NAME, "td")]
        for row in window.find_elements(By.CSS_SELECTOR, "[data-metric=heldout_cla] tbody tr")[:2]
    ]
    assert cells == [["5", "40", "0.5"], ["10", "80", "0.5"]]


def test_type_button_filters(window, many):
    open_page(window, many[0])
    next(b for b in window.find_elements(By.CSS_SELECTOR, "#types tbody button") if b.text == "kind:4").click()
    assert count(window) == sum(len(row["constraints"]) == 5 for row in many[1])


@pytest.mark.parametrize("types", [3, 40])
def test_kept_types_over_steps(window, tmp_path, types):
    """A few types have their charts at once; the charts of many are made when the reader opens them."""
    kept = [{"step": s, "kept": {f"kind:{c}": [s, 20] for c in range(types)}} for s in (1, 2, 3)]
    run = write_run(tmp_path / "run", metrics(3), [replay(1)], {"method": "hir"}, kept)
    old = write_run(tmp_path / "old", metrics(3), [replay(1)], {"method": "hir"})
    report.write_report(tmp_path / "r.html", {"new": [run], "old": [old]})
    open_page(window, tmp_path / "r.html")
    time.sleep(0.3)
    charts = "#kept [data-metric]"
    assert len(window.find_elements(By.CSS_SELECTOR, charts)) == (3 if types == 3 else 0)
    if types > 3:
        one(window, "#kept > summary").click()
        time.sleep(0.3)
    assert len(window.find_elements(By.CSS_SELECTOR, charts + " .curve")) == types
    plot = one(window, "#kept [data-metric='kind:2'] .plot")
    plot.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert plot.get_attribute("aria-valuetext") == "step 2; new 0.1"
    one(window, "#axis input[value=samples]").click()
    plot.send_keys(Keys.HOME)
    assert plot.get_attribute("aria-valuetext") == "step 1, 8 samples; new 0.05"
    assert "Over all replays; of old over the replays in replays.jsonl" in one(window, "#types").text
    buttons = [button.text for button in window.find_elements(By.CSS_SELECTOR, "#types tbody button")]
    assert sorted(buttons) == ["kind:0", "kind:1"]  # those that the browser of replays holds


def test_groups_and_config(window, tmp_path):
    for name, method, seeds in (("hir", "hir", 3), ("ilr", "ilr", 1)):
        for seed in range(seeds):
            rows = [replay(s, marks=(seed % 2 == 0,)) for s in (1, 2)] if method == "hir" else []
            write_run(
                tmp_path / f"{name}{seed}",
                metrics(10 + 5 * seed, seed),
                rows,
                {"method": method, "seed": seed, "same": 1},
            )
    groups = {"hir": [tmp_path / f"hir{s}" for s in range(3)], "ilr": [tmp_path / "ilr0"]}
    report.write_report(tmp_path / "r.html", groups, title="two")
    open_page(window, tmp_path / "r.html")
    ila = one(window, "[data-metric=ila]")
    assert (
        len(ila.find_elements(By.CSS_SELECTOR, ".curve")) == 2 and len(ila.find_elements(By.CSS_SELECTOR, ".band")) == 1
    )
    assert "1 of 3 seeds" in ila.text and "standard error" in one(window, "#spread").text
    assert [e.text for e in window.find_elements(By.CSS_SELECTOR, "#legend li")] == ["hir", "ilr"]
    Select(one(window, "#filter-run")).select_by_value("hir/hir1")
    assert count(window) == 2
    one(window, "#config summary").click()
    one(window, "#config-differ").click()
    assert [e.text for e in window.find_elements(By.CSS_SELECTOR, "#config tbody th")] == ["method", "seed"]
    one(window, "#config-differ").click()
    one(window, "#config-filter").send_keys("SAM")
    assert [e.text for e in window.find_elements(By.CSS_SELECTOR, "#config tbody th")] == ["same"]


def test_nasty_texts_are_shown_as_text(window, tmp_path):
    rows = [replay(step, text, key=text, rewritten=text) for step, text in enumerate(NASTY, start=1)]
    run = write_run(tmp_path / "run", [{"step": 1, NASTY[0]: 1, "ila": 0.5}], rows, {NASTY[0]: NASTY[6]})
    report.write_report(tmp_path / "r.html", {NASTY[6]: [run]}, title=NASTY[0])
    open_page(window, tmp_path / "r.html")
    assert one(window, "h1").text == NASTY[0] == window.title
    for nasty in NASTY[:7]:
        response = one(window, "[data-part=response]")
        letters = "return [...arguments[0].textContent].map((letter) => letter.codePointAt(0))"
        assert window.execute_script(letters, response) == list(map(ord, nasty))
        one(window, "#browser [aria-current=true]").send_keys(Keys.ARROW_DOWN)
    one(window, "#filter-text").send_keys("</script>")
    assert count(window) == 1
    assert not window.find_elements(By.CSS_SELECTOR, "img, main script")


CASES = {
    "no files but a config": ([], [], {"method": "hir"}),
    "one step": ([{"step": 1, "ila": 0.5, "loss": 0.1, "samples": 4}], [replay(1)], None),
    "only NaN": ([{"step": s, "loss": None, "ila": float("inf")} for s in (1, 2)], [], None),
    "sft, without samples": ([{"step": s, "loss": 1 / s, "nll": 1.0} for s in (1, 2, 3)], [], {"method": "sft"}),
    "gaps": (
        [{"step": s, "loss": None if s in (2, 4) else 1.0 * s} for s in range(1, 6)],
        [{}, {"step": 2, "constraints": [{}]}],
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_sparse_runs_show_a_sensible_page(window, tmp_path, case):
    found, replays, config = CASES[case]
    report.write_report(tmp_path / "r.html", {"a": [write_run(tmp_path / "run", found, replays, config)]})
    open_page(window, tmp_path / "r.html")
    text = one(window, "main").text
    assert ("No metrics yet" in text) == (not found) and ("No replays yet" in text) == (not replays)
    assert ("No finite value" in text) == (case == "only NaN")
    assert one(window, "#axis input[value=samples]").is_enabled() == (case == "one step")
    assert not any(
        word in one(window, "body").get_attribute("innerHTML").split("<script")[0]
        for word in ("NaN", "undefined", "Infinity")
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screens_need_no_sideways_scroll(window, many, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    open_page(window, many[0], width=320)
    for details in window.find_elements(By.CSS_SELECTOR, "details"):
        window.execute_script("arguments[0].open = true", details)
    time.sleep(0.3)
    assert window.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    paper = window.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(paper.split("(")[1].split(",")[0]) < 100) == (scheme == "dark")
