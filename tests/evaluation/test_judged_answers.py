"""Judged answers and their lines in results.jsonl."""

import dataclasses
import json

from support.evaluated import SCORES, answers_of, plan_of, write_results

from rgtrain.evaluation.engine_interface import Completion
from rgtrain.evaluation.judged_answers import Answer, judged
from rgtrain.evaluation.results import read_answers
from rgtrain.problems import Score, load_entry


def test_results_contain_one_record_per_answer(config, answers):
    folder = write_results(config, answers[::-1])
    records = [json.loads(line) for line in folder.results.read_text().splitlines()]
    assert [record["score"] for record in records] == SCORES
    assert records[0].keys() >= {"dataset", "question", "entry", "completion", "answer", "error", "tokens"}
    assert records[0]["difficulty"].keys() == {"num_terms", "num_digits"}
    assert read_answers(folder.results) == answers


def test_a_saved_entry_judges_answers_like_the_original(config, answers, scorer):
    entries = [load_entry(answer.entry) for answer in read_answers(write_results(config, answers).results)]
    assert all(scorer.score(entry["answer"], entry).accuracy == 1 for entry in entries)


def test_texts_and_entries_can_be_left_out(config):
    config = dataclasses.replace(config, save_full_results=False, save_metadata=False)
    line = write_results(config, answers_of(config, SCORES)).results.read_text().splitlines()[0]
    assert not json.loads(line).keys() & {"question", "completion", "entry"}
    assert json.loads(line)["answer"] == "1"


def test_any_model_output_can_be_kept(config, answers):
    text = 'line\nnext\r\x00\x1b[2J \ud800 \u2028 "quoted" é'
    folder = write_results(config, [dataclasses.replace(answer, completion=text) for answer in answers])
    assert [answer.completion for answer in read_answers(folder.results)] == [text] * 6


def test_a_refused_request_and_an_unknown_length_are_saved_and_read_back(config):
    completion = Completion("", None, "content_filter", refused="content filter")
    answer = judged(plan_of(config).prompted[0], repeat=0, completion=completion, answer=None, score=Score(0.0))
    assert (answer.refused, answer.tokens) == ("content filter", None)
    assert Answer.from_line(answer.to_line()) == answer


def test_reasoning_is_kept_in_a_think_part_in_front_of_the_text(config):
    completion = Completion("<answer>2</answer>", 9, "stop", reasoning_text="maybe <answer>1</answer>")
    answer = judged(plan_of(config).prompted[0], repeat=0, completion=completion, answer="2", score=Score(1.0))
    assert answer.completion == "<think>\nmaybe <answer>1</answer>\n</think>\n<answer>2</answer>"


def test_a_line_of_an_older_version_is_read(answers):
    values = json.loads(answers[0].to_line())
    del values["refused"]
    assert Answer.from_line(json.dumps(values).encode()) == answers[0]
