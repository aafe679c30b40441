"""Do the gains of parts 1 and 2 remain if all answers are greedy? A lower entropy alone helps sampled answers.

The part repeats the arms `accuracy` and `format_only`, whose weights are not kept, with greedy answers at the end. The
arm `greedy` of the task base is the model without training.
"""

from evidence.parts.categories import GREEDILY
from evidence.training_plan import GREEDY_ARMS, ModelPlan, Programme, Training


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the trainings of each arm, category and seed, one arm after the other."""
    return [
        programme.training(model, task=task, arm=arm, seed=seed, config=config, settings=GREEDILY)
        for arm, config in GREEDY_ARMS.items()
        for seed in model.seeds
        for task in programme.categories
    ]
