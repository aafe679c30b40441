"""The keys of an experiment that supervised fine-tuning reads."""

from collections.abc import Sequence

_ACTOR = "actor_rollout_ref.actor"
# Nodes of which every key acts, and single keys.
_READ = (
    "data seed engine run_dir plugins preflight model hardware debug mixture curriculum mixture_policy reward.scorer",
    f"actor_rollout_ref.model {_ACTOR}.optim {_ACTOR}.strategy {_ACTOR}.fsdp_config",
    f"{_ACTOR}.ppo_max_token_len_per_gpu {_ACTOR}.profiler.enable",
    "trainer.device trainer.n_gpus_per_node trainer.nnodes trainer.total_epochs trainer.total_training_steps",
    "trainer.project_name trainer.experiment_name trainer.logger trainer.stop_within_s trainer.watchdog",
    "trainer.val_only trainer.resume_mode hydra",
)
# Keys and groups within these that it does not read.
_NOT_READ = (
    "reward data.validation_size data.validation_datasets data.val_batch_size data.val_max_samples data.shuffle",
    "data.dataloader_num_workers data.allow_unsound_verifiers data.custom_cls data.val_files data.train_files",
)
_READ_KEYS = tuple(" ".join(_READ).split())
_NOT_READ_KEYS = tuple(" ".join(_NOT_READ).split())


def is_read(key: str) -> bool:
    """Return whether supervised fine-tuning reads a key or a group, or refuses values of it that cannot act.

    >>> is_read("actor_rollout_ref.actor.optim.lr"), is_read("actor_rollout_ref.rollout.n"), is_read("reward")
    (True, False, False)
    """
    if key in _NOT_READ_KEYS:
        return False
    return any(key == read or key.startswith(f"{read}.") or read.startswith(f"{key}.") for read in _READ_KEYS)


def without_effect(words: Sequence[str]) -> list[str]:
    """Return a warning about the words of a command line whose keys are not read.

    Args:
        words: Overrides in Hydra's form.

    Returns:
        One line, or none if every word has an effect.

    >>> without_effect(["seed=2", "+trainer.save_freq=5", "reward=solved"])
    ['without effect in supervised fine-tuning: trainer.save_freq, reward']
    """
    keys = [word.lstrip("+~").partition("=")[0].partition("@")[0] for word in words]
    unread = [key for key in dict.fromkeys(keys) if not is_read(key)]
    return [f"without effect in supervised fine-tuning: {', '.join(unread)}"] if unread else []
