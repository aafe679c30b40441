"""Part 3: do curricula help? Five ways to choose levels, on the same samples, measured at all levels evenly.

The levels are those of `data.curriculum` with `ranges: level`. The evaluation file curriculum_DATASET.yaml has each of
them as a dataset DATASET_level_K, with the same problems for every arm and seed.
"""

from typing import Any

from evidence.training_plan import ModelPlan, Programme, Training

# The curriculum of each dataset, and the parameters that are the same at all levels. In the category arithmetic, the
# 135M model learned chain_sum with two terms. After 60 steps with three policies, it solved no evaluated problem of
# spell_backward, and it scored 0.01 at the easiest level of mini_sudoku (64 answers).
DATASETS: dict[str, dict[str, Any]] = {
    "chain_sum": {"start": {"num_terms": 0}, "num_levels": 5},
    # A fifth level would repeat words of the fourth one's length.
    "spell_backward": {"num_levels": 4},
    "count_primes": {"num_levels": 4},
}
PARAMS: dict[str, dict[str, Any]] = {"chain_sum": {"min_digits": 1, "max_digits": 1}}
# `uniform` is no curriculum. The threshold is the paper's for spell_backward.
POLICIES: dict[str, dict[str, Any]] = {
    "uniform": {"name": "uniform"},
    "threshold": {"name": "threshold", "window": 20, "raise_above": 0.7, "lower_below": 0.1},
    "frontier": {"name": "frontier"},
    "bandit": {"name": "bandit"},
}
# The arm that draws levels by the weights of a mixture, in which each level is a separate dataset.
ADAPTIVE = "adaptive"
# Two answers to each problem.
SAMPLING = {"actor_rollout_ref.rollout.val_kwargs.n": 2}


def task_of(dataset: str) -> str:
    """Return the task of a dataset, which is also the name of its evaluation file."""
    return f"curriculum_{dataset}"


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the trainings of this part: each dataset with each policy and seed, and the model before training.

    Args:
        programme: The programme.
        model: The model.

    Returns:
        The trainings by dataset, so that each dataset's table is complete as early as possible.
    """
    cells = []
    for dataset, levels in DATASETS.items():
        task = task_of(dataset)
        own = {"weight": 1} | ({"config": PARAMS[dataset]} if dataset in PARAMS else {})
        before = programme.training(
            model, task=task, arm="none", seed=model.seeds[0], rl_steps=0, evaluated=[task], settings=SAMPLING
        )
        cells.append(before)
        for seed in model.seeds:
            for arm, policy in POLICIES.items():
                curriculum = {"policy": policy, "datasets": {dataset: levels}}
                cells.append(
                    programme.training(
                        model,
                        task=task,
                        arm=arm,
                        seed=seed,
                        mixture={dataset: own},
                        evaluated=[task],
                        settings={**SAMPLING, "data.curriculum": curriculum},
                    )
                )
            # The mixture is that of the evaluation file, in which all levels have equal weights.
            cells.append(
                programme.training(
                    model,
                    task=task,
                    arm=ADAPTIVE,
                    seed=seed,
                    evaluated=[task],
                    settings={**SAMPLING, "mixture_policy": "adaptive"},
                )
            )
    return cells
