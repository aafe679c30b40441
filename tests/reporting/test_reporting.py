"""Comparisons of evaluations, and the report as a browser shows it."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.evaluated import SUMS, answers_of, small_config, write_results

from rgtrain.errors import ConfigError
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.paths import PROJECT_ROOT
from rgtrain.reporting.comparison import compare
from rgtrain.reporting.comparison_tables import as_html, as_markdown, as_text
from rgtrain.reporting.evaluation_reader import Evaluation, read_evaluation
from rgtrain.reporting.evaluation_report import report, write_report
from rgtrain.reporting.levels import accuracy_by_level

COMPARE = PROJECT_ROOT / "evaluation" / "compare_models.py"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# What a model may write to run in the page of whoever reads it.
HOSTILE = """<script>window.ran = 1</script></script><img src=x onerror="window.ran = 1">-->
<svg onload="window.ran = 1">
&lt;b&gt; {{ 7 * 7 }} ${window.ran = 1} " onmouseover="window.ran = 1" \ud800"""


def evaluation(folder, name: str, scores: list[float], **changes) -> Evaluation:
    config = small_config(folder, model_path=f"models/{name}", **changes)
    return read_evaluation(write_results(config, answers_of(config, scores)).path)


@pytest.fixture
def pair(tmp_path) -> list[Evaluation]:
    scores = {"base": [1, 0.5, 0, 0, 1, 0.25], "trained": [1, 1, 1, 0, 0, 1]}
    return [evaluation(tmp_path, name, values) for name, values in scores.items()]


def test_a_comparison_is_paired_by_problem(pair):
    [comparison] = compare(pair)
    sums, words = comparison.datasets
    assert (sums.before, sums.after, sums.difference) == (0.25, 0.75, 0.5)
    assert (sums.num_won, sums.num_lost, words.num_won, words.num_lost) == (2, 0, 1, 1)
    assert (comparison.overall.num_won, comparison.overall.num_lost) == (3, 1)
    assert comparison.overall.p_value == pytest.approx(10 / 16)
    assert sums.adjusted_p_value == pytest.approx(min(1, 2 * sums.p_value))


def test_models_that_answer_alike_have_no_interval(pair):
    [comparison] = compare([pair[0], pair[0]])
    assert comparison.overall.interval is None
    assert comparison.overall.p_value == 1


def test_every_other_model_is_compared_with_the_first(pair, tmp_path):
    third = evaluation(tmp_path, "third", [0] * 6)
    comparisons = compare([*pair, third])
    assert [(c.before, c.after) for c in comparisons] == [
        ("models/base", name) for name in ("models/trained", "models/third")
    ]


def test_a_dataset_that_stands_twice_has_two_names(tmp_path):
    datasets = (SUMS, dataclasses.replace(SUMS, seed=7), dataclasses.replace(SUMS, category="other"))
    twice = evaluation(tmp_path, "base", [0] * 12, datasets=datasets)
    names = [row.name for row in compare([twice, twice])[0].datasets]
    assert names == ["chain_sum (1)", "chain_sum (2)", "other/chain_sum"]


def test_evaluations_under_other_conditions_are_not_compared(pair, tmp_path):
    other = evaluation(tmp_path, "hot", [0] * 6, temperature=1, dtype="bfloat16")
    with pytest.raises(
        ConfigError, match=r"they differ in temperature \(0 and 1\); evaluate both models with the same"
    ):
        compare([pair[0], other])


def test_evaluations_of_other_problems_are_not_compared(pair):
    summary = json.loads(json.dumps(pair[1].summary))
    summary["datasets"][0]["problems_digest"] = "other"
    with pytest.raises(ConfigError, match="they asked other problems of dataset 'chain_sum'"):
        compare([pair[0], dataclasses.replace(pair[1], summary=summary)])


def test_one_evaluation_alone_is_not_compared(pair):
    with pytest.raises(ConfigError, match="name two evaluations or more"):
        compare(pair[:1])


def test_all_three_forms_of_the_table_have_the_same_cells(pair):
    comparisons = compare(pair)
    for cell in ("25.0 ± 25.0", "75.0 ± 25.0", "+50.0", "0.625", "overall"):
        assert all(cell in form(comparisons) for form in (as_text, as_markdown, as_html))


def test_names_cannot_break_out_of_markdown_or_html(pair):
    evil = [dataclasses.replace(one, summary=one.summary | {"model": {"path": "<b>|`\x1b[2J\nx"}}) for one in pair]
    assert "<b>" not in as_markdown(compare(evil)) + as_html(compare(evil))
    assert "\x1b" not in as_text(compare(evil)) + as_markdown(compare(evil))


def test_the_compare_tool_prints_and_writes_the_comparison(pair, tmp_path):
    paths = [str(pair[0].folder), str(pair[1].folder / "summary.json")]
    files = ["--markdown", "new/table.md", "--html", "new/table.html"]
    done = subprocess.run([sys.executable, COMPARE, *paths, *files], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(as_text(compare(pair)))
    assert (tmp_path / "new/table.md").read_text() == as_markdown(compare(pair))
    assert (tmp_path / "new/table.html").read_text() == as_html(compare(pair))


def test_an_unfinished_evaluation_is_refused_with_the_fix(pair, tmp_path):
    (pair[0].folder / "summary.json").unlink()
    done = subprocess.run(
        [sys.executable, COMPARE, pair[0].folder, "none"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no finished evaluation of evaluate_model.py: the same evaluate_model.py command again" in done.stderr


def paths_in(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The way to every value inside a tree of mappings and lists."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from paths_in(child, (*path, key))


def test_whatever_value_of_a_summary_is_damaged_it_is_named_or_does_not_matter(pair):
    folder, good = pair[1].folder, pair[1].summary
    num_refused = 0
    damages = ("gone", None, [], -1, "", {}, float("nan"))
    for number, path in enumerate(paths_in(good)):
        # Every kind of value meets every kind of damage somewhere.
        for damage in ("gone", damages[number % len(damages)]):
            summary = json.loads(json.dumps(good))
            parent = functools.reduce(lambda tree, key: tree[key], path[:-1], summary)
            if damage == "gone":
                del parent[path[-1]]
            else:
                parent[path[-1]] = damage
            (folder / "summary.json").write_text(json.dumps(summary))
            try:
                damaged = read_evaluation(folder)
            except ConfigError as error:
                num_refused += 1
                assert "is damaged" in str(error) and "delete" in str(error)
                continue
            report(damaged)
            try:
                as_html(compare([pair[0], damaged]))
            except ConfigError as error:
                assert "can't be compared" in str(error)
    assert num_refused > 100


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000])
def test_a_damaged_summary_is_named_with_the_fix(pair, content):
    (pair[0].folder / "summary.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"summary\.json is damaged .*; delete it, and the same evaluate_model\.py"):
        read_evaluation(pair[0].folder)


def test_results_that_lack_answers_are_not_reported_as_whole(pair):
    results = pair[0].folder / "results.jsonl"
    results.write_bytes(b"".join(results.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match="its 5 answers are not the 6 that summary.json counts; delete summary.json"):
        read_evaluation(pair[0].folder)


def test_a_damaged_entry_does_not_stop_the_report(pair):
    answers = [dataclasses.replace(answer, entry="[" * 100_000) for answer in pair[0].answers]
    assert report(dataclasses.replace(pair[0], answers=answers))


def test_a_password_that_an_older_version_wrote_is_not_shown(pair):
    summary = json.loads((pair[0].folder / "summary.json").read_text())
    summary["command"] = "python x.py base_url=http://me:pa55word@host/v1"
    summary["model"]["base_url"] = summary["config"]["base_url"] = "http://me:pa55word@host/v1"
    (pair[0].folder / "summary.json").write_text(json.dumps(summary))
    evaluation = read_evaluation(pair[0].folder)
    assert "pa55word" not in report(evaluation) + as_html(compare([evaluation, pair[1]]))


def leveled(values: list[float], right: list[bool]) -> list[Answer]:
    return [
        Answer(
            i, 0, "c", "d", 0, i, str(i), None, float(is_right), None, 1, "stop", difficulty={"n": value, "fixed": 3}
        )
        for i, (value, is_right) in enumerate(zip(values, right, strict=True))
    ]


def test_levels_are_the_values_of_what_varies():
    [(name, levels)] = accuracy_by_level(leveled([3, 2, 2, 3], [True, False, True, True])).items()
    assert name == "n"
    assert [(level.label, level.num_problems, level.accuracy) for level in levels] == [("2", 2, 0.5), ("3", 2, 1)]


def test_many_values_become_few_levels_without_losing_a_problem():
    levels = accuracy_by_level(leveled(list(range(100)), [True] * 100))["n"]
    assert 5 <= len(levels) <= 8
    assert sum(level.num_problems for level in levels) == 100
    assert (levels[0].label, levels[-1].label) == ("0 to 12", "91 to 99")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[object]:
    """The report of 70 answers with hostile texts, open in a headless browser."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium-headless-shell")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    config = small_config(tmp_path_factory.mktemp("report"), datasets=(dataclasses.replace(SUMS, size=70),))
    answers = answers_of(config, [1] * 30 + [0.5] * 10 + [0] * 30)
    answers = [dataclasses.replace(answer, completion=f"{answer.problem} {HOSTILE}") for answer in answers]
    answers[-1] = dataclasses.replace(answers[-1], error="timeout")
    answers[-2] = dataclasses.replace(answers[-2], answer=None, finish_reason="length")
    file = write_report(write_results(config, answers).path)
    with playwright.sync_playwright() as browsers:
        # Chromium's own sandbox does not start as root, as in CI.
        browser = browsers.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda message: page.problems.append(message.text))
        page.on(
            "request", lambda request: page.problems.append(request.url) if "report.html" not in request.url else None
        )
        page.goto(file.as_uri())
        page.wait_for_selector("#answers details")
        yield page
        browser.close()


def shown(page) -> str:
    return page.inner_text("#num-answers")


def test_answers_are_filtered_by_verdict_dataset_and_text(page):
    counts = {}
    for verdict in ("right", "partly", "wrong", "error", "none", ""):
        page.select_option("#of-verdict", verdict)
        counts[verdict] = shown(page)
    numbers = {"right": 30, "partly": 10, "wrong": 28, "error": 1, "none": 1, "": 70}
    assert counts == {verdict: f"{number} of 70 answers" for verdict, number in numbers.items()}
    page.fill("#with-text", "69 <SCRIPT>")
    assert shown(page) == "1 of 70 answers"
    page.fill("#with-text", "")
    page.check("#cut-off")
    assert shown(page) == "1 of 70 answers"
    page.uncheck("#cut-off")
    page.select_option("#of-dataset", "0")
    assert shown(page) == "70 of 70 answers"


def test_all_answers_can_be_reached(page):
    while page.locator("#more").is_visible():
        page.click("#more")
    assert page.locator("#answers details").count() == 70


def test_a_models_text_is_shown_as_it_is_and_never_runs(page):
    page.locator("#answers details").first.evaluate("item => { item.open = true }")
    text = page.locator("#answers details").first.locator("pre").nth(1).inner_text()
    assert "<script>window.ran = 1</script></script><img src=x onerror" in text
    assert page.evaluate("window.ran") is None
    assert page.locator("img, #answers script, #answers svg").count() == 0
    assert page.problems == []


def test_even_markup_that_got_into_the_page_could_not_run(page):
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    page.problems.clear()


def test_the_table_is_sorted_and_filtered(tmp_path, page):
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
