"""Warm start: what lets a model learn datasets on which it earns nothing?

The evaluation file warm_start_MODEL.yaml has five datasets on which the model earns nothing without worked examples. A
model without such a file has the datasets of the default model, of which it may solve some.
All arms have the same number of steps, and answer the problems without worked examples.
"""

from evidence.training_plan import ModelPlan, Programme, Training

TASK = "warm_start"
NUM_EXAMPLES = 4
# Worked examples need room in every arm, so that all arms train on the same problems.
WITHOUT_EXAMPLES = {"data.prompt.num_examples": 0, "data.max_prompt_length": 1536}


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the trainings of this part.

    Args:
        programme: The programme.
        model: The model.

    Returns:
        The model before training, and each arm with each seed.
    """
    own, default = f"{TASK}_{model.name}", f"{TASK}_{programme.default_model}"
    evaluated = [own if programme.evaluation_file(own).is_file() else default]
    mixture = programme.mixture(evaluated[0])

    def training(arm: str, seed: int, **fields) -> Training:
        settings = WITHOUT_EXAMPLES | fields.pop("settings", {})
        return programme.training(
            model,
            task=TASK,
            arm=arm,
            seed=seed,
            mixture=mixture,
            evaluated=evaluated,
            settings=settings,
            **fields,
        )

    cells = [training("none", model.seeds[0], rl_steps=0)]
    half = model.steps // 2
    for seed in model.seeds:
        rl_only = training("rl_only", seed)
        cells += [
            rl_only,
            training("sft_then_rl", seed, sft_steps=half, rl_steps=model.steps - half, equal_tokens=rl_only),
            training(
                "examples_dropped",
                seed,
                settings={"data.prompt.num_examples": NUM_EXAMPLES, "data.prompt.examples_until_step": half},
            ),
        ]
    return cells
