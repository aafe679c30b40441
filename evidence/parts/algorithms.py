"""Part 7: algorithms and parts of the reward, on the first category with the same samples.

The arm `accuracy` of the category is `grpo_no_kl` with accuracy and a small part for the format. Every other arm
changes only its algorithm or its reward. All arms have the learning rate that was chosen for `grpo_no_kl`. DAPO trains
on as many samples as the others, but generates more, because it replaces groups without a signal.
"""

from typing import Any

from evidence.parts import categories
from evidence.training_plan import ModelPlan, Programme, Training

# The choices of configs/algorithm/, besides that of the arm `accuracy`.
ALGORITHMS = ("dapo", "dr_grpo", "grpo", "gspo", "ppo", "reinforce_plus_plus", "rloo")
# These recompute the old log-probabilities. The range in which GSPO clips is smaller than the differences between the
# log-probabilities of vLLM and the engine, and the others would count these differences in the KL of the reward.
RECOMPUTED = ("gspo", "ppo", "reinforce_plus_plus", "rloo")
# Parts of the reward with the weights and options of configs/reward/.
REWARDS: dict[str, dict[str, Any]] = {
    "accuracy_only": {"reward.parts.format.weight": 0},
    "with_cosine": {
        "+reward.parts.cosine": {
            "weight": 0.3,
            "max_len": None,
            "right_short": 1.0,
            "right_long": 0.5,
            "wrong_short": -0.5,
            "wrong_long": 0.0,
        }
    },
    "with_length": {"+reward.parts.length": {"weight": 0.2, "max_len": None, "buffer": None}},
}


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the trainings of this part.

    Args:
        programme: The programme.
        model: The model.

    Returns:
        Each algorithm and reward by seed, with the arm `accuracy` of the category.
    """
    task = programme.categories[0]
    recomputed = {"algorithm.rollout_correction.bypass_mode": False}
    arms = {name: {"algorithm": name} | (recomputed if name in RECOMPUTED else {}) for name in ALGORITHMS} | REWARDS
    return [
        training
        for seed in model.seeds
        for training in (
            categories.accuracy(programme, model, task, seed),
            *(
                programme.training(model, task=task, arm=arm, seed=seed, settings=settings)
                for arm, settings in arms.items()
            ),
        )
    ]
