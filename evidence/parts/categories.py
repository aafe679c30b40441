"""Parts 1 and 2: train on each category, and evaluate on the datasets of all categories, trained and unseen."""

from evidence.training_plan import BASE, ModelPlan, Programme, Training


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the model without training and the arm `accuracy` of each category, by seed."""
    return [
        training
        for seed in model.seeds
        for training in (
            untrained(programme, model, seed),
            *(accuracy(programme, model, task, seed) for task in programme.categories),
        )
    ]


def untrained(programme: Programme, model: ModelPlan, seed: int) -> Training:
    """Return the evaluation of the model without training. The seed is that of sampling."""
    # The trainer wants a mixture although it trains nothing.
    mixture = programme.mixture(programme.categories[0])
    return programme.training(model, task=BASE, arm="none", seed=seed, mixture=mixture, rl_steps=0)


def accuracy(programme: Programme, model: ModelPlan, task: str, seed: int) -> Training:
    """Return the training of a category with the accuracy as the reward."""
    return programme.training(model, task=task, arm="accuracy", seed=seed)
