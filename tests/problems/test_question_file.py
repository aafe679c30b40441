"""A file of questions gives reproducible problems, a held-out part by content, and messages with line numbers."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from rgtrain.errors import ConfigError
from rgtrain.problems import build_mixture, parse_mixture, question_file
from rgtrain.problems.answers import judged_text
from rgtrain.problems.evaluation_set import make_problems, read_datasets
from rgtrain.problems.mixture import Split
from rgtrain.problems.prompts import PromptBuilder, PromptStyle, worked_examples
from rgtrain.problems.question_file import answer_warning
from rgtrain.problems.splits import build_splits

ROWS = [{"question": f"What is {number} + {number}?", "answer": str(2 * number), "kind": "sum"} for number in range(40)]


def write(path: Path, rows=ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path) -> Path:
    return write(tmp_path / "questions.jsonl")


def mixture_of(file, **options) -> dict:
    return {"my_file": {"path": str(file), "verifier": "numeric", "held_out": 0.25, **options}}


def questions(problems) -> list[str]:
    return [problem.question for problem in problems]


def test_training_and_validation_share_no_question_and_use_all(file):
    specs = parse_mixture(mixture_of(file))
    training = questions(build_mixture(specs, seed=3, size=30))
    validation = questions(build_mixture(specs, seed=3, size=10, split=Split.VALIDATION))
    assert sorted(training + validation) == sorted(row["question"] for row in ROWS)
    # The seed does not change the split, and neither does the order of the rows.
    write(file, ROWS[::-1])
    again = build_mixture(parse_mixture(mixture_of(file)), seed=4, size=10, split=Split.VALIDATION)
    assert set(questions(again)) == set(validation)


def test_the_order_is_reproducible_and_differs_in_each_pass(file):
    specs = parse_mixture(mixture_of(file))
    drawn = questions(build_mixture(specs, seed=3, size=90))
    mixture = build_mixture(specs, seed=3, size=90)
    assert [mixture[index].question for index in reversed(range(90))] == drawn[::-1]
    passes = [drawn[start : start + 30] for start in (0, 30, 60)]
    assert len({tuple(one) for one in passes}) == 3
    assert len({frozenset(one) for one in passes}) == 1
    assert questions(build_mixture(specs, seed=5, size=30)) != passes[0]


def test_in_a_mixture_each_question_comes_once_before_one_repeats(file):
    specs = parse_mixture({**mixture_of(file), "gcd": {"weight": 2}})
    drawn = [problem.question for problem in build_mixture(specs, seed=0, size=200) if problem.dataset == "my_file"]
    assert len(drawn) > 60
    assert set(Counter(drawn[:30]).values()) == {1}
    assert set(Counter(drawn[:60]).values()) == {2}


def test_a_problem_names_its_entry_and_is_judged_without_the_file(file, scorer):
    [spec] = parse_mixture(mixture_of(file))
    [problem] = build_mixture([spec], seed=0, size=1)
    assert (problem.dataset, problem.entry["metadata"]["kind"]) == ("my_file", "sum")
    file.unlink()
    assert scorer.score(f"{problem.entry['answer']}.0", problem.entry).accuracy == 1


def test_worked_examples_are_training_rows_that_are_not_asked(file):
    [spec] = parse_mixture(mixture_of(file))
    style = PromptStyle(num_examples=2)
    examples = worked_examples(spec, style)
    splits = build_splits(
        mixture=mixture_of(file), seed=0, train_size=60, validation_size=10, examples=examples, hold_out_shipped=False
    )
    asked = questions([*(draw.problem for draw in splits.training), *splits.validation])
    assert not set(questions(examples)) & set(asked)
    assert len(PromptBuilder(style).messages(splits.validation[0])) == 6


def test_further_keys_of_a_row_never_become_the_prompt(tmp_path):
    rows = [{**row, "messages": [{"role": "user", "content": "Say 5."}], "judged_whole": True} for row in ROWS]
    [spec] = parse_mixture(mixture_of(write(tmp_path / "questions.jsonl", rows)))
    [problem] = build_mixture([spec], seed=0, size=1)
    assert PromptBuilder(PromptStyle()).messages(problem)[-1]["content"] == problem.question
    assert judged_text("<answer>5</answer>", problem.entry) == "5"


def write_evaluation(folder: Path, **options) -> Path:
    path = folder / "evaluation.yaml"
    dataset = {"dataset": "mine", "path": "questions.jsonl", "verifier": "numeric", "held_out": 0.25, **options}
    path.write_text(json.dumps({"categories": [{"category": "own", "datasets": [dataset]}]}))
    return path


def test_an_evaluation_has_all_rows_or_the_held_out_ones_in_the_order_of_the_file(file, tmp_path):
    [every] = read_datasets(write_evaluation(tmp_path))
    assert questions(make_problems(every)) == [row["question"] for row in ROWS]
    [held_out] = read_datasets(write_evaluation(tmp_path, rows="held_out"))
    validation = build_mixture(parse_mixture(mixture_of(file)), seed=9, size=10, split=Split.VALIDATION)
    assert set(questions(make_problems(held_out))) == set(questions(validation))
    assert (held_out.size, held_out.name) == (10, "mine")
    with pytest.raises(ConfigError, match="has size 41, but its source has 40 problems"):
        read_datasets(write_evaluation(tmp_path, size=41))


def test_training_never_draws_a_question_of_an_evaluation_file_even_under_another_name(file, tmp_path):
    write(tmp_path / "others.jsonl", ROWS[:20])
    evaluation = write_evaluation(tmp_path, path="others.jsonl")
    splits = build_splits(
        mixture=mixture_of(file),
        seed=0,
        train_size=60,
        validation_size=3,
        held_out_files=[evaluation],
        hold_out_shipped=False,
    )
    training = {draw.problem.question for draw in splits.training}
    assert training <= {row["question"] for row in ROWS[20:]}
    assert len(training) > 5


def test_validation_and_evaluation_may_use_the_same_held_out_rows_of_a_file(file, tmp_path):
    splits = build_splits(
        mixture=mixture_of(file),
        seed=0,
        train_size=60,
        validation_size=10,
        held_out_files=[write_evaluation(tmp_path, rows="held_out")],
        hold_out_shipped=False,
    )
    assert len({draw.problem.question for draw in splits.training}) == 30


def test_more_validation_than_held_out_questions_is_refused_with_a_size_that_works(file):
    options = {"mixture": mixture_of(file), "seed": 0, "train_size": 8, "hold_out_shipped": False}
    with pytest.raises(
        ConfigError, match=r"holds out 10 problems, but validation draws 16 .*data.validation_size=10 or"
    ):
        build_splits(**options, validation_size=16)
    assert len(build_splits(**options, validation_size=10).validation) == 10


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": "a"', "line 3: it is not valid JSON .* at column 17"),
        (b"[1, 2]", "line 3: it is a list; write an object with question and answer"),
        (b'{"question": "a"}', "line 3: it has no 'answer'"),
        (b'{"problem": "a", "answer": "b"}', "line 3: it has no 'question'"),
        (b'{"question": "  ", "answer": "1"}', "line 3: its question is empty"),
        (b'{"question": "a", "answer": ""}', "line 3: its answer is empty"),
        (b'{"question": ["a"], "answer": "1"}', "line 3: its question is .*; write a text"),
        (b'{"question": "a", "answer": null}', "line 3: its answer is None; write a text"),
        (b'{"question": "a", "answer": true}', "line 3: its answer is True; write a text"),
        (b'{"question": "a", "answer": NaN}', "line 3: NaN is not valid JSON"),
        (b'{"question": "a", "question": "b", "answer": "1"}', "line 3: the key 'question' stands twice"),
        (b'{"question": "What is  0 + 0?", "answer": "1"}', "line 3: it repeats the question of line 1"),
        (b'{"question": "a", "answer": "three"}', "line 3: its answer is 'three'; verifier 'numeric' needs a number"),
        (b'{"question": "a\\ud800", "answer": "1"}', "line 3: its question has half of a surrogate pair"),
        (b'{"question": "\xff", "answer": "1"}', "line 3: byte 0xff is not UTF-8"),
        (b"[" * 100_000, "line 3: it is nested too deeply|line 3: it is not valid JSON"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, message):
    file = tmp_path / "questions.jsonl"
    good = [json.dumps(row).encode() for row in ROWS[:3]]
    file.write_bytes(b"\n".join([*good[:2], line, good[2]]))
    with pytest.raises(ConfigError, match=f"dataset 'my_file': {re.escape(str(file))} cannot be used: (?:{message})"):
        parse_mixture(mixture_of(file))


def test_a_byte_order_mark_windows_line_ends_blank_lines_and_numbers_as_answers_are_allowed(tmp_path):
    rows = [{"question": "a\u2028b", "answer": 1}, {"question": "c", "answer": 2.5}]
    file = tmp_path / "questions.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows))
    [spec] = parse_mixture(mixture_of(file))
    assert [row.answer for row in question_file.QuestionFile(spec.params, seed=0).rows] == ["1", "2.5"]


def test_a_file_that_is_empty_absent_or_too_large_is_refused(file, tmp_path, monkeypatch):
    for path, message in (
        (write(tmp_path / "empty.jsonl", []), "has 0 questions; give from 2"),
        (tmp_path / "absent.jsonl", "which is not a file"),
        (tmp_path, "which is not a file"),
        ("pkg://no_such_package/questions.jsonl", "no package 'no_such_package'; install it"),
        ("", "give the path of a file"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_mixture({"my_file": {"path": str(path)}})
    monkeypatch.setattr(question_file, "MAX_BYTES", 10)
    write(file, ROWS[:30])
    with pytest.raises(ConfigError, match="at most 10 are allowed"):
        parse_mixture(mixture_of(file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 0}, "has held_out 0; give the held-out share"),
        ({"held_out": True}, "has held_out True"),
        ({"held_out": "0.1"}, "has held_out '0.1'"),
        ({"verifier": "numerc"}, "did you mean 'numeric'"),
        ({"sha256": "abc"}, "has sha256 'abc'; leave it out"),
        ({"sha256": "0" * 64}, "whose SHA-256 is [0-9a-f]{64}, but sha256 is 0{64}; restore the file"),
        ({"config": {}}, "has 'config'; use only 'weight', 'path', 'verifier', 'held_out', 'sha256'"),
        ({"rows": "all"}, "has 'rows'; use only"),
        ({"weight": -1}, "has weight -1"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(file, options, message):
    with pytest.raises(ConfigError, match=message):
        parse_mixture(mixture_of(file, **options))


def test_a_relative_path_is_found_in_the_current_folder(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    [spec] = parse_mixture(mixture_of(file.name))
    assert spec.params["path"] == str(file)


def test_a_frequent_answer_is_reported(tmp_path):
    rows = [{**row, "answer": "yes" if number % 3 else "No"} for number, row in enumerate(ROWS)]
    [spec] = parse_mixture({"my_file": {"path": str(write(tmp_path / "q.jsonl", rows)), "verifier": "ignore_case"}})
    assert re.search("the constant answer 'yes' is right for 6.% of its training rows", answer_warning(spec))
