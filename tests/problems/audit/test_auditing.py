import csv
import dataclasses
import json
import runpy
import statistics
import subprocess
import sys
from collections import Counter

import pytest

from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import Scorer
from rgtrain.problems.audit import NUM_STEPS, Audit, DatasetAudit, audit_datasets, read_audit, write_audit
from rgtrain.problems.audit.audit_result import format_counts
from rgtrain.problems.audit.constants import FIXED, constant_candidates, known_answer
from rgtrain.problems.audit.items import MadeItems, make_items

COMMAND = str(PROJECT_ROOT / "utils" / "audit_datasets.py")
PAYING = ("game_of_life_halting", "puzzle24", "complex_arithmetic", "coin_flip", "game_of_life", "propositional_logic")
OTHERS = ("chain_sum", "prime_factorization", "isomorphic_strings", "acre", "codeio")
SETTINGS = {"seeds": [0, 1], "num_items": 24, "budget_s": 20.0}
# Registers datasets in every process that has this file on its path.
BAD_DATASETS = """
import os
from dataclasses import dataclass
import reasoning_gym
from reasoning_gym.factory import register_dataset

@dataclass
class Config:
    seed: int = 0
    size: int = 1
    def validate(self): pass

class Bad(reasoning_gym.dataset.ProceduralDataset):
    def __init__(self, config): super().__init__(config=config, seed=config.seed, size=config.size)

class Ending(Bad):
    def __getitem__(self, index): os._exit(3)

class Raising(Bad):
    def __getitem__(self, index):
        if index: raise KeyError("no more")
        return {"question": "?", "answer": "!", "metadata": {}}

register_dataset("ending", Ending, Config)
register_dataset("raising", Raising, Config)
"""


@pytest.fixture(scope="module")
def steps() -> list[str]:
    return []


@pytest.fixture(scope="module")
def found(steps) -> dict[str, DatasetAudit]:
    names = [*PAYING, *OTHERS]
    return audit_datasets(names, **SETTINGS, count_tokens=lambda problem: len(problem.question), on_step=steps.append)


@pytest.fixture(scope="module")
def audit(found) -> Audit:
    return Audit(
        command="python utils/audit_datasets.py",
        versions={"reasoning_gym": "0.1.25"},
        prompts="characters of the question",
        seconds=1.5,
        datasets=found,
        **SETTINGS,
    )


def made(*names: str, hash_seed: int = 0, **settings) -> dict[str, MadeItems]:
    settings = SETTINGS | settings
    return make_items(names, hash_seed=hash_seed, on_step=lambda name: None, **settings)


@pytest.mark.parametrize("name", PAYING)
def test_a_verifier_that_pays_for_a_constant_answer_is_unsound(name, found):
    assert found[name].best_constant_score >= 0.5
    # The answer is rarely right.
    assert (found[name].best_constant_share_right or 0) < found[name].best_constant_score - 0.25


@pytest.mark.parametrize("name", ["chain_sum", "prime_factorization", "codeio"])
def test_a_strict_verifier_is_sound(name, found):
    assert found[name].best_constant_score < 0.25


def test_the_share_of_right_answers_explains_why_a_constant_earns(found):
    # The answers are yes and no, so a guess earns its base rate.
    guess = found["isomorphic_strings"]
    assert guess.best_constant in ("True", "False")
    assert guess.best_constant_score == pytest.approx(guess.best_constant_share_right)
    assert found["propositional_logic"].best_constant_share_right is None


@pytest.mark.parametrize("name", ["coin_flip", "acre"])
def test_the_best_constant_is_scored_on_items_it_was_not_taken_from(name, found):
    others = [item.problem.entry for item in made(name)[name].items[6:]]
    with Scorer() as scorer:
        scores = scorer.score_many((found[name].best_constant, entry) for entry in others)
    assert found[name].best_constant_num_items == len(others) == 18
    assert found[name].best_constant_score == statistics.fmean(score.accuracy for score in scores)


def test_right_answers_score_1_and_are_counted(found):
    for name, audited in found.items():
        assert audited.num_items == 24
        assert audited.num_oracles == audited.num_oracles_right == (0 if name == "propositional_logic" else 24)


def test_only_one_dataset_pays_for_junk(found):
    assert {name for name, audited in found.items() if audited.num_junk_paid} == {"game_of_life_halting"}


def test_errors_of_a_verifier_are_counted_and_do_not_stop_the_audit(found):
    assert found["prime_factorization"].errors["exception: ValueError"] > 24
    assert found["coin_flip"].errors == {}
    assert found["coin_flip"].hostile_errors["exception: OverflowError"] >= 1
    assert found["puzzle24"].hostile_errors["timeout"] >= 1


def test_items_that_depend_on_the_hash_seed_are_counted(found):
    for name, audited in found.items():
        assert audited.num_made_again == 24
        assert audited.num_other_under_same_hash_seed == 0
        # Its questions list the letters of a set.
        assert (audited.num_other_under_other_hash_seed > 0) == (name == "isomorphic_strings")


def test_percentiles_of_times_and_prompt_lengths_increase(found):
    for audited in found.values():
        assert 0 < audited.seconds_to_make_median <= audited.seconds_to_make_p99
        assert 0 < audited.seconds_to_score_median <= audited.seconds_to_score_p99
        assert 0 < audited.prompt_tokens_median <= audited.prompt_tokens_p90 <= audited.prompt_tokens_max


def test_datasets_without_a_curriculum_are_reported(found):
    assert {name for name, audited in found.items() if not audited.has_curriculum} == {"acre"}


def test_every_step_is_reported(steps, found):
    assert Counter(steps) == dict.fromkeys(found, NUM_STEPS)


def test_items_alternate_between_seeds_and_leave_no_file_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problems = [item.problem for item in made("codeio", num_items=60)["codeio"].items]
    assert [problem.index for problem in problems] == [index for index in range(30) for _ in range(2)]
    assert len({problem.seed for problem in problems}) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_slow_dataset_gives_the_items_it_makes_in_time():
    items = made("knight_swap", "gcd", num_items=100, budget_s=2.0)
    assert items["knight_swap"].error is None
    assert 1 <= len(items["knight_swap"].items) < 100 == len(items["gcd"].items)


def test_a_dataset_that_raises_or_exits_does_not_stop_the_others(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(BAD_DATASETS)
    monkeypatch.syspath_prepend(tmp_path)
    items = made("ending", "raising", "gcd")
    assert items["ending"] == MadeItems([], "its process exited with status 3")
    assert items["raising"].error == "KeyError: 'no more'"
    assert len(items["raising"].items) == 2
    assert (items["gcd"].error, len(items["gcd"].items)) == (None, 24)


def test_constants_are_derived_from_right_answers_to_other_items():
    candidates = constant_candidates(["[[1,2],[2,3]]", "17.5", "17.5"])
    assert candidates[: len(FIXED) + 2] == ["17.5", "[[1,2],[2,3]]", *FIXED]
    assert {"[[0,0],[0,0]]", "[[2,2],[2,2]]", "0", "00.0", "17.5 [[1,2],[2,3]]"} <= set(candidates)
    assert len(set(candidates)) == len(candidates)


def test_an_example_answer_replaces_a_missing_answer():
    assert known_answer({"answer": "4", "metadata": {"example_answer": "5"}}) == "4"
    assert known_answer({"answer": None, "metadata": {"possible_answer": {"0": 1}}}) == '{"0": 1}'
    assert known_answer({"answer": None, "metadata": {}}) is None


def test_a_written_audit_can_be_read(audit, tmp_path):
    write_audit(audit, tmp_path)
    assert read_audit(tmp_path) == audit
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.csv", "audit.json"]


def test_an_answer_that_is_not_valid_utf_8_can_be_written(audit, tmp_path):
    odd = dataclasses.replace(audit.datasets["acre"], best_constant="\ud800")
    write_audit(dataclasses.replace(audit, datasets={"acre": odd}), tmp_path)
    assert read_audit(tmp_path).datasets["acre"] == odd


def test_the_command_prints_the_numbers_that_it_writes_as_json_and_csv(tmp_path):
    arguments = ["--datasets", "prime_factorization", "coin_flip", "--items", "12", "--out", str(tmp_path / "new")]
    command = [sys.executable, "-W", "ignore", COMMAND, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    written = read_audit(tmp_path / "new")
    rows = list(csv.DictReader((tmp_path / "new" / "audit.csv").open(encoding="utf-8", newline="")))
    for row, audited in zip(rows, written.datasets.values(), strict=True):
        values = {
            name: format_counts(v) if isinstance(v, dict) else v for name, v in dataclasses.asdict(audited).items()
        }
        assert row == {name: "" if value is None else str(value) for name, value in values.items()}
    assert "refused: coin_flip: the constant answer '0'" in result.stdout
    assert "exception: ValueError" in result.stdout
    assert json.loads((tmp_path / "new" / "audit.json").read_text())["command"].endswith(" ".join(arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets", "chain_summ", "--out", "x"], "unknown dataset 'chain_summ'; did you mean 'chain_sum'"),
        (["--datasets", "gcd"], "can't replace the committed audit, which is of all; name a folder with --out DIR"),
        (["--datasets", "gcd", "--out", "/dev/null/x"], "cannot write the audit into /dev/null/x (Not a directory)"),
        (["--items", "0"], "--items is 0; give a whole number from 1"),
        (["--budget", "nan"], "--budget is nan; give seconds above 0"),
    ],
)
def test_the_command_reports_errors_before_it_starts(arguments, message, monkeypatch, capsys):
    # Run the command in this process, which has already loaded Reasoning Gym.
    monkeypatch.setattr(sys, "argv", [COMMAND, *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as exited:
        runpy.run_path(COMMAND, run_name="__main__")
    said = capsys.readouterr().err
    assert exited.value.code == 2
    assert said.startswith("error: ")
    assert message in said
