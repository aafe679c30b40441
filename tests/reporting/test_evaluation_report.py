"""The report in a browser."""

import csv
import dataclasses
import itertools
import json
from pathlib import Path

import pytest
from support.evaluated import SUMS, answers_of, small_config, write_results

from rgtrain.errors import ConfigError
from rgtrain.reporting import answer_data
from rgtrain.reporting.comparison import compare
from rgtrain.reporting.evaluation_reader import read_evaluation
from rgtrain.reporting.evaluation_report import report, write_report


def test_a_damaged_entry_does_not_stop_the_report(pair):
    answers = [dataclasses.replace(answer, entry="[" * 100_000) for answer in pair[0].answers]
    assert report(dataclasses.replace(pair[0], answers=answers))


def shown(page) -> str:
    return page.inner_text("#num-answers")


def test_answers_are_filtered_by_verdict_dataset_and_text(page):
    counts = {}
    for verdict in ("right", "partly", "wrong", "error", "none", ""):
        page.select_option("#of-verdict", verdict)
        counts[verdict] = shown(page)
    numbers = {"right": 30, "partly": 10, "wrong": 28, "error": 1, "none": 1, "": 70}
    assert counts == {verdict: f"{number} of 70 problems" for verdict, number in numbers.items()}
    page.fill("#with-text", "69 <SCRIPT>")
    assert shown(page) == "1 of 70 problems"
    page.fill("#with-text", "")
    page.check("#cut-off")
    assert shown(page) == "1 of 70 problems"
    page.uncheck("#cut-off")
    page.select_option("#of-dataset", "0")
    assert shown(page) == "70 of 70 problems"


def test_all_answers_can_be_shown(page):
    while page.locator("#more").is_visible():
        page.click("#more")
    assert page.locator("#answers details").count() == 70


def test_model_output_is_shown_verbatim_and_never_runs(page):
    page.locator("#answers details").first.evaluate("item => { item.open = true }")
    text = page.locator("#answers details").first.locator("pre.completion-text").inner_text()
    assert "<script>window.ran = 1</script></script><img src=x onerror" in text
    assert page.evaluate("window.ran") is None
    assert page.locator("img, #answers script, #answers svg").count() == 0
    assert page.problems == []


def test_the_table_can_be_sorted_and_filtered(tmp_path, page):
    config = small_config(tmp_path)
    file = tmp_path / "other.html"
    results = write_results(config, answers_of(config, [1, 0.5, 0, 0, 1, 1]))
    file.write_text(report(read_evaluation(results.path)))
    page.goto(file.as_uri())
    names = lambda: page.locator("#datasets tbody tr:visible td:nth-child(2)").all_inner_texts()  # noqa: E731
    page.click("text=right %")
    assert names() == ["spell_backward", "chain_sum"]
    page.click("text=right %")
    assert names() == ["chain_sum", "spell_backward"]
    page.fill("#find-dataset", "SPELL")
    assert names() == ["spell_backward"]
    assert page.locator("#levels .cell").count() > 2
    assert page.locator("#chart .whisker").count() == 5


def test_refused_requests_and_unknown_lengths_are_shown_as_such(tmp_path):
    config = small_config(tmp_path)
    answers = answers_of(config, [1, 0.5, 0, 0, 1, 1], tokens=None)
    refused = [dataclasses.replace(answer, refused="content filter", score=0.0) for answer in answers[4:]]
    evaluation = read_evaluation(write_results(config, [*answers[:4], *refused]).path)
    page = report(evaluation)
    assert "<b>2</b>requests refused by the endpoint, not counted as wrong" in page
    assert page.count("<td>unknown</td>") == 2
    with pytest.raises(ConfigError, match="compared on dataset 'spell_backward' because none of its questions"):
        compare([evaluation, evaluation])


NUMBERS = itertools.count()
# Texts that a spreadsheet takes for formulas, the second after an invisible character.
ANSWERS = {1: "=1+1", 3: "\u200b-1", 4: " \t@x"}


@pytest.fixture(scope="module")
def repeated_file(tmp_path_factory):
    config = small_config(tmp_path_factory.mktemp("repeated"), temperature=1, eval_repeats=3)
    scores = [[1, 1, 0, 0.5, 0, 1], [1, 0, 0, 0, 0, 1], [1, 0, 0, 0, 1, 1]]
    answers = [
        dataclasses.replace(answer, tokens=10 * answer.problem + 5, answer=ANSWERS.get(answer.problem, 'a,"b"'))
        for repeat, row in enumerate(scores)
        for answer in answers_of(config, row, repeat=repeat)
    ]
    return write_report(write_results(config, answers).path)


@pytest.fixture(scope="module")
def shared_page(open_page, repeated_file):
    return open_page(repeated_file, ready="#answers details")


@pytest.fixture
def repeated(shared_page, repeated_file):
    # With another query, the same file is loaded again.
    shared_page.goto(f"{repeated_file.as_uri()}?{next(NUMBERS)}")
    shared_page.wait_for_selector("#answers details")
    return shared_page


def rows_of(page):
    return [row.split(" · ")[0] for row in page.locator("#answers summary").all_inner_texts() if "think" not in row]


def test_answers_are_grouped_by_problem(repeated):
    assert shown(repeated) == "6 of 6 problems (18 of 18 answers)"
    assert rows_of(repeated)[:3] == ["3 of 3 right chain_sum 0", "1 of 3 right chain_sum 1", "0 of 3 right chain_sum 2"]
    first = repeated.locator("#answers summary").first.inner_text()
    assert 'a,"b" (3 times) · expected ' in first and "mean score 1.00 · 5 tokens on average" in first
    counts = {}
    for name in ("right", "sometimes", "never"):
        repeated.select_option("#of-verdict", name)
        counts[name] = shown(repeated)[0]
    assert counts == {"right": "2", "sometimes": "2", "never": "2"}


def test_problems_are_sorted_by_score_and_tokens(repeated):
    repeated.select_option("#order", "score")
    assert rows_of(repeated)[0] == "0 of 3 right chain_sum 2"
    repeated.select_option("#order", "-tokens")
    assert rows_of(repeated)[0] == "3 of 3 right spell_backward 1"


def test_a_link_opens_its_problem_with_the_filters(repeated):
    repeated.click("#datasets button:text('spell_backward')")
    assert shown(repeated).startswith("2 of 6") and repeated.url.endswith("#dataset=1")
    repeated.select_option("#of-dataset", "")
    repeated.select_option("#of-verdict", "sometimes")
    repeated.locator("h1").click()
    repeated.keyboard.press("ArrowRight")
    repeated.keyboard.press("ArrowRight")
    address = repeated.url
    assert address.endswith("#verdict=sometimes&problem=4")
    repeated.goto("about:blank")
    repeated.goto(address)
    repeated.wait_for_selector("#problem-4[open]")
    assert repeated.locator("#answers details[open]").count() == 1
    assert shown(repeated).startswith("2 of 6")
    repeated.click("text=link to this problem >> visible=true")
    # The page reads the new address later, in another event.
    repeated.wait_for_selector("#num-answers:has-text('6 of 6')")
    repeated.wait_for_selector("#problem-4[open]")


def test_a_selection_is_saved_as_csv_and_json_and_copied(repeated, shared_page):
    repeated.select_option("#of-verdict", "sometimes")
    with repeated.expect_download() as download:
        repeated.click("#save-csv")
    with Path(download.value.path()).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["problem"], row["repeat"]) for row in rows] == [(p, r) for p in "14" for r in "012"]
    assert rows[0]["answer"] == "'=1+1" and rows[3]["answer"] == "' \t@x" and rows[0]["verdict"] == "right"
    repeated.select_option("#of-verdict", "never")
    with repeated.expect_download() as download:
        repeated.click("#save-csv")
    with Path(download.value.path()).open(newline="", encoding="utf-8") as file:
        assert {row["answer"] for row in csv.DictReader(file)} == {'a,"b"', "'\u200b-1"}
    repeated.select_option("#of-verdict", "sometimes")
    with repeated.expect_download() as download:
        repeated.click("#save-json")
    saved = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert len(saved) == 6 and saved[0]["answer"] == "=1+1" and saved[0]["cut_off"] is False
    repeated.click("#copy")
    repeated.wait_for_selector("text=2 problems copied")
    assert [problem for problem in shared_page.problems if not problem.startswith(("about:", "blob:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_report_without_scrolling_sideways(open_page, repeated_file, scheme):
    options = {"viewport": {"width": 390, "height": 800}, "color_scheme": scheme}
    page = open_page(repeated_file, ready="#answers details", **options)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_equal_datasets_are_folded_into_one_row_that_opens(open_page, tmp_path):
    datasets = tuple(dataclasses.replace(SUMS, size=1, seed=seed) for seed in range(100, 106))
    config = small_config(tmp_path, datasets=datasets)
    page = open_page(
        write_report(write_results(config, answers_of(config, [0, 0, 1, 0, 0, 0])).path), ready="#answers details"
    )
    visible = lambda: page.locator("#chart .bar-row:not(.soft)").evaluate_all(  # noqa: E731
        "rows => rows.filter((row) => row.checkVisibility()).length"
    )
    assert page.locator("#chart .folded summary").inner_text().split("\n")[0].strip() == "5 datasets"
    assert visible() == 2
    page.click("#chart .folded summary")
    assert visible() == 7
    page.close()


def test_a_summary_of_an_older_version_is_read(pair):
    summary = pair[0].folder / "summary.json"
    values = json.loads(summary.read_text())
    expected = json.loads(json.dumps(values))
    for measures in (values["overall"], *values["categories"], *values["datasets"]):
        for name in ("num_refused", "num_questions", "effective_sample_size", "mean_score_interval"):
            del measures[name]
        # An interval as it was computed before.
        measures["strict_accuracy_interval"] = [0.0, 1.0]
        del measures["pass_at"]["1"]["interval"], measures["majority_at"]["1"]["interval"]
    summary.write_text(json.dumps(values))
    assert read_evaluation(pair[0].folder).summary == expected


def test_a_report_names_the_datasets_that_repeat_questions(pair, tmp_path):
    answers = [
        dataclasses.replace(answer, fingerprint=pair[0].answers[0].fingerprint) if answer.problem < 3 else answer
        for answer in pair[0].answers
    ]
    page = report(read_evaluation(write_results(small_config(tmp_path, model_path="models/new"), answers).path))
    assert "chain_sum has 2 distinct questions in 4 problems." in page
    assert "<b>6</b>problems (4 distinct), 6 answers" in page
    assert "<td>4</td><td>2</td><td>4</td>" in page
    assert "spell_backward has" not in page and "Some problems repeat" not in report(pair[0])


def test_texts_are_cut_so_that_a_browser_can_read_them_all(pair, monkeypatch):
    monkeypatch.setattr(answer_data, "_MAX_SUM", 10_000)
    answers = [dataclasses.replace(answer, completion="x" * 30_000) for answer in pair[0].answers]
    limit = answer_data.text_limit(answers)
    assert 800 < limit < 2000
    shown = answer_data.answer_data(answers[0], max_chars=limit)["completion"]
    assert shown == "x" * limit + f"… ({30_000 - limit} more characters in results.jsonl)"
    escaped = [dataclasses.replace(answer, completion="\x01" * 30_000) for answer in answers]
    assert answer_data.text_limit(escaped) < limit / 3
    assert answer_data.text_limit([]) == 20_000
