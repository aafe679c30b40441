"""Run verl's SFT trainer in this process."""

from pathlib import Path

from omegaconf import DictConfig
from verl.trainer.sft_trainer import SFTTrainer
from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group

from rgtrain.checkpoints.trained_problems import TrainedProblems, read_trained_problems
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.lifecycle.training_activity import ACTIVITY
from rgtrain.upstream.replacements import apply


def train_by_verl(config: DictConfig) -> None:
    """Train, and save the weights of the last step with a record of the problems.

    Args:
        config: The configuration of verl's trainer, as made by `sft_config`.
    """
    apply("sft_trainer")
    # The model itself may be the export of an earlier run.
    trained = read_trained_problems(Path(config.model.path)) or TrainedProblems()
    initialize_global_process_group()
    announce("making the model")
    trainer = SFTTrainer(config=config)
    with ACTIVITY.within("step"):
        trainer.fit()
    trainer.train_dataset.close()
    trained.add(trainer.train_dataset.digests)
    trained.write(Path(config.trainer.default_local_dir) / f"global_step_{config.trainer.total_training_steps}")
    destroy_global_process_group()
