"""The duration of a training follows from similar trainings, its steps and its answers."""

import sys

import pytest

from rgtrain.paths import PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT))
from evidence.durations import Durations
from evidence.parts import boundary, categories, controls
from evidence.records import planned_settings
from evidence.training_plan import read_programme

PROGRAMME = read_programme()
MODEL = next(iter(PROGRAMME.models.values()))
REWARDED = categories.accuracy(PROGRAMME, MODEL, PROGRAMME.categories[0], 1)
BOUNDARY = next(one for one in boundary.trainings(PROGRAMME, MODEL) if one.rl_steps)
# The answers to the problems of all categories, four to each.
NUM_ANSWERS = 4 * sum(entry["size"] for task in PROGRAMME.categories for entry in PROGRAMME.datasets(task).values())


def record(seconds, per_gpu, training=REWARDED, num_answers=NUM_ANSWERS, command="python train_grpo.py"):
    return {
        "command": command,
        "config": planned_settings(training),
        "seconds": {"total": seconds, "per_gpu": per_gpu},
        "evaluation": {"gcd": {"samples": 4, "solved": [1] * (num_answers // 4)}},
    }


def estimate(training, per_gpu, *records):
    return Durations(PROGRAMME, MODEL, records).seconds(training, per_gpu=per_gpu)


def test_only_records_with_the_most_similar_number_of_trainings_per_gpu_count():
    records = [record(190.0, 11), record(206.0, 11), record(250.0, 13), record(256.0, 13)]
    assert estimate(REWARDED, 11, *records) == pytest.approx(198)
    assert estimate(REWARDED, 13, *records) == pytest.approx(253)
    # More trainings on a GPU take longer.
    assert estimate(REWARDED, 16, *records) > 253 + 10
    assert estimate(REWARDED, 4, *records) < 198


def test_more_evaluated_answers_take_longer_in_proportion():
    similar = record(253.0, 13)
    added = estimate(BOUNDARY, 13, similar) - estimate(REWARDED, 13, similar)
    # 6.3 times the usual answers were seen to take 60 to 80 s more beside 12 others.
    assert 80 < added < 130
    few = record(200.0, 13, num_answers=NUM_ANSWERS // 16)
    assert estimate(REWARDED, 13, few) > 200


def test_right_answers_and_further_programs_are_not_taken_to_be_cheap():
    sft, both = (arm(PROGRAMME, MODEL, PROGRAMME.categories[0], 1) for arm in (controls.sft, controls.sft_then_rl))
    # Beside 12 others, 30 of 60 steps were measured. They amount to 450 s in all, and the evaluation follows.
    assert estimate(sft, 13, record(253.0, 13)) > 600
    assert estimate(both, 13) > estimate(REWARDED, 13)
    # Records of the same stages replace assumptions.
    taught = record(500.0, 13, training=sft, command="python train_sft.py && python train_grpo.py")
    assert estimate(sft, 13, taught, record(253.0, 13)) == pytest.approx(500)
