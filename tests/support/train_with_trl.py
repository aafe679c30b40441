"""Train a model with TRL's GRPOTrainer on an environment: `train_with_trl.py MODEL FOLDER` writes FOLDER/result.json.

It is a program, because verl cannot build a model in a process that has imported TRL.
"""

import json
import sys
from pathlib import Path
from typing import Any

from rgtrain.environments import TaskEnvironment, open_environment
from rgtrain.environments.trl_adapter import trl_dataset, trl_reward

SETTINGS: dict[str, Any] = {
    "mixture": {"spell_backward": {}},
    "curriculum": {"datasets": {"spell_backward": {"num_levels": 2}}},
    # The random model never answers, so this part makes the difference.
    "reward": {"accuracy": {}, "published_length": {"weight": 0.5, "max_chars": 100}},
    "prompt": {"system_prompt": None},
    "scorer": {"num_workers": 1},
    "size": 100,
    "validation_size": 4,
    "hold_out_shipped": False,
}


def main() -> None:
    model, folder = sys.argv[1], Path(sys.argv[2])
    with open_environment(**SETTINGS) as environment:
        result = {
            "conversational": train(environment, model, folder, num_steps=5, is_standard=False),
            "standard": train(environment, model, folder, num_steps=2, is_standard=True),
        }
    (folder / "result.json").write_text(json.dumps(result))


def train(
    environment: TaskEnvironment, path: str, folder: Path, *, num_steps: int, is_standard: bool
) -> dict[str, Any]:
    """Return the trainer's logs, and whether the model has changed."""
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    before = {name: value.clone() for name, value in model.named_parameters()}
    prompts = {"tokenizer": tokenizer if is_standard else None}
    trainer = trl.GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=trl_reward(environment),
        train_dataset=trl_dataset(environment, **prompts),
        eval_dataset=trl_dataset(environment, split="validation", size=2, **prompts),
        args=trl.GRPOConfig(
            output_dir=str(folder),
            max_steps=num_steps,
            per_device_train_batch_size=2,
            num_generations=2,
            num_generations_eval=1,
            max_completion_length=4,
            eval_strategy="steps",
            eval_steps=num_steps,
            logging_steps=1,
            save_strategy="no",
            learning_rate=1e-3,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
        ),
    )
    trainer.train()
    return {
        "log_history": trainer.state.log_history,
        "num_extra_answers": len(trainer._logs["extra"]["answer"]),
        "has_learned": any(not value.equal(before[name]) for name, value in model.named_parameters()),
    }


if __name__ == "__main__":
    main()
