"""Part 6: does training on more datasets carry over to more datasets, at equal steps and samples?

The group `trained` of the evaluation file breadth.yaml has 64 datasets. Each seed orders them at random, and its arms
train on the first 1, 4, 16 and 64. All arms answer problems of all of them, and of 8 datasets that no arm trains on.
The tokens of an arm are in its record. They are not equal, because prompts differ in length between datasets: batches
of other sizes would make them equal, but change the updates too.
"""

import random

from evidence.training_plan import ModelPlan, Programme, Training

TASK = "breadth"
NUM_DATASETS = (1, 4, 16, 64)


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the trainings of this part.

    Args:
        programme: The programme.
        model: The model.

    Returns:
        The model before training, and the arm datasets_N of each number N and seed.
    """
    pool = programme.mixture(TASK)
    cells = [
        programme.training(
            model, task=TASK, arm="none", seed=model.seeds[0], mixture=pool, evaluated=[TASK], rl_steps=0
        )
    ]
    for seed in model.seeds:
        order = random.Random(seed).sample(list(pool), len(pool))
        cells += [
            programme.training(
                model,
                task=TASK,
                arm=f"datasets_{number}",
                seed=seed,
                mixture={name: pool[name] for name in order[:number]},
                evaluated=[TASK],
            )
            for number in NUM_DATASETS
        ]
    return cells
