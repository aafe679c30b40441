"""Judged answers, the numbers over them, and how they are kept."""

import dataclasses
import json
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from support.evaluated import SUMS, WORDS, answers_of, plan_of, small_config, write_results

from rgtrain.errors import ConfigError
from rgtrain.evaluation.evaluation_config import EvaluationConfig
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.measures import Estimate, measure
from rgtrain.evaluation.results import ResultsFolder, ResultsNotWritten, read_answers
from rgtrain.evaluation.runner import _check_belongs
from rgtrain.evaluation.summary import identity_of, summarise, summary_table
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import load_entry
from rgtrain.reporting.evaluation_report import write_report
from rgtrain.tables import printable, text_table

SCORES = [1, 0.5, 0, 1, 1, 0.25]
IDENTITY = {"temperature": 0}
NUM_WRITTEN = 20_000


@pytest.fixture
def config(tmp_path) -> EvaluationConfig:
    return small_config(tmp_path)


@pytest.fixture
def answers(config) -> list[Answer]:
    return answers_of(config, SCORES)


def summary_of(config: EvaluationConfig, answers: list[Answer]) -> dict:
    return json.loads(json.dumps(summarise(config, plan_of(config), answers, command=["python", "x.py"], seconds={})))


def test_partial_credit_counts_in_the_mean_but_not_in_the_accuracy(answers):
    measures = measure(answers[:4])
    assert (measures.strict_accuracy, measures.mean_score) == (0.5, 0.625)


def test_answers_to_one_problem_are_one_cluster(answers):
    repeated = [dataclasses.replace(answer, repeat=repeat) for answer in answers for repeat in range(3)]
    once, thrice = measure(answers), measure(repeated)
    assert (thrice.num_problems, thrice.num_answers) == (6, 18)
    assert thrice.strict_accuracy_error == pytest.approx(once.strict_accuracy_error)
    assert thrice.strict_accuracy_interval == pytest.approx(once.strict_accuracy_interval)


def test_problems_that_ask_the_same_question_are_one_problem(answers):
    again = dataclasses.replace(answers[0], problem=99)
    assert measure([answers[0], again]).num_problems == 1


def test_a_single_problem_has_no_standard_error_but_an_interval(answers):
    measures = measure(answers[:1])
    assert measures.strict_accuracy_error is None
    assert measures.strict_accuracy_interval[0] < 0.5


def test_pass_and_majority_come_by_k_up_to_the_number_of_repeats(config):
    rounds = [[1, 0, 0, 1, 1, 0], [1, 1, 0, 1, 0, 0], [1, 1, 0, 0, 0, 1]]
    measures = measure(
        [answer for repeat, scores in enumerate(rounds) for answer in answers_of(config, scores, repeat=repeat)]
    )
    assert list(measures.pass_at) == list(measures.majority_at) == ["1", "2", "3"]
    assert (
        measures.pass_at["1"].mean
        == measures.majority_at["1"].mean
        == measures.strict_accuracy
        == pytest.approx(9 / 18)
    )
    assert measures.pass_at["3"].mean == pytest.approx(5 / 6)
    # Three of the six problems have two right answers of three or more.
    assert measures.majority_at["3"].mean == pytest.approx(3 / 6)


def test_greedy_answers_have_only_pass_at_1(answers):
    measures = measure(answers)
    assert measures.pass_at == {"1": Estimate(0.5, measures.strict_accuracy_error)}


def test_missing_truncated_and_failed_answers_are_counted(answers):
    right, other, third, fourth = answers[:4]
    cut = dataclasses.replace(other, answer=None, finish_reason="length")
    failed = dataclasses.replace(third, score=0.0, error="exception: ValueError")
    late = dataclasses.replace(fourth, score=0.0, error="timeout")
    measures = measure([right, cut, failed, late])
    assert measures.share_without_answer == measures.share_truncated == 0.25
    assert measures.num_scorer_errors == {"exception": 1, "timeout": 1}
    assert measures.num_timeouts == 1


def test_numbers_over_no_answers_are_refused():
    with pytest.raises(ValueError, match="no values"):
        measure([])


def test_a_summary_has_numbers_per_dataset_per_category_and_overall(config, answers):
    summary = summary_of(config, answers)
    assert [d["strict_accuracy"] for d in summary["datasets"]] == [0.5, 0.5]
    assert [(c["category"], c["num_problems"]) for c in summary["categories"]] == [("arithmetic", 4), ("words", 2)]
    assert summary["overall"]["num_answers"] == 6


def test_the_order_in_which_answers_were_finished_does_not_matter(config, answers):
    # Else two models, of which each finishes other answers first, could not be compared.
    assert summary_of(config, answers[::-1]) == summary_of(config, answers)


def test_a_dataset_that_stands_twice_is_measured_apart(config):
    other = dataclasses.replace(SUMS, seed=7)
    config = dataclasses.replace(config, datasets=(SUMS, WORDS, other))
    summary = summary_of(config, answers_of(config, [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]))
    assert [d["strict_accuracy"] for d in summary["datasets"]] == [0, 1, 0.75]


def test_a_summary_carries_what_makes_it_again(config, answers):
    summary = summary_of(config, answers)
    assert summary["command"] == "python x.py"
    assert summary["config"]["max_tokens"] == 16
    assert summary["model"] == {"path": "models/m", "digest": "0" * 32}
    assert "<answer>" in summary["prompts"]["system_prompt"]
    assert summary["versions"].keys() >= {"python", "reasoning_gym", "torch", "transformers"}


def test_results_are_one_record_an_answer(config, answers):
    folder = write_results(config, answers[::-1])
    records = [json.loads(line) for line in folder.results.read_text().splitlines()]
    assert [record["score"] for record in records] == SCORES
    assert records[0].keys() >= {"dataset", "question", "entry", "completion", "answer", "error", "tokens"}
    assert records[0]["difficulty"].keys() == {"num_terms", "num_digits"}
    assert read_answers(folder.results) == answers


def test_a_saved_entry_judges_answers_as_the_original_does(config, answers, scorer):
    entries = [load_entry(answer.entry) for answer in read_answers(write_results(config, answers).results)]
    assert all(scorer.score(entry["answer"], entry).accuracy == 1 for entry in entries)


def test_texts_and_entries_are_left_out_on_demand(config):
    config = dataclasses.replace(config, save_full_results=False, save_metadata=False)
    line = write_results(config, answers_of(config, SCORES)).results.read_text().splitlines()[0]
    assert not json.loads(line).keys() & {"question", "completion", "entry"}
    assert json.loads(line)["answer"] == "1"


def test_any_text_of_a_model_can_be_kept(config, answers):
    text = 'line\nnext\r\x00\x1b[2J \ud800 \u2028 "quoted" é'
    folder = write_results(config, [dataclasses.replace(answer, completion=text) for answer in answers])
    assert [answer.completion for answer in read_answers(folder.results)] == [text] * 6


def test_a_last_line_that_was_not_written_whole_is_dropped(tmp_path, answers):
    folder = ResultsFolder(tmp_path / "results")
    with folder.writing(IDENTITY) as writer:
        writer.add(answers[0])
        writer.add(answers[1])
    whole = folder.results.read_bytes()
    folder.results.write_bytes(whole[:-20])
    with folder.writing(IDENTITY) as writer:
        assert writer.answers == answers[:1]
        writer.add(answers[1])
    assert folder.results.read_bytes() == whole


@pytest.mark.parametrize("damage", [lambda lines: [lines[0], b"{}", lines[1]], lambda lines: [lines[0], *lines]])
def test_a_file_that_is_damaged_elsewhere_is_refused(tmp_path, answers, damage):
    folder = ResultsFolder(tmp_path / "results")
    with folder.writing(IDENTITY) as writer:
        writer.add(answers[0])
        writer.add(answers[1])
    folder.results.write_bytes(b"\n".join(damage(folder.results.read_bytes().split(b"\n")[:2])) + b"\n")
    message = "is damaged: line 2 (is no answer|repeats an earlier answer); remove these lines, and the same command"
    with pytest.raises(ConfigError, match=message), folder.writing(IDENTITY):
        pass


# Contents that a power loss, a full disk, another program or an editor leaves in a file.
DAMAGED = [b"", b"{", b"[]", b"null", b"5", b"\0" * 100, b"\xff\xfe{}", b"[" * 200_000, b'{"a": %s}' % (b"9" * 10_000)]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_evaluation_json_is_named_with_the_fix(config, answers, content):
    folder = write_results(config, answers)
    (folder.path / "evaluation.json").write_bytes(content)
    message = r"evaluation\.json is damaged .*; restore it, or delete .* and evaluate the model again"
    with pytest.raises(ConfigError, match=message):
        write_results(config, answers)


BROKEN_VALUES = [{"problem": -1}, {"problem": "0"}, {"repeat": True}, {"score": "1"}, {"score": float("nan")}]
BROKEN_VALUES += [{"tokens": None}, {"dataset": 3}, {"answer": []}, {"entry": {}}, {"difficulty": None}, {"more": 1}]


@pytest.mark.parametrize("change", [*BROKEN_VALUES, *DAMAGED], ids=str)
def test_a_damaged_line_of_the_results_is_named_with_its_number(config, answers, change):
    folder = write_results(config, answers)
    lines = folder.results.read_bytes().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change).encode() if isinstance(change, dict) else change
    folder.results.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ConfigError, match=r"results\.jsonl is damaged in line 3: .*; remove that line"):
        read_answers(folder.results)
    with pytest.raises(ConfigError, match=r"results\.jsonl is damaged: line 3 is no answer; remove these lines"):
        write_results(config, [])


@pytest.mark.parametrize("change", [{"problem": 99}, {"repeat": 7}, {"fingerprint": "0" * 32}])
def test_an_answer_to_another_problem_is_named(config, answers, change):
    folder, plan = ResultsFolder(config.results_folder), plan_of(config)
    with folder.writing(IDENTITY) as writer:
        for answer in [*answers[:4], dataclasses.replace(answers[4], **change), answers[5]]:
            writer.add(answer)
        with pytest.raises(ConfigError, match="damaged in line 5: its answer .* is none of this evaluation's; remove"):
            _check_belongs(folder, plan, writer, num_samples=1)


def test_a_full_disk_is_reported_and_what_was_written_is_kept(tmp_path, answers):
    folder = ResultsFolder(tmp_path / "results")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with folder.writing(IDENTITY) as writer:
        writer.add(answers[0])
        resource.setrlimit(resource.RLIMIT_FSIZE, (folder.results.stat().st_size + 20, limits[1]))
        try:
            with pytest.raises(
                ResultsNotWritten, match=r"cannot write .*results\.jsonl: .*; make room or give another"
            ):
                writer.add(answers[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with folder.writing(IDENTITY) as writer:
        assert writer.answers == answers[:1]


def test_secrets_are_written_nowhere_and_make_no_other_evaluation(config, answers):
    urls = {"base_url": "http://me:pa55word@host/v1", "model_path": "openai://m"}
    command = ["python", "x.py", "base_url=http://me:pa55word@host/v1", "--api-key", "pa55word"]
    folder = write_results(dataclasses.replace(config, **urls), answers, command=command)
    write_report(folder.path)
    assert all(b"pa55word" not in path.read_bytes() for path in folder.path.iterdir())
    assert json.loads(folder.summary.read_text())["config"]["base_url"] == "http://***@host/v1"
    write_results(dataclasses.replace(config, **urls | {"base_url": "http://me:other@host/v1"}), [])
    with pytest.raises(ConfigError, match="with other base_url"):
        write_results(dataclasses.replace(config, **urls | {"base_url": "http://me:other@elsewhere/v1"}), [])


WRITER = """
import sys, time
from pathlib import Path
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.results import ResultsFolder

with ResultsFolder(Path(sys.argv[1])).writing({"temperature": 0}) as writer:
    print("ready", flush=True)
    for problem in range(len(writer.answers), int(sys.argv[2])):
        text = str(problem) * 500
        writer.add(Answer(problem, 0, "c", "d", 42, problem, str(problem), None, 0.0, None, 5, "stop", None, text))
    writer.finish({})
"""


def test_killed_at_any_moment_no_answer_is_lost_or_doubled(tmp_path):
    folder, chance = ResultsFolder(tmp_path / "results"), random.Random(0)
    num_there = 0
    for _ in range(5):
        process = start_writer(folder)
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        num_before, num_there = num_there, folder.results.read_bytes().count(b"\n")
        assert num_there >= num_before
    assert 0 < num_there < NUM_WRITTEN
    assert start_writer(folder).wait() == 0
    assert [answer.problem for answer in read_answers(folder.results)] == list(range(NUM_WRITTEN))


def start_writer(folder: ResultsFolder) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, folder.path, str(NUM_WRITTEN)]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_cannot_write_into_one_folder(tmp_path):
    folder = ResultsFolder(tmp_path / "results")
    second = folder.writing(IDENTITY)
    with folder.writing(IDENTITY), pytest.raises(ConfigError, match="another process is writing into"), second:
        pass


def test_results_of_another_evaluation_are_not_mixed_in(config, answers):
    write_results(config, answers)
    write_results(config, [])
    changed = dataclasses.replace(config, max_tokens=32, dtype="bfloat16")
    message = r"another evaluation, with other dtype \(\"float32\" there, \"bfloat16\" now\), max_tokens \(16 there"
    with pytest.raises(ConfigError, match=message):
        write_results(changed, [])


def test_results_of_other_weights_are_not_mixed_in(config, answers):
    write_results(config, answers)
    other = dataclasses.replace(plan_of(config), model={"digest": "1" * 32})
    writing = ResultsFolder(config.results_folder).writing(identity_of(config, other))
    with pytest.raises(ConfigError, match="with other model"), writing:
        pass


def test_another_number_of_processes_continues_the_same_evaluation(config, answers):
    write_results(config, answers)
    write_results(dataclasses.replace(config, scorer={"num_workers": 7}, data_parallel_size=4), [])


def test_another_deadline_for_judging_is_another_evaluation(config, answers):
    write_results(config, answers)
    with pytest.raises(ConfigError, match="with other scorer"):
        write_results(dataclasses.replace(config, scorer={"timeout_s": 1}), [])


def test_an_output_folder_that_cannot_be_written_is_refused(config, answers, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write results into .*; give another output_dir"):
        write_results(dataclasses.replace(config, output_dir=tmp_path / "file"), answers)


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
