"""Parts 1 and 2: train on each category, and evaluate on the datasets of all categories, trained and unseen."""

from evidence.training_plan import BASE, GREEDY, UNTRAINED, ModelPlan, Programme, Training

# One greedy answer to each problem.
GREEDILY = {"actor_rollout_ref.rollout.val_kwargs.n": 1, "actor_rollout_ref.rollout.val_kwargs.temperature": 0}


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the model without training and the arm `accuracy` of each category, by seed."""
    by_seed = [
        training
        for seed in model.seeds
        for training in (
            untrained(programme, model, seed),
            *(accuracy(programme, model, task, seed) for task in programme.categories),
        )
    ]
    return [*by_seed, greedy(programme, model)]


def untrained(programme: Programme, model: ModelPlan, seed: int) -> Training:
    """Return the evaluation of the model without training. The seed is that of sampling."""
    # The trainer needs a mixture even if it only evaluates.
    mixture = programme.mixture(programme.categories[0])
    return programme.training(model, task=BASE, arm=UNTRAINED, seed=seed, mixture=mixture, rl_steps=0)


def greedy(programme: Programme, model: ModelPlan) -> Training:
    """Return the greedy evaluation of the model without training.

    Training lowers the entropy. At temperature 1 this raises the accuracy, even if the model learns nothing else.
    """
    mixture = programme.mixture(programme.categories[0])
    return programme.training(
        model, task=BASE, arm=GREEDY, seed=model.seeds[0], mixture=mixture, rl_steps=0, settings=GREEDILY
    )


def accuracy(programme: Programme, model: ModelPlan, task: str, seed: int) -> Training:
    """Return the training of a category with the accuracy as the reward."""
    return programme.training(model, task=task, arm="accuracy", seed=seed)
