"""The outcome of each validation problem is read back from a run's rollouts, and a lost block is an error."""

import pytest

from rgtrain.checkpoints.rollout_files import TRAINING, VALIDATION, KeptCompletion, KeptGroup, RolloutFiles
from rgtrain.checkpoints.validation_outcomes import ProblemOutcome, read_validation_outcomes
from rgtrain.errors import ConfigError


def group(dataset: str, digest: str, scores: list[float], *, details: bool = True) -> KeptGroup:
    completions = [
        KeptCompletion(
            text="text",
            answer=None if score == 0 else "4",
            reward=-score,
            details={"acc": score, "solved": float(score == 1)} if details else {},
            num_tokens=1,
            finish_reason="stop",
        )
        for score in scores
    ]
    return KeptGroup(dataset, None, digest, "prompt", "4", [], completions)


@pytest.fixture
def files(tmp_path) -> RolloutFiles:
    return RolloutFiles(tmp_path / "rollouts", max_bytes=10**6, first_step=0)


def test_outcomes_are_counted_by_dataset_in_the_order_of_the_problems(files, tmp_path):
    files.append([group("gcd", "a" * 16, [0, 0])], step=0, split=VALIDATION)
    groups = [group("gcd", "b" * 16, [1, 0.5]), group("lcm", "c" * 16, [0, 0.01]), group("gcd", "d" * 16, [1, 1])]
    files.append(groups, step=8, split=VALIDATION)
    files.append([group("gcd", "e" * 16, [1])], step=9, split=TRAINING)
    expected = {
        "gcd": [ProblemOutcome("b" * 16, 2, 1, 2, 0.75), ProblemOutcome("d" * 16, 2, 2, 2, 1.0)],
        "lcm": [ProblemOutcome("c" * 16, 2, 0, 1, 0.005)],
    }
    assert read_validation_outcomes(tmp_path) == read_validation_outcomes(tmp_path, 8) == expected
    assert read_validation_outcomes(tmp_path, 0) == {"gcd": [ProblemOutcome("a" * 16, 2, 0, 0, 0.0)]}


def test_a_validation_that_does_not_exist_is_an_error(files, tmp_path):
    with pytest.raises(ConfigError, match="does not have a validation, but those of steps none; run the validation"):
        read_validation_outcomes(tmp_path)
    files.append([group("gcd", "a" * 16, [0])], step=4, split=VALIDATION)
    with pytest.raises(ConfigError, match="does not have the validation of step 3, but those of steps 4; run"):
        read_validation_outcomes(tmp_path, 3)


def test_a_damaged_block_is_an_error(files, tmp_path):
    files.append([group("gcd", "a" * 16, [0])], step=4, split=VALIDATION)
    path = tmp_path / "rollouts" / "validation-000004.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="the validation of step 4 in .* is missing or damaged; run it again"):
        read_validation_outcomes(tmp_path)


def test_a_completion_without_a_score_is_an_error(files, tmp_path):
    files.append([group("gcd", "a" * 16, [0], details=False)], step=4, split=VALIDATION)
    with pytest.raises(ConfigError, match="a completion of dataset 'gcd' in .* has no score"):
        read_validation_outcomes(tmp_path)


def test_the_last_validation_stays_if_the_folder_is_too_large(tmp_path):
    files = RolloutFiles(tmp_path / "rollouts", max_bytes=1, first_step=0)
    for step, split in ((1, TRAINING), (2, VALIDATION), (3, VALIDATION)):
        files.append([group("gcd", "a" * 16, [1])], step=step, split=split)
    assert read_validation_outcomes(tmp_path, 3)
