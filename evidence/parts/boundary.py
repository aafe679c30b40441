"""Part 5: does training solve problems that the base never solves in 256 tries?

The evaluation file boundary.yaml has problems of the trained datasets of all categories, half of them harder than in
training. The base answers it twice: the first draw finds the problems that it never solves, and the second one shows
how many of these it solves by chance. Every checkpoint of the arms `accuracy` and `random_reward` answers it once.
"""

from collections.abc import Callable

from evidence.parts import categories, controls
from evidence.training_plan import ModelPlan, Programme, Training

# The name of the evaluation file, and the beginning of the tasks boundary_base and boundary_CATEGORY.
TASK = "boundary"
SAMPLING = {
    "actor_rollout_ref.rollout.val_kwargs.n": 256,
    "actor_rollout_ref.rollout.val_kwargs.temperature": 1.0,
    "actor_rollout_ref.rollout.val_kwargs.top_p": 1.0,
    # Thousands of answers are judged at once.
    "reward.scorer.num_workers": 4,
}
BASE_SEEDS = (1, 2)
# The trained arms, and random rewards as the control.
ARMS: dict[str, Callable[[Programme, ModelPlan, str, int], Training]] = {
    "accuracy": categories.accuracy,
    "random_reward": controls.random_reward,
}


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the evaluations of this part; none of them trains.

    Args:
        programme: The programme.
        model: The model.

    Returns:
        Both draws of the base, and the checkpoint of each arm, category and seed.
    """

    def evaluation(task: str, arm: str, seed: int, *, category: str, start: Training | None = None) -> Training:
        return programme.training(
            model,
            task=f"{TASK}_{task}",
            arm=arm,
            seed=seed,
            # The trainer wants a mixture although it trains nothing.
            mixture=programme.mixture(category),
            evaluated=[TASK],
            settings=SAMPLING,
            rl_steps=0,
            start=start,
        )

    cells = [evaluation("base", "none", seed, category=programme.categories[0]) for seed in BASE_SEEDS]
    for seed in model.seeds:
        for arm, trained in ARMS.items():
            for category in programme.categories:
                start = trained(programme, model, category, seed)
                cells.append(evaluation(category, arm, seed, category=category, start=start))
    return cells
