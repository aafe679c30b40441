"""Check settings of `engine=verl` that verl itself would reject or ignore only after a start of minutes."""

import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rgtrain.config.composition import declared_tree
from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError, choose_from
from rgtrain.machine.devices import is_installed, usable_gpus
from rgtrain.problems.group_rewards import needs_whole_groups

_ROLLOUT = "actor_rollout_ref.rollout"
MODES = ("sync", "colocate_async", "separate_async")
# The reason why keys or nodes of verl have no effect, the keys to set instead, and the ineffective keys. verl's v1
# trainers silently ignore the old nodes of the reward.
_WITHOUT_EFFECT = (
    (
        "problems come from the project's own dataset",
        "data.mixture",
        "data.custom_cls data.train_files data.val_files data.prompt_key data.reward_fn_key data.image_key "
        "data.video_key data.audio_key data.image_patch_size data.return_raw_input_ids data.return_raw_chat "
        "data.return_full_prompt data.return_multi_modal_inputs data.use_shm",
    ),
    (
        "the number of problems is another key",
        "data.train_size or data.validation_size",
        "data.train_max_samples data.val_max_samples",
    ),
    (
        "prompts that are too long are replaced",
        "data.max_prompt_length",
        "data.truncation data.filter_overlong_prompts data.filter_overlong_prompts_workers",
    ),
    (
        "the model's folder has the tokenizer",
        "actor_rollout_ref.model.trust_remote_code",
        "data.tokenizer data.trust_remote_code",
    ),
    (
        "verl's v1 trainers read the node reward",
        "the key of the same name under reward",
        "custom_reward_function reward_model sandbox_fusion",
    ),
    (
        "answers are judged in the confined scorer",
        "reward.scorer",
        "reward.sandbox_fusion",
    ),
    (
        "a checkpoint holds actor and critic",
        "trainer.max_actor_ckpt_to_keep",
        "trainer.max_critic_ckpt_to_keep",
    ),
)
_ROLLOUT_ENGINES = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt_llm"}
_STRATEGIES = ("fsdp", "fsdp2")
# Ray runs 1,000 calls of an actor at a time, and verl sends each completion to a random reward process.
_WAITING_PER_REWARD_PROCESS = 500


def check_stock_verl(config: RunConfig) -> list[str]:
    """Check the settings of a run with `engine=verl`. Other runs pass.

    Args:
        config: The run's configuration.

    Returns:
        Warnings, one line each.

    Raises:
        ConfigError: A setting has no effect or cannot work. The message has a line for each.
    """
    if config.engine != "verl":
        return []
    errors = [
        *_ineffective_settings(config),
        *_trainer_errors(config),
        *_sequence_parallel_errors(config),
        *_rollout_errors(config),
        *_reward_errors(config),
    ]
    if errors:
        raise ConfigError("\n  ".join(errors))
    return list(_warnings(config))


def check_separate_gpus(config: RunConfig) -> None:
    """Check that this machine has the GPUs of a mode that generates on separate GPUs.

    Args:
        config: The run's configuration.

    Raises:
        ConfigError: There are too few GPUs, or some are MIG slices, between which NCCL passes no weights.
    """
    trainer = config.trainer
    is_separate = config.engine == "verl" and _value(config, "trainer.v1.trainer_mode") == "separate_async"
    if not is_separate or trainer.device != "cuda" or trainer.nnodes > 1 or config.ray_init.address is not None:
        return
    key = f"{_ROLLOUT}.n_gpus_per_node"
    separate, present = _value(config, key) * _value(config, f"{_ROLLOUT}.nnodes"), len(usable_gpus())
    if trainer.n_gpus_per_node + separate > present:
        raise ConfigError(
            f"trainer.v1.trainer_mode=separate_async needs {trainer.n_gpus_per_node} GPU(s) for training and "
            f"{separate} for generation, but {present} are available; lower trainer.n_gpus_per_node or {key}"
        )
    if any(gpu.is_mig for gpu in usable_gpus()):
        raise ConfigError(
            "trainer.v1.trainer_mode=separate_async passes weights between GPUs, but a GPU here is a MIG slice, and "
            "NCCL does not connect those; set it to sync, or CUDA_VISIBLE_DEVICES to whole GPUs"
        )


def _value(config: RunConfig, key: str) -> Any:
    return reduce(lambda node, name: node[name], key.split("."), config.whole)


def _ineffective_settings(config: RunConfig) -> Iterator[str]:
    for reason, instead, keys in _WITHOUT_EFFECT:
        for key in keys.split():
            default = OmegaConf.select(declared_tree(), key)
            declared = OmegaConf.to_container(default) if isinstance(default, DictConfig) else default
            for leaf, given in _changed(key, _value(config, key), declared):
                yield f"{leaf} is {given!r} and has no effect, because {reason}; remove it and set {instead}"


def _changed(key: str, given: Any, default: Any) -> Iterator[tuple[str, Any]]:
    """Yield each leaf of a setting that differs from its default, and its value."""
    if isinstance(given, Mapping) and isinstance(default, Mapping):
        for name, value in given.items():
            yield from _changed(f"{key}.{name}", value, default.get(name))
    elif given != default:
        yield key, given


def _trainer_errors(config: RunConfig) -> Iterator[str]:
    if not _value(config, "trainer.use_v1"):
        yield "trainer.use_v1 is false, but engine=verl runs verl's v1 trainers; set trainer.use_v1=true"
    # A module that verl imports first may register other trainers.
    mode = _value(config, "trainer.v1.trainer_mode")
    if mode not in MODES and "VERL_USE_EXTERNAL_MODULES" not in os.environ:
        yield f"trainer.v1.trainer_mode is {mode!r}; {choose_from(str(mode), MODES)}"
    if mode == "separate_async":
        yield from _separate_async_errors(config)
    for key in ("actor_rollout_ref.actor", "critic"):
        if (strategy := _value(config, f"{key}.strategy")) not in _STRATEGIES:
            yield f"{key}.strategy is {strategy!r}; {choose_from(str(strategy), _STRATEGIES)}"
        if _value(config, f"{key}.checkpoint").get("async_save"):
            yield (
                f"{key}.checkpoint.async_save is true, but a checkpoint is published once all of its files are "
                f"written; set {key}.checkpoint.async_save=false"
            )


def _sequence_parallel_errors(config: RunConfig) -> Iterator[str]:
    for node in ("actor_rollout_ref.actor", "actor_rollout_ref.actor.fsdp_config"):
        key = f"{node}.ulysses_sequence_parallel_size"
        size, num_gpus = _value(config, key), config.trainer.num_gpus
        if size <= 1:
            continue
        if num_gpus % size:
            yield f"{key} is {size}, which does not divide the {num_gpus} GPU(s); set it to a divisor of {num_gpus}"
        if not _value(config, "actor_rollout_ref.model.use_remove_padding"):
            yield f"{key} is {size}, which needs actor_rollout_ref.model.use_remove_padding=true; set it too"
        if not is_installed("flash-attn"):
            yield f"{key} is {size}, which needs the package flash-attn; install it, or set {key}=1"


def _separate_async_errors(config: RunConfig) -> Iterator[str]:
    mode = "trainer.v1.trainer_mode=separate_async"
    batch, mini = config.data.train_batch_size, config.actor.ppo_mini_batch_size
    updates = _value(config, "trainer.v1.separate_async.parameter_sync_step")
    if batch != updates * mini:
        yield (
            f"{mode} needs data.train_batch_size ({batch}) = trainer.v1.separate_async.parameter_sync_step ({updates}) "
            f"* actor_rollout_ref.actor.ppo_mini_batch_size ({mini}); set data.train_batch_size={updates * mini}"
        )
    for key in (f"{_ROLLOUT}.nnodes", f"{_ROLLOUT}.n_gpus_per_node"):
        if not _value(config, key):
            yield f"{mode} generates on separate GPUs, but {key} is {_value(config, key)!r}; set it to 1 or more"
    backend = _value(config, f"{_ROLLOUT}.checkpoint_engine.backend")
    if backend == "naive":
        yield f"{mode} cannot pass weights with {_ROLLOUT}.checkpoint_engine.backend=naive; set it to nccl"
    if config.trainer.device == "cpu":
        yield f"{mode} needs GPUs; set trainer.v1.trainer_mode=colocate_async"


def _rollout_errors(config: RunConfig) -> Iterator[str]:
    name = _value(config, f"{_ROLLOUT}.name")
    if name not in _ROLLOUT_ENGINES:
        yield f"{_ROLLOUT}.name is {name!r}; {choose_from(str(name), _ROLLOUT_ENGINES)}"
    elif importlib.util.find_spec(_ROLLOUT_ENGINES[name]) is None:
        yield (
            f"{_ROLLOUT}.name is {name!r}, but the package {_ROLLOUT_ENGINES[name]} is not installed; install it, or "
            f"set {_ROLLOUT}.name=vllm"
        )
    model = "actor_rollout_ref.model"
    has_adapters = config.model.lora_rank > 0 or _value(config, f"{model}.lora")["rank"] > 0
    if config.trainer.device == "cpu" and has_adapters and not _value(config, f"{model}.lora")["merge"]:
        yield f"vLLM's CPU build cannot serve verl's adapters; set {model}.lora.merge=true"
    if not _value(config, f"{_ROLLOUT}.agent.num_workers"):
        yield f"{_ROLLOUT}.agent.num_workers is 0; set it to 1 or more"


def _reward_errors(config: RunConfig) -> Iterator[str]:
    if config.reward.num_workers < 1:
        yield f"reward.num_workers is {config.reward.num_workers}; set it to 1 or more, because they score the answers"
    rollout, data = config.rollout, config.data
    num_samples = max(data.train_batch_size * rollout.n, data.validation_size * rollout.val_kwargs.n)
    needed = math.ceil(num_samples / _WAITING_PER_REWARD_PROCESS)
    if needed > config.reward.num_workers >= 1 and needs_whole_groups(config.reward.parts):
        yield (
            f"reward.num_workers is {config.reward.num_workers}, but a reward function gets whole groups, and up to "
            f"{num_samples} completions wait there for the others of their prompt; set reward.num_workers={needed}"
        )
    manager, function = _value(config, "reward.reward_manager.name"), _value(config, "reward.custom_reward_function")
    if manager == "remote" and function["path"] is None:
        yield (
            "reward.reward_manager.name is 'remote', but reward.parts are already computed in separate processes; set "
            "reward.reward_manager.name=naive, or reward.custom_reward_function.path"
        )


def replaces_parts(config: RunConfig) -> str | None:
    """Return the setting whose reward replaces `reward.parts`, or None if there is none."""
    if config.engine != "verl":
        return None
    function = _value(config, "reward.custom_reward_function.path")
    if function is not None:
        return f"reward.custom_reward_function.path={function}"
    return "reward.reward_model.enable=true" if _value(config, "reward.reward_model.enable") else None


def _warnings(config: RunConfig) -> Iterator[str]:
    setting = replaces_parts(config)
    if setting is None:
        return
    yield f"{setting} replaces reward.parts, which have no effect"
    if config.data.curriculum.get("datasets"):
        yield (
            f"with {setting}, curricula take the accuracy from acc in the details of the reward, or else from the "
            "reward itself; thresholds of success are for an accuracy from 0 to 1"
        )
