"""Fixtures for reports: two evaluations of the same problems, and a report in a browser."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.evaluated import SUMS, answers_of, finished_evaluation, small_config, write_results

from rgtrain.reporting.evaluation_reader import Evaluation, read_evaluation
from rgtrain.reporting.evaluation_report import write_report

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# Text by which a model may try to run code in the browser of a reader.
HOSTILE = """<script>window.ran = 1</script></script><img src=x onerror="window.ran = 1">-->
<svg onload="window.ran = 1">
&lt;b&gt; {{ 7 * 7 }} ${window.ran = 1} " onmouseover="window.ran = 1" \ud800"""


@pytest.fixture(scope="session")
def pair_of_folders(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pair")
    scores = {"base": [1, 0.5, 0, 0, 1, 0.25], "trained": [1, 1, 1, 0, 0, 1]}
    return [finished_evaluation(folder, name, values).folder for name, values in scores.items()]


@pytest.fixture
def pair(pair_of_folders, tmp_path) -> list[Evaluation]:
    # A test may damage its copies.
    return [read_evaluation(Path(shutil.copytree(folder, tmp_path / folder.name))) for folder in pair_of_folders]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("Chromium is not installed: apt-get install chromium-headless-shell")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as browsers:
        # As root, for example in CI, Chromium's sandbox does not start.
        browser = browsers.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(browser) -> Callable[..., object]:
    """Return a function that opens a file and collects errors and requests in the page's `problems`."""

    def opened(file: Path, *, ready: str, **options):
        page = browser.new_page(**options)
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda message: page.problems.append(message.text))
        page.on("request", lambda request: page.problems.append(request.url) if file.name not in request.url else None)
        page.goto(file.as_uri())
        page.wait_for_selector(ready)
        return page

    return opened


@pytest.fixture(scope="module")
def page(open_page, tmp_path_factory) -> object:
    """Open the report of 70 answers with hostile texts in a headless browser."""
    config = small_config(tmp_path_factory.mktemp("report"), datasets=(dataclasses.replace(SUMS, size=70),))
    answers = answers_of(config, [1] * 30 + [0.5] * 10 + [0] * 30)
    answers = [dataclasses.replace(answer, completion=f"{answer.problem} {HOSTILE}") for answer in answers]
    answers[-1] = dataclasses.replace(answers[-1], error="timeout")
    answers[-2] = dataclasses.replace(answers[-2], answer=None, finish_reason="length")
    return open_page(write_report(write_results(config, answers).path), ready="#answers details")
