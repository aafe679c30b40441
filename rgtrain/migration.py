"""Translate configurations of the original Reasoning Gym training code to experiments of this project.

An original file holds a whole configuration of about 230 lines for verl of March 2025. The experiment holds only the
values that differ from the project's defaults, and names choices for the model and the algorithm.
"""

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rgtrain.config.plain_tree import leaves, lookup
from rgtrain.errors import ConfigError
from rgtrain.paths import CONFIGS

# Keys that mean the same in both.
_KEPT = (
    "data.max_prompt_length",
    "data.max_response_length",
    "data.train_batch_size",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.clip_ratio",
    "actor_rollout_ref.actor.entropy_coeff",
    "actor_rollout_ref.actor.use_kl_loss",
    "actor_rollout_ref.actor.kl_loss_coef",
    "actor_rollout_ref.actor.kl_loss_type",
    "actor_rollout_ref.actor.ppo_epochs",
    "actor_rollout_ref.actor.shuffle",
    "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.optim.lr_warmup_steps",
    "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio",
    "actor_rollout_ref.actor.optim.weight_decay",
    "actor_rollout_ref.actor.optim.min_lr_ratio",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.temperature",
    "actor_rollout_ref.rollout.top_k",
    "actor_rollout_ref.rollout.top_p",
    "actor_rollout_ref.rollout.ignore_eos",
    "actor_rollout_ref.rollout.val_kwargs.n",
    "actor_rollout_ref.rollout.val_kwargs.temperature",
    "actor_rollout_ref.rollout.val_kwargs.top_k",
    "actor_rollout_ref.rollout.val_kwargs.top_p",
    "algorithm.gamma",
    "algorithm.lam",
    "algorithm.adv_estimator",
    "algorithm.kl_penalty",
    "algorithm.kl_ctrl.type",
    "algorithm.kl_ctrl.kl_coef",
    "algorithm.kl_ctrl.horizon",
    "algorithm.kl_ctrl.target_kl",
    "trainer.total_epochs",
    "trainer.total_training_steps",
    "trainer.project_name",
    "trainer.experiment_name",
    "trainer.save_freq",
    "trainer.test_freq",
    "trainer.val_before_train",
    "trainer.critic_warmup",
)
# Keys that have another name here.
_RENAMED = {
    "reasoning_gym.dataset_size": "data.train_size",
    "reasoning_gym.developer_prompt": "data.prompt.system_prompt",
    "reasoning_gym.developer_role": "data.prompt.role",
    "actor_rollout_ref.actor.grad_clip": "actor_rollout_ref.actor.optim.clip_grad",
    "actor_rollout_ref.actor.optim.warmup_style": "actor_rollout_ref.actor.optim.lr_scheduler_type",
}
# Only a run with a critic has these.
_CRITIC_KEPT = ("critic.optim.lr", "critic.cliprange_value", "critic.ppo_epochs")
_CRITIC_RENAMED = {"critic.grad_clip": "critic.optim.clip_grad"}

_HARDWARE = "chosen by hardware=CHOICE for the machine"
_GENERATED = "not needed, because problems are generated"
_ALWAYS = "not needed, because the fast engine always trains without padding and fills micro-batches by tokens"
_REPLACED = "replaced by run_dir, which holds a run's checkpoints, log and metrics"
# Keys without an equivalent whose value does not change the experiment, with the reason.
_NOT_NEEDED = {
    "verbose": "the run's log holds everything",
    "data.tokenizer": "the model's own tokenizer is used",
    "data.train_files": _GENERATED,
    "data.val_files": _GENERATED,
    "data.prompt_key": _GENERATED,
    "data.return_raw_*": _GENERATED,
    "data.val_batch_size": "validation is one batch of data.validation_size problems",
    "actor_rollout_ref.hybrid_engine": _HARDWARE,
    "actor_rollout_ref.model.enable_gradient_checkpointing": _HARDWARE,
    "actor_rollout_ref.model.use_remove_padding": _ALWAYS,
    "actor_rollout_ref.*.use_dynamic_bsz": _ALWAYS,
    "actor_rollout_ref.*micro_batch_size*": _ALWAYS,
    "actor_rollout_ref.*.log_prob_*": _ALWAYS,
    "actor_rollout_ref.*.ppo_max_token_len_per_gpu": _HARDWARE,
    "actor_rollout_ref.*.strategy": _HARDWARE,
    "actor_rollout_ref.*.fsdp_config*": _HARDWARE,
    "actor_rollout_ref.actor.optim.total_training_steps": "set from trainer.total_training_steps",
    "actor_rollout_ref.rollout.prompt_length": "set from data.max_prompt_length",
    "actor_rollout_ref.rollout.response_length": "set from data.max_response_length",
    "actor_rollout_ref.rollout.val_kwargs.do_sample": "replaced by its temperature, whose default is 0 in both",
    "actor_rollout_ref.rollout.dtype": _HARDWARE,
    "actor_rollout_ref.rollout.gpu_memory_utilization": _HARDWARE,
    "actor_rollout_ref.rollout.enforce_eager": _HARDWARE,
    "actor_rollout_ref.rollout.free_cache_engine": _HARDWARE,
    "actor_rollout_ref.rollout.load_format": _HARDWARE,
    "actor_rollout_ref.rollout.tensor_model_parallel_size": _HARDWARE,
    "actor_rollout_ref.rollout.max_num_*": _HARDWARE,
    "actor_rollout_ref.rollout.max_model_len": _HARDWARE,
    "actor_rollout_ref.rollout.disable_log_stats": _HARDWARE,
    "actor_rollout_ref.rollout.enable_chunked_prefill": _HARDWARE,
    "trainer.balance_batch": _ALWAYS,
    "trainer.nnodes": _HARDWARE,
    "trainer.n_gpus_per_node": _HARDWARE,
    "trainer.default_local_dir": _REPLACED,
    "trainer.remove_previous_ckpt_in_save": "replaced by trainer.max_actor_ckpt_to_keep",
    "trainer.resume_mode": "a run always continues after its last checkpoint",
    "trainer.resume_from_path": "a run always continues after its last checkpoint",
}
# Features that a key turns on: the values that leave it off, and the way to get it.
_OFF: dict[str, tuple[tuple[Any, ...], str]] = {
    "actor_rollout_ref.model.external_lib": ((None,), "name a plugin as pkg://PACKAGE.MODULE.NAME"),
    "actor_rollout_ref.*.ulysses_sequence_parallel_size": ((1,), "use engine=verl"),
    "actor_rollout_ref.model.override_config*": (({}, None), "use engine=verl"),
    "actor_rollout_ref.rollout.name": (("vllm",), "use engine=verl"),
    "actor_rollout_ref.rollout.do_sample": ((True,), "set actor_rollout_ref.rollout.temperature"),
    "actor_rollout_ref.rollout.use_fire_sampling": ((False,), "it does not exist any more"),
    "trainer.default_hdfs_dir": ((None,), "it does not exist any more"),
    "trainer.del_local_ckpt_after_load": ((False,), "use engine=verl"),
    "trainer.val_generations_to_log_to_wandb": ((0,), "set trainer.log_val_generations with engine=verl"),
    "reward_model.enable": ((False,), "use engine=verl with reward.reward_model"),
}
_REWARDS = {"cosine": "published_cosine", "format": "published_format", "length": "published_length"}
_ALGORITHMS = {"grpo": "grpo", "gae": "ppo", "rloo": "rloo", "reinforce_plus_plus": "reinforce_plus_plus"}


@dataclass(frozen=True)
class Migration:
    """An experiment of this project, made from an original configuration.

    Attributes:
        choices: The choices of Hydra's groups, such as `{"model": "qwen2.5_3b"}`. None means no choice.
        values: The experiment's values, as a nested mapping.
        unused: Keys of the original without an equivalent whose values do not change the experiment, with the reason.
        lost: Keys of the original without an equivalent whose values would change the experiment, with the reason.
    """

    choices: Mapping[str, str | None]
    values: dict[str, Any]
    unused: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)


def is_original(tree: Any) -> bool:
    """Return whether a parsed YAML file has the form of the original training code's configurations."""
    if not isinstance(tree, Mapping) or not isinstance(tree.get("reasoning_gym"), Mapping):
        return False
    # A migrated or a present experiment keeps problems under data.
    return "data" not in tree or not isinstance(tree["data"], Mapping) or "mixture" not in tree["data"]


def refuse_original(path: Path) -> None:
    """Raise ConfigError with the command that translates it if the file `path` is an original configuration."""
    try:
        text = path.read_text(encoding="utf-8")
        # Parsing takes much longer than this search, and nearly every file is one of the project's form.
        found = "reasoning_gym:" in text and is_original(yaml.safe_load(text))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        # The composition reports it.
        return
    if found:
        raise ConfigError(
            f"{path} is a configuration of the original training code; run `python utils/migrate_config.py {path}` "
            "and train with the file that it writes"
        )


def read_original(path: Path) -> dict[str, Any]:
    """Read an original configuration, with its interpolations resolved if possible.

    Args:
        path: The YAML file.

    Returns:
        The nested values.

    Raises:
        ConfigError: The file can't be read or has another form.
    """
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path} can't be read ({reason}); give a configuration file of the original code") from error
    if not isinstance(config, DictConfig) or not is_original(OmegaConf.to_container(config)):
        raise ConfigError(
            f"{path} is not a configuration of the original training code, which has a section reasoning_gym; "
            "a file of this project needs no migration"
        )
    return {str(key): _resolved(config, str(key)) for key in config if key not in ("hydra", "defaults")}


def _resolved(config: DictConfig, key: str) -> Any:
    """Return the plain value at `key`. Interpolations that can't be resolved stay as they are."""
    try:
        value = OmegaConf.select(config, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        node = config._get_node(key)
        if isinstance(node, DictConfig):
            return {str(name): _resolved(node, str(name)) for name in node}
        return str(node)


def migrate(original: Mapping[str, Any]) -> Migration:
    """Translate an original configuration.

    Args:
        original: The values that `read_original` returns.

    Returns:
        The experiment. It may hold values that equal the project's defaults.
    """
    given = dict(leaves(original))
    migration = Migration(_choices(given), {})
    _migrate_problems(original, migration)
    _migrate_rewards(original.get("reward") or {}, migration)
    names = dict(zip(_KEPT, _KEPT, strict=True)) | _RENAMED
    if migration.choices.get("algorithm") == "ppo":
        names |= dict(zip(_CRITIC_KEPT, _CRITIC_KEPT, strict=True)) | _CRITIC_RENAMED
    for key, value in given.items():
        if key.split(".")[0] in ("curriculum", "reward") or key.startswith("reasoning_gym.datasets"):
            continue
        if key == "trainer.logger":
            trackers = value if isinstance(value, list) else [value]
            _put(migration.values, key, [name for name in trackers if name != "console"])
        elif key == "actor_rollout_ref.model.path":
            if "model" not in migration.choices:
                _put(migration.values, key, value)
        elif key in names:
            if value is not None:
                _put(migration.values, names[key], value)
        else:
            _note(key, value, migration)
    # The original code subtracts a KL penalty from the reward unless the loss has one.
    if given.get("actor_rollout_ref.actor.use_kl_loss") is not True:
        _put(migration.values, "algorithm.use_kl_in_reward", True)
    return migration


def _choices(given: Mapping[str, Any]) -> dict[str, str | None]:
    choices: dict[str, str | None] = {}
    path = given.get("actor_rollout_ref.model.path")
    for file in sorted((CONFIGS / "model").glob("*.yaml")):
        model = yaml.safe_load(file.read_text(encoding="utf-8")).get("actor_rollout_ref", {}).get("model", {})
        if model.get("path") == path:
            choices["model"] = file.stem
    if algorithm := _ALGORITHMS.get(given.get("algorithm.adv_estimator", "gae")):
        choices["algorithm"] = algorithm
    if not given.get("reward.use_accuracy", True):
        # The default choice would add the accuracy.
        choices["reward"] = None
    return choices


def _migrate_problems(original: Mapping[str, Any], migration: Migration) -> None:
    curriculum = original.get("curriculum") or {}
    datasets = original["reasoning_gym"].get("datasets") or {}
    if not curriculum.get("enabled"):
        mixture = {str(name): dict(options or {}) for name, options in datasets.items()}
        _put(migration.values, "data.mixture", mixture)
        return
    for name in datasets:
        migration.unused[f"reasoning_gym.datasets.{name}"] = "the original code ignores it if a curriculum is enabled"
    attributes = {str(name): options or {} for name, options in (curriculum.get("curricula") or {}).items()}
    mixture = {name: {"weight": options.get("weight", 1.0)} for name, options in attributes.items()}
    _put(migration.values, "data.mixture", mixture)
    starts = {
        # The original's ranges begin at the lowest value on every level.
        name: {"start": dict(options.get("attribute_levels") or {}), "ranges": "widening"}
        for name, options in attributes.items()
    }
    _put(migration.values, "data.curriculum.datasets", starts)
    schedule = curriculum.get("schedule") or {}
    if schedule.get("automatic"):
        migration.lost["curriculum.schedule.automatic"] = (
            f"levels rose every {schedule.get('update_steps')} steps, regardless of success; "
            "the threshold policy is written instead"
        )
    policy = {
        "name": "threshold",
        "window": curriculum.get("last_k", 20),
        "raise_above": curriculum.get("success_threshold", 0.7),
        "lower_below": curriculum.get("failure_threshold", 0.1),
    }
    _put(migration.values, "data.curriculum.policy", policy)


def _migrate_rewards(reward: Mapping[str, Any], migration: Migration) -> None:
    parts: dict[str, Any] = {}
    if reward.get("use_accuracy", True):
        parts["accuracy"] = {"weight": 1.0}
    for secondary in reward.get("secondary_rewards") or []:
        name, arguments = secondary.get("name"), dict(secondary.get("kwargs") or {})
        if name not in _REWARDS:
            migration.unused[f"reward.secondary_rewards.{name}"] = "the original code ignores unknown rewards"
            continue
        # The original code's spelling.
        if arguments.pop("preappend_thinking_token", False):
            arguments["prepend_thinking_token"] = True
        parts[_REWARDS[name]] = {"weight": secondary.get("scaling_factor", 1.0), **arguments}
    _put(migration.values, "reward.parts", parts)


def _note(key: str, value: Any, migration: Migration) -> None:
    """Record a key without an equivalent."""
    if key.startswith(("critic.", "reward_model.")) and not key.endswith(".enable"):
        if migration.choices.get("algorithm") != "ppo" or not key.startswith("critic."):
            migration.unused[f"{key.split('.')[0]}.*"] = "not used by this algorithm"
        else:
            migration.unused[key] = "set as for the actor"
        return
    for pattern, (off, advice) in _OFF.items():
        if fnmatch.fnmatchcase(key, pattern):
            target = migration.unused if value in off else migration.lost
            target[key] = "off" if value in off else f"{value!r} here; {advice}"
            return
    for pattern, reason in _NOT_NEEDED.items():
        if fnmatch.fnmatchcase(key, pattern):
            migration.unused[key] = reason
            return
    migration.lost[key] = f"{value!r} here; unknown to this project"


def without_defaults(migration: Migration, defaults: Callable[[str], Any]) -> dict[str, Any]:
    """Return the experiment's values that differ from the project's defaults.

    Args:
        migration: The migrated experiment.
        defaults: Returns the default of a dotted key.

    Returns:
        The nested values.
    """
    kept: dict[str, Any] = {}
    whole = ("data.mixture", "data.curriculum.datasets", "data.curriculum.policy", "reward.parts")
    for key in whole:
        if value := lookup(migration.values, key):
            _put(kept, key, value)
    for key, value in leaves(migration.values):
        if not key.startswith(whole) and defaults(key) != value:
            _put(kept, key, value)
    return kept


def as_yaml(source: str, choices: Mapping[str, str | None], values: Mapping[str, Any]) -> str:
    """Return the text of an experiment file.

    Args:
        source: The name of the original file.
        choices: The choices of groups.
        values: The nested values.

    Returns:
        YAML with comments.
    """
    defaults: list[Any] = ["/base"]
    if "model" in choices:
        defaults.append({"/model": choices["model"]})
    defaults += ["_self_", {"/debug": None}]
    defaults += [{f"override /{group}": choice} for group, choice in choices.items() if group != "model"]
    body = yaml.safe_dump({"defaults": defaults, **values}, sort_keys=False, allow_unicode=True, width=110)
    return f"# @package _global_\n# Migrated from {source} by utils/migrate_config.py.\n{body}"


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = value
