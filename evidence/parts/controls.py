"""Part 4: the controls of parts 1 and 2, on the same tasks, with the same steps, samples and prompts."""

from evidence.parts import categories
from evidence.training_plan import ModelPlan, Programme, Training


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the trainings of parts 1 and 2, and each control of each category, one control after the other."""
    return [
        *categories.trainings(programme, model),
        *(arm(programme, model, task, seed) for arm in ARMS for seed in model.seeds for task in programme.categories),
    ]


def format_only(programme: Programme, model: ModelPlan, task: str, seed: int) -> Training:
    """Return the training that rewards only the format."""
    return programme.training(model, task=task, arm="format_only", seed=seed, config="format_only")


def random_reward(programme: Programme, model: ModelPlan, task: str, seed: int) -> Training:
    """Return the training with a random reward in place of the accuracy."""
    return programme.training(model, task=task, arm="random_reward", seed=seed, config="random_reward")


def inverted(programme: Programme, model: ModelPlan, task: str, seed: int) -> Training:
    """Return the training that rewards wrong answers in place of right ones."""
    return programme.training(model, task=task, arm="inverted", seed=seed, config="inverted")


def sft(programme: Programme, model: ModelPlan, task: str, seed: int) -> Training:
    """Return the training on right answers, with the steps and tokens of the arm `accuracy` of the same seed.

    It sees more problems than that arm, because each of its samples is drawn anew. Small datasets repeat problems.
    """
    return programme.training(
        model,
        task=task,
        arm="sft",
        seed=seed,
        rl_steps=0,
        sft_steps=model.steps,
        equal_tokens=categories.accuracy(programme, model, task, seed),
    )


def sft_then_rl(programme: Programme, model: ModelPlan, task: str, seed: int) -> Training:
    """Return the training on right answers for half of the steps, then with the accuracy as the reward."""
    half = model.steps // 2
    return programme.training(
        model,
        task=task,
        arm="sft_then_rl",
        seed=seed,
        rl_steps=model.steps - half,
        sft_steps=half,
        equal_tokens=categories.accuracy(programme, model, task, seed),
    )


ARMS = (format_only, sft, random_reward, inverted, sft_then_rl)
