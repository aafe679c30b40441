"""Validation answers all problems of its evaluation files, and training never sees them."""

import json

import pytest
from support.small_spaces import ONE_DIGIT

from rgtrain.errors import ConfigError
from rgtrain.problems import DatasetSpec, PromptStyle
from rgtrain.problems.evaluation_set import load_evaluation_problems
from rgtrain.problems.prompts import PromptBuilder, worked_examples
from rgtrain.problems.splits import build_splits, check_problems_are_left
from rgtrain.problems.validation_files import (
    check_prompt_lengths,
    content_digest,
    read_validation_datasets,
    specs_of,
    validation_problems,
)

SUMS = {"dataset": "chain_sum", "size": 40, "seed": 42, "params": ONE_DIGIT}
SHORT_WORDS = {"dataset": "short_words", "generator": "spell_backward", "size": 3, "params": {"max_word_len": 3}}


@pytest.fixture
def write(tmp_path):
    def write_file(*datasets: dict, name: str = "validation.yaml") -> str:
        path = tmp_path / name
        path.write_text(json.dumps({"categories": [{"category": "all", "datasets": list(datasets)}]}))
        return str(path)

    return write_file


def test_validation_has_all_problems_of_the_files_in_their_order(write):
    files = [write(SUMS, SHORT_WORDS), write({"dataset": "gcd", "size": 2}, name="second.yaml")]
    problems = validation_problems(files)
    assert [problem.dataset for problem in problems] == ["chain_sum"] * 40 + ["short_words"] * 3 + ["gcd"] * 2
    evaluated = [problem.digest for file in files for problem in load_evaluation_problems(file)]
    assert [problem.digest for problem in problems] == evaluated
    assert [spec.generator for spec in specs_of(problems)] == ["chain_sum", "spell_backward", "gcd"]
    assert validation_problems([]) == []


def test_training_meets_no_problem_of_the_files_also_under_another_name(write):
    problems = validation_problems([write({**SUMS, "dataset": "sums", "generator": "chain_sum"})])
    options = {"mixture": {"chain_sum": {"config": ONE_DIGIT}}, "seed": 1, "hold_out_shipped": False}
    splits = build_splits(**options, train_size=300, validation_size=8, evaluated=problems)
    assert list(splits.validation) == problems
    assert not {problem.digest for problem in problems} & {draw.problem.digest for draw in splits.training}


def test_a_worked_example_among_the_validation_problems_is_refused(write):
    problems = validation_problems([write(SUMS)])
    options = {"mixture": {"gcd": None}, "seed": 1, "hold_out_shipped": False, "evaluated": problems}
    options |= {"validation_size": 8, "held_out_files": (), "examples": problems[:1]}
    message = "the worked example .* is a held-out problem of dataset 'chain_sum'"
    with pytest.raises(ConfigError, match=message):
        build_splits(**options, train_size=8)
    for left_out in ((), ("gcd",)):
        with pytest.raises(ConfigError, match=message):
            check_problems_are_left(**options, leave_out=left_out)


def test_worked_examples_have_the_parameters_of_the_validated_dataset(write):
    [first, *_] = validation_problems([write(SHORT_WORDS)])
    style = PromptStyle(num_examples=2)
    examples = PromptBuilder(style).examples(first)
    spec = DatasetSpec("short_words", params={"max_word_len": 3}, generator="spell_backward")
    assert [one.digest for one in examples] == [one.digest for one in worked_examples(spec, style)]
    assert all(len(one.entry["answer"]) == 3 for one in examples)


def test_a_name_that_stands_twice_is_refused(write):
    files = [write(SUMS), write({**SUMS, "seed": 43}, name="second.yaml")]
    with pytest.raises(ConfigError, match=r"lists dataset 'chain_sum' more than once, .*dataset: chain_sum_2, gen"):
        validation_problems(files)


def test_a_missing_file_is_refused(write):
    with pytest.raises(ConfigError, match="data.validation_files names absent.yaml, which is not a file in "):
        validation_problems([write(SUMS), "absent.yaml"])


def test_the_longest_prompt_decides_and_the_error_names_the_fix(write):
    problems = validation_problems([write(SUMS, SHORT_WORDS)])
    lengths = {problem.digest: number for number, problem in enumerate(problems)}
    check_prompt_lengths(problems, num_tokens=lambda one: lengths[one.digest], max_prompt_length=42)
    message = r"'short_words' has a prompt of 42 tokens, but data.max_prompt_length is 41; set .*=42 or higher"
    with pytest.raises(ConfigError, match=message):
        check_prompt_lengths(problems, num_tokens=lambda one: lengths[one.digest], max_prompt_length=41)
    with pytest.raises(ConfigError, match=r"42 tokens, .* is 5 \(2 datasets have prompts that are too long\)"):
        check_prompt_lengths(problems, num_tokens=lambda one: lengths[one.digest], max_prompt_length=5)


@pytest.mark.parametrize("changed", [{"size": 41}, {"seed": 43}, {"params": {}}])
def test_the_digest_changes_with_the_problems(write, changed):
    [before] = read_validation_datasets([write(SUMS)])
    [after] = read_validation_datasets([write({**SUMS, **changed})])
    assert content_digest(before) != content_digest(after)


def test_the_digest_of_a_file_of_questions_depends_on_its_content_and_not_on_its_place(write, tmp_path):
    digests = []
    for name, answer in (("a", "1"), ("b", "1"), ("c", "2")):
        lines = [json.dumps({"question": f"What is {number}?", "answer": answer}) + "\n" for number in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        [dataset] = read_validation_datasets([write({"dataset": "mine", "path": f"{name}.jsonl"})])
        digests.append(content_digest(dataset))
    assert digests[0] == digests[1] != digests[2]
