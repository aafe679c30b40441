"""Run verl's SFT trainer in this process."""

from omegaconf import DictConfig
from verl.trainer.sft_trainer import SFTTrainer
from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group

from rgtrain.training.lifecycle.console import announce
from rgtrain.training.lifecycle.training_activity import ACTIVITY
from rgtrain.upstream.replacements import apply


def train_by_verl(config: DictConfig) -> None:
    """Train, and save the weights of the last step.

    Args:
        config: The configuration of verl's trainer, as made by `sft_config`.
    """
    apply("sft_trainer")
    initialize_global_process_group()
    announce("making the model")
    trainer = SFTTrainer(config=config)
    with ACTIVITY.within("step"):
        trainer.fit()
    trainer.train_dataset.close()
    destroy_global_process_group()
