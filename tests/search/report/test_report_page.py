"""The report's page in a real browser: it is drawn, asks the network for nothing, and answers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ssmprune_search.report
from ssmprune.pruning.picture import outline
from ssmprune_search.evaluation.evaluator import ModelEvaluators
from ssmprune_search.report.samples import SAMPLES, Bench
from ssmprune_search.results.outcome import Outcome

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no Chromium: install chromium and chromium-driver"
    ),
]


@pytest.fixture(scope="module")
def page(
    _finished_run: Path,
    weights: Path,
    with_merging: Callable[[Outcome], Outcome],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """A report with kept and merged tokens, of a model with random weights."""
    run = Path(shutil.copytree(_finished_run, tmp_path_factory.mktemp("page") / "run"))
    evaluators = ModelEvaluators("vim_nano", weights, "digits", "cpu", ("top1", "flops"), 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssmprune_search.report, "open_bench", lambda *_: (Bench(evaluators, 1), None))
        yield ssmprune_search.report.write_report(with_merging(Outcome.read(run))).page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    """The browser with the page just loaded, its logs empty before."""
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.set_window_size(1280, 1000)
    browser.get("about:blank")
    browser.get(page.as_uri())
    return browser


def all_of(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


def text_of_all(browser: Any, selector: str) -> str:
    return "\n".join(found.text for found in all_of(browser, selector))


def text(browser: Any, selector: str) -> str:
    return browser.find_element("css selector", selector).text


def test_page_opens_without_a_message_or_a_request(opened: Any, page: Path) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]
    outside = [url for url in asked if not url.startswith(("data:", "about:"))]
    assert outside == [page.as_uri()]
    assert opened.get_log("browser") == []


def test_all_figures_are_drawn(opened: Any, page: Path) -> None:
    data = json.loads(opened.execute_script("return document.getElementById('data').textContent"))
    members = [p for p in data["points"] if p["kind"] == "front"]
    deepest = data["points"][-len(members) - 1]["search"][0] - 40
    shown = {p["id"] for p in members if p["search"][0] >= deepest}
    drawn = {p.get_attribute("data-id") for p in all_of(opened, "#front-chart .point.front")}
    assert shown <= drawn
    told = int((text(opened, "#front-chart .outside") or "0").split()[0])
    assert told >= len(members) - len(drawn) > 0
    assert len(all_of(opened, "#front-chart .line")) == 1
    for chart in ("#over-candidates", "#over-time"):
        assert all_of(opened, f"{chart} .line")
    chosen = data["policies"][members[0]["id"]]
    assert len(all_of(opened, "[data-part=tokens] rect.bar")) == len(chosen["tokens"])
    assert len(all_of(opened, "[data-part=kept] figure")) % SAMPLES == 0
    assert len(all_of(opened, "[data-part=kept] img")) >= SAMPLES
    assert all(img.get_attribute("alt") for img in all_of(opened, "img"))
    assert all_of(opened, ".bars dd")


def test_merged_patches_have_the_outlines_and_the_colors_that_the_picture_has(opened: Any) -> None:
    data = json.loads(opened.execute_script("return document.getElementById('data').textContent"))
    picker = opened.find_element("id", "picker")
    for option in picker.find_elements("css selector", "option"):
        option.click()
        stages = data["policies"][option.get_attribute("value")]["kept"]["stages"]
        groups = [text for stage in stages for text in stage.get("groups", []) if text]
        drawn = all_of(opened, "[data-part=kept] .outline")
        assert len(drawn) == sum(text.count(",") + 1 for text in groups)
        assert len({path.get_attribute("stroke") for path in drawn}) == (7 if drawn else 0)
        if not drawn:
            continue
        assert "merged (neighbors), mean similarity 0." in text_of_all(opened, ".kept .head")
        first = drawn[0].find_element("xpath", "..").find_elements("css selector", "[fill]")[0]
        assert first.get_attribute("fill").startswith("rgb(")
        assert "0:39:neighbors 2:28:alternate 3:20" in text(opened, "#policy .about")
    assert opened.get_log("browser") == []


def test_outline_is_that_of_the_picture(opened: Any) -> None:
    places = [0, 1, 8, 17, 25, 26]
    drawn = opened.execute_script(
        "return outline(arguments[0].map((n) => [n % 8, Math.floor(n / 8)]))", places
    )
    numbers = [float(number) for number in re.findall(r"[\d.]+", drawn)]
    inset = opened.execute_script("return INSET")
    lines = outline(places, 8, inset)
    assert numbers == pytest.approx([value for line in lines for end in line for value in end])


def test_hovering_a_point_shows_its_figures_and_a_click_its_policy(opened: Any) -> None:
    point = all_of(opened, "#front-chart .point.front")[0]
    marker = point.find_element("css selector", "path")
    identity = point.get_attribute("data-id")
    name = identity.replace("-", " ")
    webdriver.ActionChains(opened).move_to_element(marker).perform()
    tip = opened.find_element("css selector", ".tip")
    assert tip.is_displayed() and tip.text.startswith(name)
    assert "of the FLOPs" in tip.text and "search split" in tip.text
    webdriver.ActionChains(opened).move_to_element(marker).click().perform()
    assert text(opened, "#policy [data-part=name]") == name
    assert f"trial: {name.removeprefix('trial ')}\n" in text(opened, "[data-part=yaml]") + "\n"
    assert opened.current_url.endswith(f"#{identity}")


def test_keys_walk_along_the_front_and_choose(opened: Any) -> None:
    keys = webdriver.Keys
    opened.execute_script("document.querySelector('.point[tabindex=\"0\"]').focus()")
    before = opened.switch_to.active_element.get_attribute("data-id")
    is_last = before == all_of(opened, "#front-chart .point.front")[-1].get_attribute("data-id")
    way = keys.ARROW_LEFT if is_last else keys.ARROW_RIGHT
    opened.switch_to.active_element.send_keys(way)
    after = opened.switch_to.active_element.get_attribute("data-id")
    assert after != before
    opened.switch_to.active_element.send_keys(keys.ENTER)
    assert opened.find_element("id", "picker").get_attribute("value") == after


def test_every_pair_of_objectives_and_both_splits_are_drawn(opened: Any) -> None:
    pairs = all_of(opened, "#pairs label")
    assert [label.text for label in pairs] == [
        "Top-1 against FLOPs",
        "Top-1 against latency",
        "Latency against FLOPs",
    ]
    for label in (*pairs, *all_of(opened, "#splits label")):
        label.click()
        assert all_of(opened, "#front-chart .point.front"), label.text
        assert "NaN" not in opened.find_element("id", "front-chart").get_attribute("innerHTML")
    assert opened.get_log("browser") == []


def test_page_fits_a_phone(opened: Any) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened.refresh()
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 390
        assert all_of(opened, "#front-chart .point.front")
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_is_dark_where_the_reader_wants_it_so(opened: Any) -> None:
    def paper(scheme: str) -> str:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        return str(opened.execute_script("return getComputedStyle(document.body).backgroundColor"))

    assert paper("light") == "rgb(251, 250, 248)" and paper("dark") == "rgb(19, 21, 24)"
