"""The configuration of a PEFT adapter: every field that changes the merged weights is applied or refused by name."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rgtrain.checkpoints.untrusted_files import quoted
from rgtrain.errors import ConfigError

MAX_RANK = MAX_ALPHA = 2**20
_MAX_PATTERNS = 10_000
_TASK_TYPE = re.compile(r"[A-Z0-9_]{1,40}", re.ASCII)
# Patterns are regular expressions of an unknown author. With only names, sets of characters, one group of alternatives
# and a few repeated sets, they can't backtrack for long.
_SET = r"(?:\\[.dw]|\[[\w-]+\]|\.)"
_PATTERN = re.compile(rf"(?:{_SET}[*+]?|[\w^$|-]|\((?:\?:)?(?:[\w^$|-]|{_SET})*\))*", re.ASCII)
_MAX_REPETITIONS, _MAX_GROUPS = 2, 1
_MAX_PATTERN_CHARACTERS = 200
_MAX_NAME_CHARACTERS = 150

# Fields of PEFT's LoraConfig that this class applies. PEFT decides on `fan_in_fan_out` by the type of the layer.
_APPLIED = (
    *("r", "lora_alpha", "task_type", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "modules_to_save"),
    "target_parameters",
)
_BY_LAYER = ("fan_in_fan_out",)
# Fields that select the adapted modules, which the adapter's tensors name, or that only act in training.
_IRRELEVANT = (
    *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "runtime_config"),
    *("megatron_config", "megatron_core", "eva_config", "corda_config", "lora_ga_config", "loftq_config"),
    *("qalora_group_size", "velora_config"),
)
# Initializations that leave the base weights as they are. All others, such as PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA,
# subtract the first adapter from them.
_PLAIN_INITIALIZATIONS = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")
# The content of a file with the settings of an adapter.
EXAMPLE = '{"r": 16, "lora_alpha": 32, "task_type": "CAUSAL_LM"}'


@dataclass(frozen=True)
class AdapterConfig:
    """The fields of a LoRA adapter's configuration that determine the merged weights.

    Attributes:
        rank: The default rank.
        alpha: The default alpha.
        task_type: PEFT's name of the task.
        rank_stabilized: Whether the scale is alpha / sqrt(rank) instead of alpha / rank (rsLoRA,
            https://arxiv.org/abs/2312.03732).
        rank_pattern: Other ranks, by a regular expression for the end of a module's name.
        alpha_pattern: Other alphas, likewise.
        target_parameters: The ends of the names of adapted parameters that are not the weights of layers, such as those
            of experts. PEFT applies the patterns to the names of these parameters.
        trained_base: The fields by which tensors of the base model were changed besides the adapter, such as
            `modules_to_save`. Without these tensors, the adapter can't be used.
    """

    rank: int
    alpha: float
    task_type: str = "CAUSAL_LM"
    rank_stabilized: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    target_parameters: tuple[str, ...] = ()
    trained_base: tuple[str, ...] = ()

    def is_target_parameter(self, weight: str) -> bool:
        """Return whether the tensor `weight` is adapted as a parameter."""
        return any(weight == target or weight.endswith(f".{target}") for target in self.target_parameters)

    def rank_of(self, weight: str) -> int:
        """Return the rank of the adapter of the tensor `weight`, given by its full name in the model."""
        return _first_match(self.rank_pattern, self._matched_name(weight), default=self.rank)

    def scale_of(self, weight: str) -> float:
        """Return the factor of the adapter's change to the tensor `weight`."""
        rank = self.rank_of(weight)
        alpha = _first_match(self.alpha_pattern, self._matched_name(weight), default=self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def _matched_name(self, weight: str) -> str:
        return weight if self.is_target_parameter(weight) else weight.removesuffix(".weight")

    def peft_fields(self) -> dict[str, Any]:
        """Return the fields of PEFT's configuration from which `read_adapter_config` reads the same scales."""
        fields: dict[str, Any] = {
            "r": self.rank,
            "lora_alpha": int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,
            "task_type": self.task_type,
        }
        if self.rank_stabilized:
            fields["use_rslora"] = True
        for name, pattern in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            if pattern:
                fields[name] = dict(pattern)
        if self.target_parameters:
            fields["target_parameters"] = list(self.target_parameters)
        return fields


def read_adapter_config(content: Mapping[str, Any], *, where: str) -> AdapterConfig:
    """Check the configuration of an adapter.

    Args:
        content: The fields of PEFT's LoraConfig. Missing fields have PEFT's defaults, except `r` and `lora_alpha`.
        where: The file or folder that holds it, for messages.

    Returns:
        The configuration.

    Raises:
        ConfigError: A field has an invalid value, or changes the merged weights in a way that isn't supported.
    """
    if unsupported := unsupported_fields(content):
        raise ConfigError(
            f"the LoRA settings in {where!r} have {' and '.join(unsupported)}, which can't be exported; load the model "
            "with peft, and merge and save it there (merge_and_unload, save_pretrained)"
        )
    rank: Any = content.get("r")
    alpha: Any = content.get("lora_alpha")
    task_type = content.get("task_type") or "CAUSAL_LM"
    if type(rank) is not int or not _is_number(alpha) or not isinstance(task_type, str):
        raise ConfigError(f"{where!r} holds no valid LoRA settings: write a file like {EXAMPLE}")
    if not 1 <= rank <= MAX_RANK or not 0 < abs(alpha) <= MAX_ALPHA or not _TASK_TYPE.fullmatch(task_type):
        raise ConfigError(
            f"{where!r} has r {str(rank)[:30]}, lora_alpha {str(alpha)[:30]} and task_type {quoted(task_type)}: "
            f"r must be 1 to {MAX_RANK}, lora_alpha at most {MAX_ALPHA} and not 0, and task_type one of PEFT's types"
        )
    rank_stabilized = content.get("use_rslora") or False
    if type(rank_stabilized) is not bool:
        raise ConfigError(f"{where!r} has use_rslora {str(rank_stabilized)[:30]}: write true or false")
    return AdapterConfig(
        rank,
        float(alpha),
        task_type,
        rank_stabilized,
        _pattern(content, "rank_pattern", where=where),
        _pattern(content, "alpha_pattern", where=where),
        _target_parameters(content, where=where),
        tuple(_trained_base(content)),
    )


def unsupported_fields(content: Mapping[str, Any]) -> list[str]:
    """Return each field, with its value, that changes the merged weights in a way that we don't apply."""
    return [_shown(name, content[name]) for name in content if _is_unsupported(name, content[name])]


def fields_ignored_by_vllm(content: Mapping[str, Any]) -> list[str]:
    """Return each field, with its value, that changes the adapter's effect but that vLLM refuses or ignores."""
    others = [name for name in ("rank_pattern", "alpha_pattern", "target_parameters") if content.get(name)]
    return [*unsupported_fields(content), *_trained_base(content), *(_shown(name, content[name]) for name in others)]


def _is_unsupported(name: str, value: Any) -> bool:
    if name in (*_APPLIED, *_BY_LAYER, *_IRRELEVANT, "init_lora_weights"):
        return name == "peft_type" and value != "LORA"
    # Fields of variants (use_dora, lora_bias, ...) and of PEFT versions that are not known yet.
    return value not in (None, False, [], {}, 0, "")


def _trained_base(content: Mapping[str, Any]) -> Iterator[str]:
    if content.get("modules_to_save"):
        yield _shown("modules_to_save", content["modules_to_save"])
    if (content.get("bias") or "none") != "none":
        yield _shown("bias", content["bias"])
    initialization = content.get("init_lora_weights", True)
    if str(initialization).lower() not in _PLAIN_INITIALIZATIONS:
        yield _shown("init_lora_weights", initialization)


def _shown(name: str, value: Any) -> str:
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value)
    return f"{quoted(name)[1:-1]} {text if len(text) <= 60 else f'{text[:57]}...'}"


def _is_number(value: Any) -> bool:
    # NaN differs from itself.
    return isinstance(value, int | float) and type(value) is not bool and value == value


def _pattern(content: Mapping[str, Any], name: str, *, where: str) -> dict[str, Any]:
    pattern = content.get(name) or {}
    if not isinstance(pattern, dict) or len(pattern) > _MAX_PATTERNS:
        raise ConfigError(f"{where!r} has no valid {name}: it maps at most {_MAX_PATTERNS} names of modules to numbers")
    for key, value in pattern.items():
        if not _is_safe(key):
            raise ConfigError(
                f"{where!r} has the pattern {quoted(key)} in {name}: write the names of modules, with "
                f"at most {_MAX_PATTERN_CHARACTERS} characters, {_MAX_REPETITIONS} repetitions (.*) and one group"
            )
        is_rank = name == "rank_pattern"
        if not _is_number(value) or abs(value) > MAX_ALPHA or (is_rank and (type(value) is not int or value < 1)):
            raise ConfigError(
                f"{where!r} has {str(value)[:30]} for {quoted(key)} in {name}: write a number of at most {MAX_ALPHA}"
            )
    return pattern


def _target_parameters(content: Mapping[str, Any], *, where: str) -> tuple[str, ...]:
    names = content.get("target_parameters") or []
    if not isinstance(names, list) or len(names) > _MAX_PATTERNS or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where!r} has no valid target_parameters: it lists at most {_MAX_PATTERNS} names")
    return tuple(names)


def _first_match(pattern: Mapping[str, Any], name: str, *, default: Any) -> Any:
    """Return the value of the first expression that matches the end of the name, as PEFT does."""
    if pattern and len(name) > _MAX_NAME_CHARACTERS:
        raise ConfigError(f"tensor {quoted(name)} has a longer name than any model's: merge its adapter with peft")
    return next((value for key, value in pattern.items() if _compiled(key).match(name)), default)


def _is_safe(key: str) -> bool:
    if len(key) > _MAX_PATTERN_CHARACTERS or not _PATTERN.fullmatch(key):
        return False
    if key.count("*") + key.count("+") > _MAX_REPETITIONS or key.count("(") > _MAX_GROUPS:
        return False
    try:
        _compiled(key)
    except re.error:
        return False
    return True


@lru_cache(maxsize=_MAX_PATTERNS)
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")
