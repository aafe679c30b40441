"""The summary of an evaluation and its table."""

import dataclasses
import json

from support.evaluated import SUMS, WORDS, answers_of, plan_of

from rgtrain.evaluation.evaluation_config import EvaluationConfig
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.summary import summarise, summary_table
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems.evaluation_set import read_datasets


def test_a_summary_has_measures_per_dataset_per_category_and_overall(config, answers):
    summary = summary_of(config, answers)
    assert [d["strict_accuracy"] for d in summary["datasets"]] == [0.5, 0.5]
    assert [(c["category"], c["num_problems"]) for c in summary["categories"]] == [("arithmetic", 4), ("words", 2)]
    assert summary["overall"]["num_answers"] == 6


def test_a_summary_does_not_depend_on_the_order_of_the_answers(config, answers):
    # Models finish answers in different orders, and must still be comparable.
    assert summary_of(config, answers[::-1]) == summary_of(config, answers)


def test_a_dataset_that_occurs_twice_is_measured_twice(config):
    other = dataclasses.replace(SUMS, seed=7)
    config = dataclasses.replace(config, datasets=(SUMS, WORDS, other))
    summary = summary_of(config, answers_of(config, [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]))
    assert [d["strict_accuracy"] for d in summary["datasets"]] == [0, 1, 0.75]


def test_a_summary_contains_everything_needed_to_reproduce_it(config, answers):
    summary = summary_of(config, answers)
    assert summary["command"] == "python x.py"
    assert summary["config"]["max_tokens"] == 16
    assert summary["model"] == {"path": "models/m", "digest": "0" * 32}
    assert "<answer>" in summary["prompts"]["system_prompt"]
    assert summary["versions"].keys() >= {"python", "reasoning_gym", "torch", "transformers"}


def test_the_table_shows_each_dataset_each_category_and_overall(config, answers):
    lines = summary_table(summary_of(config, answers)).splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        ["arithmetic", "chain_sum"],
        ["words", "spell_backward"],
        ["arithmetic", "(all)"],
        ["words", "(all)"],
        ["overall", "6"],
    ]


def test_the_table_shows_pass_at_k_and_majority_at_k_of_several_answers(config):
    config = dataclasses.replace(config, temperature=1.0, eval_repeats=3)
    rounds = [[1, 0, 0, 1, 1, 0], [1, 1, 0, 1, 0, 0], [1, 1, 0, 0, 0, 1]]
    answers = [answer for repeat, scores in enumerate(rounds) for answer in answers_of(config, scores, repeat=repeat)]
    table = summary_table(summary_of(config, answers)).partition("\n\n")[2].splitlines()
    assert table[0].split() == ["category", "dataset", "k", "pass@k", "%", "majority@k", "%"]
    rows = [line.split() for line in table[2:]]
    assert [row[: row.index(k)] for row, k in zip(rows, "33232323", strict=True)] == [
        ["arithmetic", "chain_sum"],
        ["words", "spell_backward"],
        *[["arithmetic", "(all)"]] * 2,
        *[["words", "(all)"]] * 2,
        *[["overall"]] * 2,
    ]
    # Five of the six problems have a right answer, and three have at least two.
    assert rows[-1][2] == "83.3" and "50.0" in rows[-1]


def test_the_table_shows_intervals_and_repeated_questions(config, answers):
    repeated = [dataclasses.replace(answer, score=0, fingerprint=answers[0].fingerprint) for answer in answers[:3]]
    [_, _, row, *_] = summary_table(summary_of(config, [*repeated, *answers[3:]])).splitlines()
    assert "  4 (2 distinct)  " in row
    # One of four answers is right, and three are to one question: 16 / 10 independent answers.
    assert "  25.0 (" in row and "±" not in row


def test_a_shipped_evaluation_file_with_repeated_questions_says_so(config):
    shipped = read_datasets(PROJECT_ROOT / "evaluation" / "eval_games_composite.yaml")
    [towers] = [dataset for dataset in shipped if dataset.name == "tower_of_hanoi"]
    config = dataclasses.replace(config, datasets=(towers,))
    summary = summary_of(config, answers_of(config, [0] * 100))
    [dataset] = summary["datasets"]
    assert (dataset["num_problems"], dataset["num_questions"], dataset["num_answers"]) == (100, 34, 100)
    # Some of the 34 questions occur more often than others, so they are worth less than 34.
    assert 1 < dataset["effective_sample_size"] < 34
    assert " 100 (34 distinct) " in summary_table(summary)


def test_the_table_counts_refused_requests_as_errors(config, answers):
    refused = [dataclasses.replace(answer, refused="content filter", score=0.0, answer=None) for answer in answers]
    rows = summary_table(summary_of(config, [*answers[:4], *refused[4:]])).splitlines()
    assert rows[3].split() == ["words", "spell_backward", "2", "2", "-", "-", "-", "-", "refused", "2"]
    assert rows[-1].endswith("refused 2")


def summary_of(config: EvaluationConfig, answers: list[Answer]) -> dict:
    return json.loads(json.dumps(summarise(config, plan_of(config), answers, command=["python", "x.py"], seconds={})))
