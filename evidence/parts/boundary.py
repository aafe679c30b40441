"""Part 5: does training solve problems that the base never solves in 256 tries?

The evaluation file boundary.yaml has problems of the trained datasets of all categories, half of them harder than in
training. The base answers it twice: the first draw finds the problems that it never solves, and the second one shows
how many of these it solves by chance. The arms `accuracy` and `random_reward` are trained as in parts 1 and 4, and
answer it at the end.
"""

from evidence.training_plan import BASE, BOUNDARY, ModelPlan, Programme, Training

SAMPLING = {
    "actor_rollout_ref.rollout.val_kwargs.n": 256,
    "actor_rollout_ref.rollout.val_kwargs.temperature": 1.0,
    "actor_rollout_ref.rollout.val_kwargs.top_p": 1.0,
    # Thousands of answers are judged at once.
    "reward.scorer.num_workers": 4,
}
BASE_SEEDS = (1, 2)
# The configuration of each trained arm. Random rewards are the control.
ARMS = {"accuracy": "training", "random_reward": "random_reward"}


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the trainings of this part, the tasks boundary_base and boundary_CATEGORY.

    Args:
        programme: The programme.
        model: The model.

    Returns:
        Both draws of the base, and the training of each arm, category and seed, one arm after the other.
    """
    base = [
        programme.training(
            model,
            task=f"{BOUNDARY}_{BASE}",
            arm="none",
            seed=seed,
            # The trainer needs a mixture even if it only evaluates.
            mixture=programme.mixture(programme.categories[0]),
            evaluated=[BOUNDARY],
            settings=SAMPLING,
            rl_steps=0,
        )
        for seed in BASE_SEEDS
    ]
    trained = [
        programme.training(
            model,
            task=f"{BOUNDARY}_{category}",
            arm=arm,
            seed=seed,
            mixture=programme.mixture(category),
            evaluated=[BOUNDARY],
            settings=SAMPLING,
            config=config,
        )
        for arm, config in ARMS.items()
        for seed in model.seeds
        for category in programme.categories
    ]
    return [*base, *trained]
