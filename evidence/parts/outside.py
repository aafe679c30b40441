"""Part 8: does training carry over to GSM8K, MATH and Big-Bench Hard?

evidence/outside_data.py writes the problems of evaluation/outside.yaml. The part repeats the arm `accuracy` of parts 1
and 2, whose weights are not kept. All models answer with the prompt and the length of the training.
"""

from evidence.training_plan import OUTSIDE, UNTRAINED, ModelPlan, Programme, Training

# Sampled answers vary, so each problem is answered twice.
SAMPLING = {"actor_rollout_ref.rollout.val_kwargs.n": 2}


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the trainings of this part, the tasks outside and outside_CATEGORY.

    Args:
        programme: The programme.
        model: The model.

    Returns:
        The model without training, and the arm `accuracy` of each category, by seed.
    """

    def training(task: str, arm: str, seed: int, category: str, rl_steps: int | None = None) -> Training:
        return programme.training(
            model,
            task=task,
            arm=arm,
            seed=seed,
            mixture=programme.mixture(category),
            evaluated=[OUTSIDE],
            settings=SAMPLING,
            rl_steps=rl_steps,
        )

    # The trainer needs a mixture even if it only evaluates.
    base = [training(OUTSIDE, UNTRAINED, seed, programme.categories[0], rl_steps=0) for seed in model.seeds]
    trained = [
        training(f"{OUTSIDE}_{category}", "accuracy", seed, category)
        for seed in model.seeds
        for category in programme.categories
    ]
    return [*base, *trained]
