"""Judged answers, the numbers over them, and how they are kept and shown."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from rgtrain.errors import ConfigError
from rgtrain.evaluating.config import EvaluationConfig
from rgtrain.evaluating.engine import Completion
from rgtrain.evaluating.measures import JudgedAnswer, measure
from rgtrain.evaluating.results import ResultsFolder
from rgtrain.evaluating.summary import summarise, summary_table
from rgtrain.problems import Score, load_entry
from rgtrain.problems.evaluation_set import EvaluationDataset, make_problems
from rgtrain.reporting.compare import comparison_table
from rgtrain.tables import printable, text_table

COMPARE = Path(__file__).parents[1] / "utils" / "compare_evaluations.py"
SUMS = EvaluationDataset("arithmetic", "chain_sum", size=4)
WORDS = EvaluationDataset("words", "spell_backward", size=2)


def judged(dataset: EvaluationDataset, scores: list[float], **changes) -> list[JudgedAnswer]:
    """One answer to each problem of `dataset`, with these scores."""
    answers = [
        JudgedAnswer(dataset, problem, 0, Completion("<answer>1</answer>", 5, "stop"), "1", Score(score))
        for problem, score in zip(make_problems(dataset), scores, strict=True)
    ]
    return [dataclasses.replace(answer, **changes) for answer in answers]


@pytest.fixture
def config(tmp_path) -> EvaluationConfig:
    return EvaluationConfig("models/m", 16, 0, tmp_path, (SUMS, WORDS), "quick", save_full_results=True)


@pytest.fixture
def answers() -> list[JudgedAnswer]:
    return judged(SUMS, [1, 0.5, 0, 1]) + judged(WORDS, [1, 0.25])


def summary_of(config: EvaluationConfig, answers: list[JudgedAnswer]) -> dict:
    return json.loads(json.dumps(summarise(config, answers, command=["python", "x.py"], seconds={})))


def test_partial_credit_counts_in_the_mean_but_not_in_the_accuracy():
    measures = measure(judged(SUMS, [1, 0.5, 0, 1]))
    assert (measures.strict_accuracy, measures.mean_score) == (0.5, 0.625)


def test_answers_to_one_problem_are_one_cluster():
    answers = judged(SUMS, [1, 0, 0, 1])
    repeated = [dataclasses.replace(answer, repeat=repeat) for answer in answers for repeat in range(3)]
    once, thrice = measure(answers), measure(repeated)
    assert (thrice.num_problems, thrice.num_answers) == (4, 12)
    assert thrice.strict_accuracy_error == pytest.approx(once.strict_accuracy_error)


def test_problems_that_ask_the_same_question_are_one_problem():
    [first, *_] = judged(SUMS, [1, 0, 0, 1])
    again = dataclasses.replace(first, problem=dataclasses.replace(first.problem, index=99))
    assert measure([first, again]).num_problems == 1


def test_a_single_problem_has_no_standard_error():
    assert measure(judged(SUMS, [1, 0, 0, 1])[:1]).strict_accuracy_error is None


def test_missing_truncated_and_failed_answers_are_counted():
    right, *others = judged(SUMS, [1, 0, 0, 0])
    cut = dataclasses.replace(others[0], answer=None, completion=Completion("I think", 16, "length"))
    failed = dataclasses.replace(others[1], score=Score(0.0, error="exception: ValueError"))
    measures = measure([right, cut, failed, others[2]])
    assert measures.share_without_answer == measures.share_truncated == 0.25
    assert measures.num_scorer_errors == {"exception": 1}


def test_numbers_over_no_answers_are_refused():
    with pytest.raises(ValueError, match="no values"):
        measure([])


def test_a_summary_has_numbers_per_dataset_per_category_and_overall(config, answers):
    summary = summary_of(config, answers)
    assert [d["strict_accuracy"] for d in summary["datasets"]] == [0.5, 0.5]
    assert [(c["category"], c["num_problems"]) for c in summary["categories"]] == [("arithmetic", 4), ("words", 2)]
    assert summary["overall"]["num_answers"] == 6


def test_a_summary_carries_what_makes_it_again(config, answers):
    summary = summary_of(config, answers)
    assert summary["command"] == "python x.py"
    assert summary["config"]["max_tokens"] == 16
    assert summary["versions"].keys() >= {"python", "reasoning_gym", "torch", "transformers"}


def test_results_are_one_record_an_answer(config, answers):
    folder = ResultsFolder(config)
    folder.prepare()
    folder.write(answers, command=["x"], seconds={})
    records = [json.loads(line) for line in (folder.path / "results.jsonl").read_text().splitlines()]
    assert [record["score"] for record in records] == [1, 0.5, 0, 1, 1, 0.25]
    assert records[0].keys() >= {"dataset", "category", "seed", "index", "question", "completion", "answer", "error"}
    assert "entry" not in records[0]


def test_a_saved_entry_judges_answers_as_the_original_does(config, answers, scorer):
    folder = ResultsFolder(dataclasses.replace(config, save_metadata=True))
    folder.prepare()
    folder.write(answers, command=["x"], seconds={})
    lines = (folder.path / "results.jsonl").read_text().splitlines()
    entries = [load_entry(json.loads(line)["entry"]) for line in lines]
    assert all(scorer.score(entry["answer"], entry).accuracy == 1 for entry in entries)


def test_answers_are_kept_only_on_demand(config, answers):
    folder = ResultsFolder(dataclasses.replace(config, save_full_results=False))
    folder.prepare()
    folder.write(answers, command=["x"], seconds={})
    assert [path.name for path in folder.path.iterdir()] == ["summary.json"]


def test_any_text_of_a_model_can_be_kept(config, answers):
    text = 'line\nnext\x00\x1b[2J \ud800 \u2028 "quoted" é'
    folder = ResultsFolder(config)
    folder.prepare()
    answers = [dataclasses.replace(answer, completion=Completion(text, 5, "stop")) for answer in answers]
    folder.write(answers, command=["x"], seconds={})
    with (folder.path / "results.jsonl").open() as file:
        assert [json.loads(line)["completion"] for line in file] == [text] * 6


def test_a_failed_write_leaves_nothing_behind(config, answers):
    folder = ResultsFolder(dataclasses.replace(config, save_metadata=True))
    folder.prepare()
    problem = dataclasses.replace(answers[-1].problem, entry={"answer": object()})
    with pytest.raises(TypeError):
        folder.write([*answers, dataclasses.replace(answers[-1], problem=problem)], command=["x"], seconds={})
    assert list(folder.path.iterdir()) == []


def test_results_of_another_evaluation_are_not_replaced(config, answers):
    folder = ResultsFolder(config)
    folder.prepare()
    folder.write(answers, command=["x"], seconds={})
    ResultsFolder(config).prepare()
    with pytest.raises(ConfigError, match=r"another evaluation, with other max_tokens, temperature; give another"):
        ResultsFolder(dataclasses.replace(config, max_tokens=32, temperature=1)).prepare()


def test_an_output_folder_that_cannot_be_written_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write results into .*; give another output_dir"):
        ResultsFolder(dataclasses.replace(config, output_dir=tmp_path / "file")).prepare()


def test_the_table_shows_each_dataset_each_category_and_overall(config, answers):
    lines = summary_table(summary_of(config, answers)).splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        ["arithmetic", "chain_sum"],
        ["words", "spell_backward"],
        ["arithmetic", "(all)"],
        ["words", "(all)"],
        ["overall", "6"],
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("a\r\nb\tc\x07\x9b2J", "a b c2J"),
        ("right\u202eto left", "rightto left"),
    ],
)
def test_nothing_in_a_table_can_steer_the_terminal(text, shown):
    assert printable(text) == shown
    assert shown in text_table(["name"], [[text]])


def test_the_comparison_shows_both_accuracies_and_the_difference_in_points(config, answers):
    better = judged(SUMS, [1, 1, 0, 1]) + judged(WORDS, [1, 1])
    header, _, sums, _, overall = comparison_table(summary_of(config, answers), summary_of(config, better)).splitlines()
    assert header.split() == ["dataset", "problems", "before", "%", "after", "%", "points"]
    error = 100 * math.sqrt(4 / 3 * 4 * 0.25) / 4
    assert sums.split() == ["chain_sum", "4", "50.0", "±", f"{error:.1f}", "75.0", "±", "25.0", "+25.0"]
    assert overall.split()[-1] == "+33.3"


def test_evaluations_under_other_conditions_are_not_compared(config, answers):
    other = summary_of(dataclasses.replace(config, temperature=1, model_path="models/n"), answers)
    with pytest.raises(
        ConfigError, match=r"they differ in temperature \(0 and 1\); evaluate both models with the same"
    ):
        comparison_table(summary_of(config, answers), other)


def test_evaluations_of_other_problems_are_not_compared(config, answers):
    other = summary_of(config, judged(SUMS, [1, 0, 0, 1])[:3] + judged(WORDS, [1, 1]))
    with pytest.raises(ConfigError, match="they asked other problems of dataset 'chain_sum'"):
        comparison_table(summary_of(config, answers), other)


def test_the_compare_tool_prints_the_comparison(config, answers, tmp_path):
    folder = ResultsFolder(config)
    folder.prepare()
    summary = folder.write(answers, command=["x"], seconds={})
    path = str(folder.path / "summary.json")
    done = subprocess.run([sys.executable, COMPARE, path, path], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, comparison_table(summary, summary) + "\n")


def test_the_compare_tool_refuses_a_file_that_is_no_summary(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    done = subprocess.run([sys.executable, COMPARE, "other.json", "none.json"], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: other.json is no summary.json of evaluate_model.py")
