"""Each row that verl reads carries its problem, and no training problem is held out."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer

from rgtrain.config.composition import checked_config, register_plugins
from rgtrain.environments import open_environment
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import PromptRenderer, evaluation_digests, fingerprint, load_entry
from rgtrain.problems.evaluation_set import load_evaluation_problems
from rgtrain.training.dataset import TRAIN, VALIDATION, ReasoningGymDataset
from rgtrain.training.lifecycle.training_activity import ACTIVITY

EXPERIMENTS = PROJECT_ROOT / "tests" / "experiments"

register_plugins()


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def data_config(*overrides: str):
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        return checked_config(compose("small", overrides=["trainer.experiment_name=test", *overrides])).data


def dataset(split: str, tokenizer, *overrides: str) -> ReasoningGymDataset:
    return ReasoningGymDataset(split, tokenizer=tokenizer, config=data_config(*overrides))


def prints(rows) -> set[str]:
    return {fingerprint(row["data_source"], row["raw_prompt"][-1]["content"]) for row in rows}


def test_a_row_carries_the_whole_entry_of_its_problem(tokenizer, scorer):
    rows = dataset(TRAIN, tokenizer)
    for index in range(20):
        entry = load_entry(rows[index]["extra_info"]["entry"])
        assert entry["question"] == rows[index]["raw_prompt"][-1]["content"]
        assert scorer.score(entry["answer"], entry).accuracy == 1


def test_the_data_source_is_the_dataset(tokenizer):
    rows = dataset(TRAIN, tokenizer)
    assert {rows[index]["data_source"] for index in range(40)} == {"chain_sum", "spell_backward"}


def test_training_validation_evaluation_and_examples_are_disjoint(tokenizer):
    training, validation = (dataset(split, tokenizer) for split in (TRAIN, VALIDATION))
    trained = prints(training[index] for index in range(1000))
    validated = prints(validation[index] for index in range(len(validation)))
    evaluated = {
        problem.fingerprint for problem in load_evaluation_problems(PROJECT_ROOT / "tests/experiments/evaluation.yaml")
    }
    examples = {
        fingerprint(row["data_source"], message["content"])
        for row in (training[0], training[1], training[2], training[3])
        for message in row["raw_prompt"][:-1]
        if message["role"] == "user"
    }
    assert len(validated) == len(validation)
    for one, other in ((trained, validated), (trained, evaluated), (validated, evaluated), (examples, trained)):
        assert one and other and not one & other
    assert not examples & (validated | evaluated)


def test_replaced_problems_are_counted(tokenizer):
    rows = dataset(TRAIN, tokenizer)
    assert sum(rows[index]["extra_info"]["num_held_out"] for index in range(200)) > 0


def test_every_generated_problem_counts_as_progress(tokenizer, monkeypatch):
    # Tests before it may have made the same problems, which are kept.
    monkeypatch.setattr(evaluation_digests, "_MADE", {})
    num_moves = [ACTIVITY.num_moves]
    rows, validation = (dataset(split, tokenizer, "data.seed=77") for split in (TRAIN, VALIDATION))
    num_moves.append(ACTIVITY.num_moves)
    evaluated = load_evaluation_problems(PROJECT_ROOT / "tests/experiments/evaluation.yaml")
    assert num_moves[1] - num_moves[0] >= len(validation) + len(evaluated)
    for index in range(20):
        rows[index]
    assert ACTIVITY.num_moves - num_moves[1] >= 20


def test_prompts_over_the_limit_are_replaced_and_counted(tokenizer):
    limit = 115
    words = ["+data.mixture.letter_counting.config={min_words: 1, max_words: 15}", "data.held_out_files=[]"]
    words += ["~data.mixture.chain_sum", "~data.mixture.spell_backward"]
    rows = dataset(TRAIN, tokenizer, *words, f"data.max_prompt_length={limit}", "data.prompt.num_examples=1")
    drawn = [rows[index] for index in range(50)]
    assert max(len(PromptRenderer(tokenizer, model="tiny").token_ids(row["raw_prompt"])) for row in drawn) <= limit
    assert sum(row["extra_info"]["num_too_long"] for row in drawn) > 0


def test_validation_files_replace_the_held_out_problems_of_the_mixture(tokenizer, tmp_path):
    files = tmp_path / "validation.yaml"
    files.write_text(
        "categories: [{category: a, datasets: [{dataset: gcd, size: 2}, {dataset: spell_backward, size: 1}]}]"
    )
    words = [f"data.validation_files=['{files}']", "data.prompt.num_examples=2"]
    words += ["data.mixture.spell_backward.config=null", "+data.curriculum.datasets.spell_backward={num_levels: 2}"]
    rows = dataset(VALIDATION, tokenizer, *words)
    drawn = [rows[index] for index in range(len(rows))]
    assert [row["data_source"] for row in drawn] == ["gcd", "gcd", "spell_backward"]
    # The worked examples are earlier turns of the same dataset, which is not trained on.
    assert sum("Greatest Common Divisor" in message["content"] for message in drawn[0]["raw_prompt"]) == 3
    with pytest.raises(ConfigError, match=r"'gcd' has a prompt of \d+ tokens, but data.max_prompt_length is 90"):
        dataset(VALIDATION, tokenizer, *words, "data.max_prompt_length=90")


def test_a_template_that_loses_the_system_prompt_is_refused(tokenizer):
    # verl gives a model of texts and images its own template through the processor.
    template = "{% for m in messages if m.role != 'system' %}{{ m.role + m.content }}{% endfor %}"
    processor = SimpleNamespace(chat_template=template)
    with pytest.raises(ConfigError, match=r"drops or changes the system prompt, .*; set data\.prompt\.role to user"):
        ReasoningGymDataset(TRAIN, tokenizer=tokenizer, config=data_config(), processor=processor)


PROGRAM = """
import sys
sys.path.insert(0, "tests/training")
from test_dataset import *
rows = dataset(TRAIN, AutoTokenizer.from_pretrained(sys.argv[1]))
print([rows[index]["extra_info"]["entry"] for index in (7, 3, 11)])
"""


def test_rows_do_not_depend_on_the_process_or_the_order_of_access(tokenizer, tiny_model):
    rows = dataset(TRAIN, tokenizer)
    entries = {index: rows[index]["extra_info"]["entry"] for index in (3, 7, 11)}
    command = [sys.executable, "-c", PROGRAM, str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    assert done.stdout.splitlines()[-1] == str([entries[7], entries[3], entries[11]])


def test_rows_made_ahead_are_the_rows_of_their_indices(tokenizer):
    plain, ahead = (dataset(TRAIN, tokenizer) for _ in range(2))
    expected = [plain[index] for index in range(8)]
    found = [ahead[0]]
    ahead.make_ahead(5)
    ahead.wait_for_rows()
    found += [ahead[index] for index in range(1, 8)]
    assert found == expected
    with pytest.raises(IndexError):
        ahead[len(ahead)]


def test_examples_are_dropped_after_their_last_step_and_never_shown_in_validation(tokenizer):
    word = "data.prompt.examples_until_step=2"
    whole, dropping, validation = (
        dataset(TRAIN, tokenizer),
        dataset(TRAIN, tokenizer, word),
        dataset(VALIDATION, tokenizer, word),
    )
    assert dropping[0] == whole[0]
    dropping.begin_step(2)
    assert dropping[1] == whole[1]
    # Made for the next step while step 2 has examples.
    dropping.make_ahead(2)
    dropping.wait_for_rows()
    dropping.begin_step(3)
    rows = [dropping[2], dropping[3]]
    assert [row["extra_info"]["digest"] for row in rows] == [whole[index]["extra_info"]["digest"] for index in (2, 3)]
    for row, index in zip(rows, (2, 3), strict=True):
        system, *_, question = whole[index]["raw_prompt"]
        assert row["raw_prompt"] == [system, question]
        assert row["extra_info"]["prompt_ids"] == PromptRenderer(tokenizer, model="tiny").token_ids(row["raw_prompt"])
    assert [message["role"] for message in validation[0]["raw_prompt"]] == ["system", "user"]


def test_own_examples_are_not_asked(tokenizer):
    asked = dataset(TRAIN, tokenizer)[0]["raw_prompt"][-1]["content"]
    word = f"data.prompt.examples=[{{question: {json.dumps(asked)}, answer: '7'}}]"
    rows = dataset(TRAIN, tokenizer, word, "data.prompt.num_examples=0")
    prompt = rows[0]["raw_prompt"]
    assert [message["role"] for message in prompt] == ["system", "user", "assistant", "user"]
    assert prompt[1]["content"] == asked != prompt[-1]["content"]
    assert rows[0]["extra_info"]["num_held_out"] >= 1


def test_an_environment_for_other_trainers_has_the_problems_of_the_rows(tokenizer, tiny_model):
    # Some prompts are longer than this, so they are replaced.
    words = ["data.max_prompt_length=171", f"actor_rollout_ref.model.path={tiny_model}"]
    training, validation = (dataset(split, tokenizer, *words) for split in (TRAIN, VALIDATION))
    with open_environment(EXPERIMENTS / "small.yaml", words) as environment:
        rows = [training[index] for index in range(60)]
        assert sum(row["extra_info"]["num_too_long"] for row in rows) > 0
        ours = [environment.problem(index) for index in range(60)] + list(environment.validation)
        rows += [validation[index] for index in range(len(validation))]
        for row, problem in zip(rows, ours, strict=True):
            assert list(problem.messages) == row["raw_prompt"]
            assert problem.entry == row["extra_info"]["entry"]
            assert not problem.thinking_begun
        assert len(environment) == len(training)
