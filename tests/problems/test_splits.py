import json

import pytest
from support.small_spaces import ONE_DIGIT

from rgtrain.errors import ConfigError
from rgtrain.problems import DatasetSpec, PromptStyle, build_mixture
from rgtrain.problems.evaluation_set import load_evaluation_problems
from rgtrain.problems.mixture import Split
from rgtrain.problems.prompts import parse_prompt, worked_examples
from rgtrain.problems.splits import build_splits, check_problems_are_left


def test_training_validation_evaluation_and_examples_are_disjoint(tmp_path):
    evaluation = tmp_path / "evaluation.yaml"
    dataset = {"dataset": "chain_sum", "size": 60, "seed": 42, "params": ONE_DIGIT}
    evaluation.write_text(json.dumps({"categories": [{"category": "arithmetic", "datasets": [dataset]}]}))
    spec = DatasetSpec("chain_sum", params=ONE_DIGIT)
    examples = list(build_mixture([spec], seed=0, size=3, split=Split.EXAMPLES))
    splits = build_splits(
        mixture={"chain_sum": {"config": ONE_DIGIT}},
        seed=0,
        train_size=300,
        validation_size=40,
        held_out_files=[evaluation],
        examples=examples,
    )
    training, validation, evaluated, shown = (
        {problem.fingerprint for problem in problems}
        for problems in (
            [draw.problem for draw in splits.training],
            splits.validation,
            load_evaluation_problems(evaluation),
            examples,
        )
    )
    assert len(validation) == 40
    assert not training & (validation | evaluated | shown)
    assert not validation & (evaluated | shown)


@pytest.mark.parametrize("name", ["chain_sum", "spell_backward", "letter_counting", "gcd"])
def test_examples_are_neither_training_nor_validation_problems(name):
    spec = DatasetSpec(name)
    examples = worked_examples(spec, PromptStyle(num_examples=5))
    splits = build_splits(mixture={name: None}, seed=0, train_size=500, validation_size=100, examples=examples)
    asked = {draw.problem.fingerprint for draw in splits.training} | {p.fingerprint for p in splits.validation}
    assert not {example.fingerprint for example in examples} & asked


def test_a_worked_example_that_is_held_out_is_refused(tmp_path):
    dataset = {"dataset": "chain_sum", "size": 3, "seed": 42, "params": ONE_DIGIT}
    evaluation = tmp_path / "evaluation.yaml"
    evaluation.write_text(json.dumps({"categories": [{"category": "arithmetic", "datasets": [dataset]}]}))
    [question, *_] = [problem.question for problem in load_evaluation_problems(evaluation)]
    style = parse_prompt({"examples": [{"question": f" {question}\n", "answer": "7"}]})
    options = {"mixture": {"chain_sum": {"config": ONE_DIGIT}, "gcd": None}, "seed": 1}
    options |= {
        "held_out_files": [evaluation],
        "hold_out_shipped": False,
        "examples": worked_examples(DatasetSpec("chain_sum"), style),
    }
    message = "the worked example .* is a held-out problem of dataset 'chain_sum'; remove it from data."
    with pytest.raises(ConfigError, match=message):
        build_splits(**options, train_size=10, validation_size=10)
    for left_out in ([], ["chain_sum"], ["chain_sum", "gcd"]):
        with pytest.raises(ConfigError, match=message):
            check_problems_are_left(**options, leave_out=left_out, validation_size=10)
    # In another dataset, the question is another problem.
    others = options | {"examples": worked_examples(DatasetSpec("gcd"), style)}
    check_problems_are_left(**others, leave_out=(), validation_size=10)


def test_a_dataset_whose_problems_are_all_held_out_is_refused_before_a_run_starts(tmp_path):
    dataset = {"dataset": "chain_sum", "size": 3000, "params": ONE_DIGIT}
    everything = tmp_path / "everything.yaml"
    everything.write_text(json.dumps({"categories": [{"category": "arithmetic", "datasets": [dataset]}]}))
    mixture = {"gcd": None, "chain_sum": {"config": ONE_DIGIT}}
    options = {
        "mixture": mixture,
        "seed": 1,
        "validation_size": 8,
        "held_out_files": [everything],
        "hold_out_shipped": True,
    }
    with pytest.raises(ConfigError, match=r"'chain_sum' gave no usable .* 200 were held out .*data.held_out_files"):
        check_problems_are_left(**options, leave_out=())
    check_problems_are_left(**options, leave_out=["chain_sum"])
    check_problems_are_left(**{**options, "held_out_files": []}, leave_out=())
