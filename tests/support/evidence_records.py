"""Synthetic records of the evidence programme, with known effects."""

from collections.abc import Callable, Iterable

import numpy

from evidence.measured import Measured
from evidence.records import planned_settings
from evidence.training_plan import Training

# Log odds of a right answer, for the trained arm and the dataset, in addition to the problem's difficulty.
Effect = Callable[[Training, str], float]


def synthetic_records(
    measured: Measured,
    *,
    parts: Iterable[str],
    effect: Effect = lambda training, dataset: 0.0,
    seed_spread: float = 0.2,
    center: float = -1.0,
    num_problems: int = 24,
    num_samples: int = 4,
    models: Iterable[str] | None = None,
    seed: int = 0,
):
    """Return a record for each training of some parts.

    Args:
        measured: The programme and its parts.
        parts: Names of parts.
        effect: The change in log odds that a training causes on a dataset.
        seed_spread: The standard deviation of the log odds between trainings with different seeds.
        center: The mean log odds of a right answer without training.
        num_problems: The problems of each dataset.
        num_samples: The answers to each problem, if the training does not set another number.
        models: Names of models; None for all.
        seed: The seed of everything random.

    Returns:
        The records.
    """
    random = numpy.random.default_rng(seed)
    difficulties = {}
    trainings = {
        (model.name, training.name): training
        for model in measured.models
        if models is None or model.name in models
        for part in parts
        for training in measured.planned(part, model)
    }
    records = []
    for training in trainings.values():
        is_trained = training.rl_steps or training.sft_steps
        shift = random.normal(0, seed_spread) if is_trained else 0.0
        samples = training.settings.get("actor_rollout_ref.rollout.val_kwargs.n", num_samples)
        evaluation = {}
        for dataset in measured.evaluated(training):
            if dataset not in difficulties:
                difficulties[dataset] = random.normal(center, 1.5, num_problems)
            odds = difficulties[dataset] + effect(training, dataset) + shift
            solved = random.binomial(samples, 1 / (1 + numpy.exp(-odds)))
            evaluation[dataset] = {
                "digests": [f"{dataset}-{number}" for number in range(num_problems)],
                "samples": samples,
                "solved": solved.tolist(),
                "answered": [samples] * num_problems,
                "score": (solved / samples).round(3).tolist(),
            }
        records.append(
            {
                "model": training.model,
                "task": training.task,
                "arm": training.arm,
                "seed": training.seed,
                "command": "train_grpo.py",
                "config": planned_settings(training),
                "seconds": {"total": 60.0, "per_gpu": 4, "training": 30.0},
                "tokens": {"trained": 2_500_000},
                "steps": {"reward": [0.1] * 6 + [0.9] * 6, "entropy": [None] * 12},
                "evaluation": evaluation,
            }
        )
    return records
