"""Typed view of a run's configuration, read once when a command starts.

Each section holds the values of one configuration node that the project itself reads, under the same names. verl reads
the rest from its own configuration object. To read a new value, add a field. To limit its values, add a rule to the
field's type.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from rgtrain.config.plain_tree import lookup
from rgtrain.config.value_rules import Rule
from rgtrain.errors import ConfigError, choose_from

_ANY_FORM = Rule("a mapping")

Count = Annotated[int, Rule("a whole number from 1 up", lambda value: value >= 1)]
CountOrZero = Annotated[int, Rule("a whole number from 0 up", lambda value: value >= 0)]
Size = Annotated[float, Rule("a number from 0 up", lambda value: value >= 0)]
Seconds = Annotated[float, Rule("seconds above 0", lambda value: value > 0)]
GapLimit = Annotated[
    float | str | None,
    Rule(
        "a number above 0, never or null",
        lambda gap: gap > 0 if isinstance(gap, float | int) else gap in (None, "never"),
    ),
]
# A node of this type is checked by its own parser.
FreeForm = Annotated[Mapping[str, Any], _ANY_FORM]


@dataclass(frozen=True)
class WatchdogConfig:
    """Seconds without progress until a stall is reported and until the run is ended. None means never."""

    report_after_s: Seconds | None
    end_after_s: Seconds | None


@dataclass(frozen=True)
class TrainerConfig:
    """The node `trainer`, with devices, run length, validation, checkpoints and termination."""

    device: str
    n_gpus_per_node: Count
    nnodes: Count
    experiment_name: str | int | float
    logger: str | Sequence[str]
    total_epochs: int
    total_training_steps: int | None
    test_freq: int
    val_before_train: bool
    val_only: bool
    save_freq: int
    save_failure: Literal["stop", "continue"]
    default_local_dir: Path
    max_actor_ckpt_to_keep: int | None
    resume_mode: Literal["auto", "disable", "resume_path"]
    resume_from_path: str | None
    stop_within_s: Seconds
    max_rollout_gap: GapLimit
    watchdog: WatchdogConfig

    @property
    def num_gpus(self) -> int:
        """The number of GPUs on all machines."""
        return self.n_gpus_per_node * self.nnodes

    @property
    def trackers(self) -> Sequence[str]:
        """The names of the trackers, as a list even if `logger` is a single name."""
        return [self.logger] if isinstance(self.logger, str) else self.logger


@dataclass(frozen=True)
class DataConfig:
    """The node `data`, with problems and prompts. Lengths are in tokens, sizes in problems."""

    mixture: FreeForm
    curriculum: Mapping[str, Any]
    mixture_policy: Mapping[str, Any]
    prompt: Mapping[str, Any]
    allow_unsound_verifiers: Sequence[str]
    held_out_files: Sequence[str]
    hold_out_shipped: bool
    apply_chat_template_kwargs: Mapping[str, Any] | None
    seed: int
    train_size: Count
    validation_size: int
    validation_files: Sequence[str]
    validation_datasets: FreeForm
    train_batch_size: Count
    max_prompt_length: Count
    max_response_length: Count
    dataloader_num_workers: int


@dataclass(frozen=True)
class ModelConfig:
    """The model that is trained."""

    path: str
    lora_rank: int
    lora_adapter_path: str | None
    enable_gradient_checkpointing: bool
    use_liger: bool
    trust_remote_code: bool | None
    custom_chat_template: str | None


@dataclass(frozen=True)
class FsdpConfig:
    """FSDP's sharding, offloading and data types."""

    mixed_precision: Mapping[str, Any] | None
    model_dtype: str | None
    fsdp_size: int
    reshard_after_forward: bool
    use_no_sync_for_gradient_accumulation: bool
    param_offload: bool
    optimizer_offload: bool
    offload_policy: bool


@dataclass(frozen=True)
class PolicyLossConfig:
    """The loss of the policy."""

    loss_mode: str


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of the actor."""

    lr: float


@dataclass(frozen=True)
class ActorConfig:
    """Settings of the policy update."""

    ppo_mini_batch_size: Count
    ppo_epochs: Count
    ppo_max_token_len_per_gpu: int
    use_kl_loss: bool
    policy_loss: PolicyLossConfig
    optim: OptimizerConfig
    fsdp_config: FsdpConfig


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling parameters, and the number of completions per prompt (`n`)."""

    n: Count
    temperature: float
    top_p: float
    top_k: int


@dataclass(frozen=True)
class RolloutConfig(SamplingConfig):
    """Sampling in training, and vLLM's settings. `gpu_memory_utilization` is a share of a GPU's memory from 0 to 1."""

    seed: int
    response_length: int
    tensor_model_parallel_size: Count
    gpu_memory_utilization: float
    max_num_seqs: int
    free_cache_engine: bool
    enable_sleep_mode: bool
    calculate_log_probs: bool
    full_determinism: bool
    dtype: str
    engine_kwargs: Mapping[str, Any]
    val_kwargs: SamplingConfig


@dataclass(frozen=True)
class FilterGroupsConfig:
    """Dynamic sampling, which replaces groups whose completions all have the same `metric`."""

    enable: bool
    metric: str | None


@dataclass(frozen=True)
class RolloutCorrectionConfig:
    """Whether vLLM's log-probabilities count as those of the old policy, which saves a forward pass."""

    bypass_mode: bool


@dataclass(frozen=True)
class AlgorithmConfig:
    """The advantage estimator, KL penalty, dynamic sampling and rollout correction."""

    adv_estimator: str
    use_kl_in_reward: bool
    filter_groups: FilterGroupsConfig
    rollout_correction: RolloutCorrectionConfig


@dataclass(frozen=True)
class CriticConfig:
    """Whether a critic is trained, and how often on each batch."""

    enable: bool | None
    ppo_epochs: Count


@dataclass(frozen=True)
class RewardConfig:
    """The parts of the reward, the scorer's settings and the number of verl's reward processes.

    The parts and the settings have their own parsers, which check them.
    """

    parts: FreeForm
    scorer: FreeForm
    num_workers: int


@dataclass(frozen=True)
class RolloutsConfig:
    """The rollouts to keep and to show: groups per step, steps between shown groups, and GB (10^9 bytes) on disk."""

    per_step: CountOrZero
    print_every: CountOrZero
    max_gb: Size


@dataclass(frozen=True)
class RayConfig:
    """The address of a running Ray cluster. None starts a cluster on this machine."""

    address: str | None


@dataclass(frozen=True)
class ModelChoiceConfig:
    """Facts about the model that its choice states.

    Attributes:
        shape: The name of the model's shape in SHAPES, used if the model is not on this machine.
        template_opens_thinking: Whether the chat template ends the prompt with an open think tag; None if it was not
            read from the template.
    """

    shape: str | None
    template_opens_thinking: bool | None


@dataclass(frozen=True)
class HardwareConfig:
    """The memory of each GPU in GB (10^9 bytes), and the values that preflight chose, by key.

    A memory of None means that of this machine's GPUs.
    """

    gpu_memory_gb: float | None
    chosen: FreeForm


@dataclass(frozen=True)
class RunConfig:
    """The values of a run's configuration that the project itself reads.

    Attributes:
        model: The node `actor_rollout_ref.model`; `actor` and `rollout` are its siblings.
        ray_init: The node `ray_kwargs.ray_init`.
        model_choice: The node `model`, which each file in configs/model sets.
        whole: The whole plain configuration, to save it or to compare it with another.
    """

    run_dir: Path
    engine: Literal["fast", "verl"]
    plugins: Sequence[str]
    preflight: Literal["brief", "only"]
    trainer: TrainerConfig
    data: DataConfig
    model: ModelConfig
    actor: ActorConfig
    rollout: RolloutConfig
    algorithm: AlgorithmConfig
    critic: CriticConfig
    reward: RewardConfig
    rollouts: RolloutsConfig
    ray_init: RayConfig
    model_choice: ModelChoiceConfig
    hardware: HardwareConfig
    whole: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "RunConfig":
        """Read a run's plain, resolved configuration, for example from `plain_config` or a run's config.yaml.

        Returns:
            The typed values.

        Raises:
            ConfigError: Values are missing or unusable. The message names each by its full key.
        """
        return cls(**_values(cls, {**plain, "whole": plain}, key="", nodes=_NODES))


# Nodes whose name differs from their field in RunConfig.
_NODES = {
    "model": "actor_rollout_ref.model",
    "actor": "actor_rollout_ref.actor",
    "rollout": "actor_rollout_ref.rollout",
    "ray_init": "ray_kwargs.ray_init",
    "model_choice": "model",
}
_Section = TypeVar("_Section")


def plain_config(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration, or a node of one, as resolved plain values."""
    plain = _with_texts(OmegaConf.to_container(config, resolve=True))
    if not isinstance(plain, dict):
        raise TypeError(f"a configuration is a mapping, not {type(plain).__name__}")
    return {str(key): value for key, value in plain.items()}


def _with_texts(value: Any) -> Any:
    """Decode the texts that `checked_config` keeps as bytes, because OmegaConf would read references in them."""
    if isinstance(value, dict):
        return {key: _with_texts(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_texts(one) for one in value]
    return value.decode() if isinstance(value, bytes) else value


def read_section(section: type[_Section], node: Any, *, key: str) -> _Section:
    """Read a node of a plain configuration.

    Args:
        section: The dataclass of the node's values.
        node: The node.
        key: The node's full key, for messages.

    Returns:
        The typed values.

    Raises:
        ConfigError: Values are missing or unusable. The message names each by its full key.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key} is {node!r}; give a mapping")
    return section(**_values(section, node, key=key))


def _values(
    section: type, node: Mapping[str, Any], *, key: str, nodes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the values of a section's fields; `nodes` maps fields to their keys if these differ from the names."""
    types = get_type_hints(section, include_extras=True)
    values, wrong = {}, []
    for name in (one.name for one in fields(section)):
        path = (nodes or {}).get(name, name)
        try:
            values[name] = _value(lookup(node, path, _MISSING), types[name], key=f"{key}.{path}" if key else path)
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("; ".join(wrong))
    return values


# OmegaConf's mark of a missing value.
_MISSING = "???"


def _value(given: Any, hint: Any, *, key: str) -> Any:
    if given == _MISSING:
        raise ConfigError(f"{key} is missing; {_allowed(given, hint)}")
    if is_dataclass(hint) and isinstance(hint, type):
        return read_section(hint, given, key=key)
    if not _fits(given, hint):
        raise ConfigError(f"{key} is {given!r}; {_allowed(given, hint)}")
    return Path(given) if hint is Path else given


def _fits(given: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base, rule = arguments
        return rule is _ANY_FORM or (_fits(given, base) and rule.allows(given))
    if origin in (Union, UnionType):
        return any(_fits(given, one) for one in arguments)
    if origin is Literal:
        return given in arguments
    if origin is Mapping:
        return isinstance(given, Mapping)
    if origin is Sequence:
        return isinstance(given, list) and all(_fits(item, arguments[0]) for item in given)
    # In Python, a bool is an int too.
    if isinstance(given, bool):
        return hint is bool
    accepted: dict[Any, tuple[type, ...]] = {float: (int, float), Path: (str,)}
    return isinstance(given, accepted.get(hint, (hint,)))


def _allowed(given: Any, hint: Any) -> str:
    if get_origin(hint) is Literal:
        return choose_from("" if given == _MISSING else str(given), get_args(hint))
    return f"give {_describe(hint)}"


def _describe(hint: Any) -> str:
    """Describe the values that a type allows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return arguments[1].words
    if origin in (Union, UnionType):
        return " or ".join(map(_describe, arguments))
    if origin is Mapping or is_dataclass(hint):
        return "a mapping"
    if origin is Sequence:
        return "a list of strings"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", Path: "a path"}
    return (names | {NoneType: "null"})[hint]
