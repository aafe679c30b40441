"""Translate the configuration of a run into that of verl's SFT trainer.

Both programs read the same experiments. So a model, its optimizer and its FSDP settings are those of the actor, and
prompts and problems are those of its rollouts.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from rgtrain.config.composition import verl_sft_tree

# Keys of `trainer` with the same meaning for both of verl's trainers.
_TRAINER_KEYS = ("default_local_dir", "project_name", "experiment_name", "logger", "device")


def sft_config(composed: DictConfig, *, num_steps: int) -> DictConfig:
    """Return the configuration of verl's SFT trainer for a run.

    Args:
        composed: The run's whole configuration, resolved.
        num_steps: The number of steps of the run.

    Returns:
        verl's SFT tree with the run's values. Its node `data` also has all keys of the run's own `data`, and `run_dir`
        is the run's folder.
    """
    # Plain values, because Hydra closes the nodes of a configuration to new keys.
    whole: Any = OmegaConf.to_container(composed)
    actor, data, trainer = whole["actor_rollout_ref"]["actor"], whole["data"], whole["trainer"]
    steps_per_epoch = min(num_steps, data["train_size"] // data["train_batch_size"])
    token_budget = {"use_dynamic_bsz": True, "max_token_len_per_gpu": actor["ppo_max_token_len_per_gpu"]}
    sft = verl_sft_tree().copy()
    original: Any = OmegaConf.to_container(sft)
    sft.model = whole["actor_rollout_ref"]["model"]
    sft.optim = actor["optim"]
    # verl's actor replaces the strategy of its engine in the same way.
    sft.engine = {**actor["fsdp_config"], "strategy": actor["strategy"], **token_budget}
    # Only the weights, from which the model is exported at the end.
    sft.checkpoint.save_contents = ["model"]
    sft.data = {
        **original["data"],
        **data,
        **token_budget,
        "custom_cls": {"path": "pkg://rgtrain.training.sft.right_answer_dataset", "name": "RightAnswerDataset"},
        "val_files": None,
        "train_max_samples": steps_per_epoch * data["train_batch_size"],
        "max_length": data["max_prompt_length"] + data["max_response_length"],
        "num_workers": 0,
        "masks_prompt": whole["engine"] == "verl",
        "scorer": whole["reward"]["scorer"],
    }
    sft.trainer = {
        **original["trainer"],
        **{name: trainer[name] for name in _TRAINER_KEYS},
        "seed": whole["seed"],
        "total_epochs": -(-num_steps // steps_per_epoch),
        "total_training_steps": num_steps,
        "resume_mode": "disable",
    }
    sft.run_dir = whole["run_dir"]
    return sft
