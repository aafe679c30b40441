"""The report in a browser."""

import dataclasses
import json

import pytest
from support.evaluated import answers_of, small_config, write_results

from rgtrain.errors import ConfigError
from rgtrain.reporting.comparison import compare
from rgtrain.reporting.evaluation_reader import read_evaluation
from rgtrain.reporting.evaluation_report import report


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
