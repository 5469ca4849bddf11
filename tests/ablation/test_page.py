"""The page of a report in a real browser: nothing on the console, charts with a size, sorting."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mla_lm.ablation.report import About, write_report
from tests.ablation.folders import made_run

pytestmark = pytest.mark.slow
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FINAL = {"mla": 1.2, "gqa": 1.1, "mqa": 1.3}
BPB = "#arms th:nth-child(3)"  # the header of that column


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """A driver that has opened a report of three arms."""
    if not (BROWSER and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    selenium = pytest.importorskip("selenium.webdriver")
    runs = [made_run(tmp_path, arm, s, f + s / 9) for arm, f in FINAL.items() for s in (1, 2)]
    write_report(tmp_path, runs, About("title", "", "command", {}, "mla", "none"))
    options = selenium.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    driver.get((tmp_path / "report.html").as_uri())
    yield driver
    driver.quit()


def column(page: Any) -> list[str]:
    return [cell.text for cell in page.find_elements("css selector", "#arms td:first-child")]


def test_page_works_in_a_browser(page: Any) -> None:
    sizes = [chart.size for chart in page.find_elements("css selector", "figure svg")]
    assert len(sizes) == 7
    assert all(size["width"] > 300 and size["height"] > 100 for size in sizes)
    assert column(page) == ["mla", "gqa", "mqa"]
    header = page.find_element("css selector", BPB)
    for order, direction in ((["gqa", "mla", "mqa"], "ascending"), (["mqa", "mla", "gqa"], "desc")):
        header.find_element("tag name", "button").click()
        assert column(page) == order
        assert header.get_attribute("aria-sort").startswith(direction)
    page.find_element("css selector", "#arms th:first-child button").click()
    assert column(page) == sorted(FINAL)
    page.find_element("css selector", "#arms th:nth-child(4) button").click()
    assert column(page)[-1] == "mla"  # which has no difference to itself
    wide = page.execute_script("return document.body.scrollWidth > innerWidth")
    assert not wide
    assert page.get_log("browser") == []
