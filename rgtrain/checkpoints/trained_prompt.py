"""Read with which prompts a model was trained: from its run's config.yaml, or from the record that an export keeps.

An exported model has the record `trained_prompt.json`, because it may be copied away from its run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from rgtrain.checkpoints.trained_problems import TRAINED_PROBLEMS
from rgtrain.checkpoints.untrusted_files import read_bounded, read_json_object
from rgtrain.errors import ConfigError
from rgtrain.yaml_files import load_without_aliases

TRAINED_PROMPT = "trained_prompt.json"
_RUN_CONFIG = "config.yaml"
# From the rank files in RUN/checkpoints/global_step_N/actor up to RUN.
_MAX_LEVELS = 4
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class TrainedPrompt:
    """The settings of a run's prompts.

    Attributes:
        system_prompt: A name from Reasoning Gym's SYSTEM_PROMPTS, a literal text, None, or the name of a function as
            `pkg://package.module.name`.
        role: The role of the system prompt.
        num_examples: Worked examples that precede each question.
        examples_seed: The seed of the examples.
        chat_template_kwargs: Arguments of the chat template.
        chat_template: A template that replaced the model's, or None.
        examples: The user's own worked examples, as mappings with `question` and `answer`, or None.
    """

    system_prompt: str | None
    role: str
    num_examples: int
    examples_seed: int
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    examples: Sequence[Mapping[str, Any]] | None = None

    def write(self, folder: Path) -> None:
        """Write the record into the folder of an exported model."""
        (folder / TRAINED_PROMPT).write_text(json.dumps(asdict(self), indent=2, default=str) + "\n", encoding="utf-8")


def prompt_of_run(config: Mapping[str, Any]) -> TrainedPrompt | None:
    """Return the settings of a run's prompts.

    Args:
        config: The plain configuration of a run.

    Returns:
        The settings; None if the configuration has none, because another program wrote it.
    """
    prompt, model = _node(config, "data", "prompt"), _node(config, "actor_rollout_ref", "model")
    if not {one.name for one in fields(TrainedPrompt)} & prompt.keys():
        return None
    arguments = dict(_node(config, "data", "apply_chat_template_kwargs"))
    template = arguments.pop("chat_template", model.get("custom_chat_template"))
    # Examples that training drops are not part of the prompt that it aims at, and validation has none.
    has_examples = prompt.get("examples_until_step") is None
    return TrainedPrompt(
        prompt.get("system_prompt"),
        prompt.get("role") or "system",
        prompt.get("num_examples", 0) if has_examples else 0,
        prompt.get("examples_seed", 0),
        arguments,
        template,
        prompt.get("examples") if has_examples else None,
    )


def read_trained_prompt(folder: Path) -> TrainedPrompt | None:
    """Read with which prompts a model was trained.

    Args:
        folder: A run folder, the folder of a checkpoint, or that of an exported model.

    Returns:
        The settings; None if the folder does not belong to a run.

    Raises:
        ConfigError: The record or the run's configuration is damaged.
    """
    if not folder.is_dir():
        return None
    if (folder / TRAINED_PROMPT).is_file():
        record = read_json_object(folder / TRAINED_PROMPT, max_bytes=_MAX_BYTES)
        try:
            return TrainedPrompt(**record)
        except TypeError as error:
            raise ConfigError(f"{str(folder / TRAINED_PROMPT)!r} is damaged ({error}); restore or remove it") from error
    if (folder / "config.json").is_file() and not (folder / TRAINED_PROBLEMS).is_file():
        # A model that was trained elsewhere.
        return None
    for above in (folder, *folder.parents)[:_MAX_LEVELS]:
        path = above / _RUN_CONFIG
        try:
            config = load_without_aliases(read_bounded(path, max_bytes=_MAX_BYTES))
        except FileNotFoundError:
            continue
        # PyYAML's constructors raise errors of many types for unexpected values.
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{str(path)!r} is damaged ({reason}), so the prompts of training are unknown; restore or remove it"
            ) from error
        if isinstance(config, Mapping) and (found := prompt_of_run(config)) is not None:
            return found
    return None


def _node(config: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    node: Any = config
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}
