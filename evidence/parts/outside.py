"""Part 8: does training carry over to GSM8K, MATH and Big-Bench Hard?

evidence/outside_data.py writes the problems of evaluation/outside.yaml. The part repeats the arms `accuracy` and
`format_only` of parts 1, 2 and 4, whose weights are not kept. All models answer with the prompt and the length of the
training.
"""

from typing import Any

from evidence.training_plan import OUTSIDE, OUTSIDE_ARMS, UNTRAINED, ModelPlan, Programme, Training, outside_task

# Sampled answers vary, so each problem is answered twice.
SAMPLING = {"actor_rollout_ref.rollout.val_kwargs.n": 2}


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the trainings of this part, the tasks outside and outside_CATEGORY.

    Args:
        programme: The programme.
        model: The model.

    Returns:
        The model without training, and each arm of each category, one arm after the other.
    """

    def training(task: str, arm: str, seed: int, category: str, **fields: Any) -> Training:
        return programme.training(
            model,
            task=task,
            arm=arm,
            seed=seed,
            mixture=programme.mixture(category),
            evaluated=[OUTSIDE],
            settings=SAMPLING,
            **fields,
        )

    # The trainer needs a mixture even if it only evaluates.
    base = [training(OUTSIDE, UNTRAINED, seed, programme.categories[0], rl_steps=0) for seed in model.seeds]
    trained = [
        training(outside_task(category), arm, seed, category, config=config)
        for arm, config in OUTSIDE_ARMS.items()
        for seed in model.seeds
        for category in programme.categories
    ]
    return [*base, *trained]
