"""Judged answers and their lines in results.jsonl."""

import dataclasses
import json

from support.evaluated import SCORES, answers_of, write_results

from rgtrain.evaluation.results import read_answers
from rgtrain.problems import load_entry


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
