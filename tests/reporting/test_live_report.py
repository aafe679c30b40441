"""The page of an evaluation while it runs."""

import dataclasses
import re
import time
from collections.abc import Iterator

import pytest
from support.evaluated import SCORES, answers_of, plan_of, small_config

from rgtrain.evaluation.engine_interface import Completion
from rgtrain.evaluation.results import ResultsFolder
from rgtrain.evaluation.runner import RunningEvaluation, Tally, answer_pending
from rgtrain.evaluation.summary import identity_of
from rgtrain.reporting import live_report
from rgtrain.reporting.live_report import live_page


def shown(page: str) -> str:
    """Return the text of a page, on one line."""
    body = page.partition("<body>")[2].partition("<script>")[0]
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def running(tmp_path, num_judged: int, num_received: int, **changes) -> RunningEvaluation:
    answers = answers_of(small_config(tmp_path), SCORES)[:num_judged]
    return RunningEvaluation(small_config(tmp_path, **changes), answers, Tally(6, num_judged, num_received), 0)


def test_the_page_shows_progress_and_accuracies_with_intervals_so_far(tmp_path):
    evaluation = running(tmp_path, 3, 4)
    evaluation.answering_since = time.monotonic() - 120
    page = live_page(evaluation, is_stopped=False)
    text = shown(page)
    assert '<meta http-equiv="refresh" content="10">' in page
    assert "It is running." in text and "These are partial results." in text
    assert "4 of 6 answers received, 1 not judged yet 33.3 % right so far (6.1 to 79.2)" in text
    assert "60 s left, 2 answers per minute" in text
    assert "arithmetic chain_sum 3 4 33.3 6.1 to 79.2 0.0 0.0 0" in text
    assert "words spell_backward 0 2 - - - - 0" in text


def test_the_page_of_an_evaluation_without_answers_says_that_the_model_starts(tmp_path):
    text = shown(live_page(running(tmp_path, 0, 0), is_stopped=False))
    assert "0 of 6 answers received - % right so far unknown left, the model is starting" in text


def test_the_page_of_a_stopped_evaluation_stays_as_it_is(tmp_path):
    page = live_page(running(tmp_path, 3, 4), is_stopped=True)
    assert "refresh" not in page and "left," not in shown(page)
    assert "It was stopped or has failed. 4 of 6 answers are kept, 1 of them not judged yet; the same" in shown(page)


def test_refused_requests_are_errors_and_no_wrong_answers(tmp_path):
    evaluation = running(tmp_path, 2, 2)
    evaluation.answers = [
        evaluation.answers[0],
        dataclasses.replace(evaluation.answers[1], refused="too long", score=0),
    ]
    assert "arithmetic chain_sum 2 4 100.0 20.7 to 100.0 0.0 0.0 1" in shown(live_page(evaluation, is_stopped=False))


def test_the_limit_and_repeats_count_for_the_answers_of_a_dataset(tmp_path):
    text = shown(live_page(running(tmp_path, 0, 0, limit=1, temperature=1, eval_repeats=8), is_stopped=False))
    assert "chain_sum 0 8" in text and "overall 0 16" in text


def test_names_are_text(tmp_path):
    page = live_page(running(tmp_path, 0, 0, model_path="<script>1</script>", name="<b>"), is_stopped=False)
    assert "<script>1" not in page and "<b>:" not in page


class WatchesThePage:
    """An engine that waits before its last answer until the page shows all others, and may then fail."""

    def __init__(self, folder: ResultsFolder, *, fails: bool):
        self._page = folder.path / "report.html"
        self._fails = fails

    def generate(self, prompts, sampling) -> Iterator[tuple[int, Completion]]:
        for position in range(len(prompts) - 1):
            yield position, Completion("<answer>1</answer>", 1, "stop")
        deadline = time.monotonic() + 60
        while "5 of 6" not in (self._page.read_text() if self._page.exists() else ""):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if self._fails:
            raise RuntimeError("out of memory")
        yield len(prompts) - 1, Completion("<answer>1</answer>", 1, "stop")

    def close(self):
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_the_page_is_written_while_answers_are_generated_and_when_that_fails(tmp_path, monkeypatch, fails):
    monkeypatch.setattr(live_report, "_WRITE_EVERY_S", 0.01)
    monkeypatch.setattr(live_report, "_MAX_SHARE", 1)
    config = small_config(tmp_path, scorer={"num_workers": 1})
    folder = ResultsFolder(config.results_folder)
    plan = dataclasses.replace(plan_of(config), start=lambda seed, num_refused: WatchesThePage(folder, fails=fails))
    with folder.writing(identity_of(config, plan)) as writer:
        if fails:
            with pytest.raises(RuntimeError, match="out of memory"):
                answer_pending(config, plan, writer, live_view=live_report.live_report)
        else:
            answer_pending(config, plan, writer, live_view=live_report.live_report)
    text = (folder.path / "report.html").read_text()
    assert ("It was stopped or has failed. 5 of 6 answers are kept" in text) == fails
    assert ("It is running." in text) != fails


def test_an_evaluation_goes_on_without_a_page_that_cannot_be_written(tmp_path, capsys):
    evaluation = running(tmp_path, 1, 1)
    (evaluation.config.results_folder / "report.html").mkdir(parents=True)
    with live_report.live_report(evaluation):
        time.sleep(0.05)
    assert "report.html cannot be written" in capsys.readouterr().out


def test_a_fault_of_the_page_does_not_hide_the_error_of_the_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(live_report, "live_page", lambda *_, **__: 1 / 0)
    with pytest.raises(RuntimeError, match="the evaluation's own"), live_report.live_report(running(tmp_path, 3, 4)):
        raise RuntimeError("the evaluation's own")
    assert "cannot be written (ZeroDivisionError: division by zero)" in capsys.readouterr().out


def test_the_page_reloads_at_most_so_often_that_it_costs_less_than_1_percent(tmp_path, monkeypatch):
    pauses, clock = [], iter(range(0, 100))

    class Over:
        def wait(self, pause):
            pauses.append(pause)
            return len(pauses) == 3

    monkeypatch.setattr(live_report, "_write", lambda *_, **__: True)
    monkeypatch.setattr(live_report.time, "perf_counter", lambda: next(clock) * 0.2)
    live_report._keep_writing(running(tmp_path, 0, 0), tmp_path / "report.html", Over())
    assert pauses == [0, pytest.approx(40), pytest.approx(40)]


@pytest.mark.parametrize(("age", "is_hidden"), [(10, True), (1000, False)])
def test_an_old_page_says_that_the_evaluation_is_probably_gone(tmp_path, monkeypatch, open_page, age, is_hidden):
    now = time.time()
    monkeypatch.setattr(live_report.time, "time", lambda: now - age)
    file = tmp_path / "report.html"
    file.write_text(live_page(running(tmp_path, 3, 3), is_stopped=False))
    page = open_page(file, ready="#datasets", viewport={"width": 390, "height": 700})
    assert page.is_hidden("#stale") == is_hidden
    assert page.problems == [] and page.evaluate("document.documentElement.scrollWidth") == 390
    assert is_hidden or "last written 16 minutes ago" in page.inner_text("#stale")
    page.close()
