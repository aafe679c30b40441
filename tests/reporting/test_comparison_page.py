"""The page of a comparison in a browser: the answers of both models, filters, links and settings."""

import dataclasses
import itertools

import pytest
from support.evaluated import answers_of, small_config, write_results

from rgtrain.reporting.comparison import compare, outcome
from rgtrain.reporting.comparison_page import comparison_page, write_comparison
from rgtrain.reporting.evaluation_reader import read_evaluation
from rgtrain.reporting.evaluation_report import write_report

HOSTILE = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"
NUMBERS = itertools.count()
SCORES = {"base": [1, 0, 0, 0.5, 1, 0], "trained": [1, 1, 0, 0.5, 0, 1], "third": [0, 0, 0, 0, 0, 0]}


def evaluated(folder, name):
    config = small_config(folder, model_path=f"models/{name}", dtype="bfloat16" if name == "trained" else "float32")
    answers = [dataclasses.replace(a, completion=f"{name} {HOSTILE}") for a in answers_of(config, SCORES[name])]
    path = write_results(config, answers).path
    write_report(path)
    return read_evaluation(path)


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    return [evaluated(folder / "results (1)", name) for name in SCORES]


@pytest.fixture(scope="module")
def file(evaluations):
    file = evaluations[0].folder.parents[1] / "compared.html"
    write_comparison(evaluations, compare(evaluations), page=file)
    return file


@pytest.fixture(scope="module")
def shared_page(open_page, file):
    return open_page(file, ready="#question h3")


@pytest.fixture
def page(shared_page, file):
    # With another query, the same file is loaded again.
    shared_page.goto(f"{file.as_uri()}?{next(NUMBERS)}")
    shared_page.wait_for_selector("#question h3")
    return shared_page


def position(page) -> str:
    return page.inner_text("#position")


def test_outcomes_filter_the_questions_as_the_table_counts_them(page):
    counts = {}
    for name in ("won", "lost", "wrong", "right", "partly", "unpaired"):
        page.select_option("#of-outcome", name)
        counts[name] = position(page).removeprefix("question 1 of ").split()[0]
    assert counts == {"won": "2", "lost": "1", "wrong": "1", "right": "1", "partly": "1", "unpaired": "no"}
    cells = page.locator("section.comparison").first.locator("tr.overall td").all_inner_texts()
    assert cells[6:8] == ["2", "1"]


def test_a_click_on_a_row_shows_its_questions(page):
    table = page.locator("table.compared").first
    table.locator("tr", has_text="spell_backward").locator("button").first.click()
    assert position(page) == "question 1 of 2 (6 in all)"
    table.locator("tr", has_text="spell_backward").locator("button[data-outcome=lost]").click()
    assert position(page) == "question 1 of 1 (6 in all)"
    assert page.locator("#question h3").first.inner_text() == "spell_backward 0: lost"
    table.locator("tr", has_text="arithmetic (all)").locator("td").nth(4).click()
    assert position(page) == "question 1 of 4 (6 in all)"


def test_both_models_stand_side_by_side(page):
    page.select_option("#of-outcome", "lost")
    columns = page.locator(".two-columns section")
    assert [column.split("\n")[0] for column in columns.all_inner_texts()] == ["base", "trained"]
    assert "score 1.00" in columns.nth(0).inner_text() and "score 0.00" in columns.nth(1).inner_text()
    assert columns.nth(0).bounding_box()["y"] == columns.nth(1).bounding_box()["y"]
    page.select_option("#of-comparison", "1")
    assert columns.nth(1).inner_text().startswith("third")


def test_keys_order_and_text_move_and_filter(page):
    page.locator("h1").click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert position(page) == "question 2 of 6 (6 in all)"
    page.select_option("#order", "score")
    assert page.locator("#question h3").first.inner_text() == "spell_backward 0: lost"
    page.fill("#with-text", "TRAINED </SCRIPT>")
    assert position(page) == "question 1 of 6 (6 in all)"
    assert page.locator("#question mark").first.text_content() == "trained </script>"


def test_a_link_opens_its_question_with_the_filters(page):
    page.select_option("#of-dataset", "1")
    page.click("#next")
    heading, address = page.locator("#question h3").first.inner_text(), page.url
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector("#question h3")
    assert page.locator("#question h3").first.inner_text() == heading
    assert page.input_value("#of-dataset") == "1"


def test_the_page_links_to_the_problem_in_a_report_and_back(page):
    page.select_option("#of-outcome", "lost")
    page.locator(".two-columns a").nth(1).click()
    page.wait_for_selector("#answers details[open]")
    assert page.locator("#answers details[open]").get_attribute("id") == "problem-4"
    page.click("#back a")
    page.wait_for_selector("#question h3")
    assert page.locator("#question h3").first.inner_text() == "spell_backward 0: lost"


def test_a_report_leads_back_to_relative_pages_only(shared_page, evaluations):
    report = (evaluations[0].folder / "report.html").as_uri()
    for link in ("../x.html", "javascript:alert(1)//.html", "//host/x.html", "/etc/x.html", "http://host/x.html"):
        shared_page.goto(f"{report}?{next(NUMBERS)}#from={link}")
        shared_page.wait_for_selector("#answers details")
        assert shared_page.locator("#back").is_visible() == (link == "../x.html")


def test_tables_are_sorted(page):
    table = page.locator("table.compared").first
    table.locator("th button", has_text="points").click()
    assert table.locator("tbody td:first-child").first.inner_text() == "chain_sum"
    table.locator("th button", has_text="points").click()
    assert table.locator("tbody td:first-child").first.inner_text() == "spell_backward"


def test_model_text_is_shown_verbatim_and_never_runs(page, shared_page):
    assert HOSTILE in page.locator("pre.completion-text").first.inner_text()
    assert page.evaluate("window.ran") is None
    assert page.locator("#question img, #question script").count() == 0
    assert [problem for problem in shared_page.problems if not problem.startswith(("about:", "file:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_bars_without_scrolling_sideways(open_page, file, scheme):
    page = open_page(file, ready="#question h3", viewport={"width": 390, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator(".bar-row .bar").first.bounding_box()
    assert box["width"] > 10 and box["x"] + box["width"] < 390
    page.close()


def test_settings_that_differ_are_marked(page):
    rows = page.locator("#settings tr.differs").all_inner_texts()
    assert any(row.split("\t")[:3] == ["≠", "dtype", "float32"] for row in rows)
    assert "≠" not in page.locator("#settings tr", has_text="weights' hash").inner_text()


def test_models_are_called_before_and_after_only_if_one_was_trained_from_the_other(evaluations, tmp_path):
    base, trained, _ = evaluations
    page = tmp_path / "page.html"
    assert compare([base, trained])[0].labels == ("base", "trained")
    assert "(after)" not in comparison_page([base, trained], compare([base, trained]), page=page)
    exported = dataclasses.replace(trained, summary=trained.summary | {"trained_from": "models/base"})
    assert compare([base, exported])[0].labels == ("before", "after")
    assert "trained (after) was trained from base (before)" in comparison_page(
        [base, exported], compare([base, exported]), page=page
    )
    other = dataclasses.replace(trained, summary=trained.summary | {"trained_from": "models/other"})
    assert compare([base, other])[0].labels == ("base", "trained")


def test_outcomes_count_right_answers(evaluations):
    def answers(*scores, refused=""):
        answer = evaluations[0].answers[0]
        return [dataclasses.replace(answer, score=score, refused=refused) for score in scores]

    assert outcome(answers(1, 0), answers(1, 1)) == "won"
    assert outcome(answers(1, 0), answers(0, 0.5)) == "lost"
    assert outcome(answers(1, 1), answers(1)) == "right"
    assert outcome(answers(1, 0), answers(0, 1)) == "partly"
    assert outcome(answers(0.5), answers(0.25)) == "partly"
    assert outcome(answers(0.5), answers(0)) == "wrong"
    assert outcome(answers(1), answers(0, refused="no")) == "unpaired"
    assert outcome(answers(1), []) == "unpaired"
