"""Write the README.md of an exported model, which describes its weights and the run that trained it.

Its values come from files by unknown authors. Values of an unexpected type are omitted, and Markdown and HTML are
escaped, so these files can neither change the card's structure nor fail an export.
"""

import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from rgtrain.checkpoints.export.card_metadata import card_metadata
from rgtrain.checkpoints.metrics_file import METRICS, lines_with_records
from rgtrain.checkpoints.shards.checkpoint import Checkpoint
from rgtrain.checkpoints.shards.layout import ModelLayout
from rgtrain.checkpoints.supervised_run import is_supervised
from rgtrain.checkpoints.untrusted_files import first_line, printable, read_bounded
from rgtrain.yaml_files import load_without_aliases

# Enough to reach the run folder from run/checkpoints/global_step_N/actor.
_MAX_LEVELS = 5
# A run's config.yaml has 30 KB.
_MAX_CONFIG_BYTES = 256 * 1024
_MAX_VALUE_CHARACTERS = 200
_MAX_NAMES = 120
_MAX_CELL_CHARACTERS = _MAX_NAMES * (_MAX_VALUE_CHARACTERS + 10)
_ACCURACY = re.compile(r"val-core/([^/]{1,100}(?:/[^/]{1,100})?)/acc/(mean@\d{1,6})", re.ASCII)
# The hub's names of tasks by the class that loads the model.
_PIPELINES = {
    "AutoModelForImageTextToText": "image-text-to-text",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForSequenceClassification": "text-classification",
}
# Characters that start Markdown, HTML or math markup anywhere in a line.
_MARKUP = re.compile(
    r"[\\`*\[\]<>|~&!#$@]|(?<!\w)_|_(?!\w)|(?<=http):|(?<=https):|(?<=www)\.", re.ASCII | re.IGNORECASE
)

# A ConfigError is a ValueError. PyYAML raises the others for deep nesting, and for values such as `2020-99-99`,
# `!!bool x`, `!!int ""` and `!!timestamp x`.
_YAML_ERRORS = (
    yaml.YAMLError,
    ValueError,
    OSError,
    RecursionError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRun:
    """A run's folder and resolved configuration, both empty if the checkpoint is not inside a run folder."""

    folder: Path | None
    config: Mapping[str, Any]

    def get(self, path: str) -> Any:
        """Return the value at a dotted key, or None if there is none."""
        value: Any = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def is_supervised(self) -> bool:
        """Whether right answers were trained on, without rewards."""
        return self.folder is not None and is_supervised(self.folder)

    def keys(self, path: str) -> list[str]:
        """Return the keys of the mapping at a dotted key that are text."""
        value = self.get(path)
        return [key for key in value if isinstance(key, str)] if isinstance(value, Mapping) else []

    def key_list(self, path: str) -> str:
        """Return the keys of the mapping at a dotted key as comma-separated text."""
        keys = self.keys(path)
        more = f" and {len(keys) - _MAX_NAMES} more" if len(keys) > _MAX_NAMES else ""
        return ", ".join(_value(key) for key in keys[:_MAX_NAMES]) + more


def find_run(checkpoint: Checkpoint) -> TrainingRun:
    """Find the run of a checkpoint by the config.yaml in a parent folder. Unreadable files only cause a warning."""
    for folder in checkpoint.folders_above(max_levels=_MAX_LEVELS)[1:]:
        try:
            config = load_without_aliases(read_bounded(folder / "config.yaml", max_bytes=_MAX_CONFIG_BYTES))
        except FileNotFoundError:
            continue
        except _YAML_ERRORS as error:
            logger.warning(
                "the model card omits details of the run, because its config.yaml can't be read (%s)", first_line(error)
            )
            continue
        if isinstance(config, Mapping) and "trainer" in config:
            return TrainingRun(folder, config)
    return TrainingRun(None, {})


def base_model(run: TrainingRun, layout: ModelLayout, saved: Mapping[str, Any]) -> str | None:
    """Return the name of the initial model, from the run's config or else the checkpoint's (`saved`)."""
    trained = run.get("critic.model.path" if layout.is_critic else "actor_rollout_ref.model.path")
    names = (name for name in (trained, saved.get("_name_or_path")) if isinstance(name, str) and name)
    return next((name for name in names if name.isprintable() and len(name) <= _MAX_VALUE_CHARACTERS), None)


def model_card(
    checkpoint: Checkpoint,
    layout: ModelLayout,
    run: TrainingRun,
    *,
    base: str | None,
    weights: str,
    is_adapter: bool = False,
) -> str:
    """Return the text of README.md.

    Args:
        checkpoint: The exported checkpoint.
        layout: The tensors of its model.
        run: The run that trained it.
        base: The hub name or the folder of the initial model, if it is known.
        weights: A description of the weights.
        is_adapter: Whether the weights are a LoRA adapter.

    Returns:
        The text, which begins with the metadata.
    """
    title = run.folder.name if run.folder else layout.architecture
    if checkpoint.step is not None:
        title += f", step {checkpoint.step}"
    validation = dict(_validation(checkpoint, run))
    matter = card_metadata(
        base=base,
        pipeline=_PIPELINES.get(layout.auto_class.__name__, "text-generation"),
        is_adapter=is_adapter,
        tags=_tags(run),
        datasets=run.keys("data.mixture")[:_MAX_NAMES],
        title=title,
        accuracies={
            name: (value, f"{measure}, validation of the run at step {checkpoint.step}")
            for name, (value, measure) in validation.items()
        },
    )
    facts: dict[str, str | None] = {"model": f"{layout.architecture}, {layout.kind}", "weights": weights}
    # The path of a folder on this machine means nothing to readers of the card.
    facts |= {"base model": matter.get("base_model") or (Path(base).name if base else None)}
    facts |= dict(_facts(checkpoint, run, validation))
    rows = "\n".join(f"| {name} | {text} |" for name, value in facts.items() if (text := _cell(value)))
    origin = f"Exported by Reasoning Gym Model Training from the sharded checkpoint {_cell(checkpoint.label)}"
    if run.folder:
        gym = "[Reasoning Gym](https://github.com/open-thought/reasoning-gym)"
        way = "supervised fine-tuning on right answers to" if run.is_supervised else "reinforcement learning on"
        origin += f" of the run {_cell(run.folder.name)}, trained by {way} {gym} problems"
    front = yaml.safe_dump(matter, sort_keys=False)
    return f"---\n{front}---\n\n# {_cell(title)}\n\n{origin}.\n\n| | |\n|---|---|\n{rows}\n"


def _tags(run: TrainingRun) -> list[str]:
    if run.folder is None:
        return ["verl"]
    if run.is_supervised:
        return ["verl", "supervised-fine-tuning", "reasoning-gym"]
    return ["verl", "reinforcement-learning", "reasoning-gym", _value(run.get("algorithm.adv_estimator"))]


def _facts(
    checkpoint: Checkpoint, run: TrainingRun, validation: Mapping[str, tuple[float, str]]
) -> Iterator[tuple[str, str | None]]:
    num_steps = run.get("trainer.total_training_steps")
    of_all = f" of {num_steps}" if type(num_steps) is int and 0 < num_steps < 2**53 else ""
    yield "step", None if checkpoint.step is None else f"{checkpoint.step}{of_all}"
    yield "datasets", run.key_list("data.mixture")
    of_rollouts = {}
    if not run.is_supervised:
        yield "reward", run.key_list("reward.parts")
        of_rollouts = {
            "algorithm": "algorithm.adv_estimator",
            "completions per prompt": "actor_rollout_ref.rollout.n",
        }
    keys = {
        **of_rollouts,
        "prompts per step": "data.train_batch_size",
        "learning rate": "actor_rollout_ref.actor.optim.lr",
        "longest response": "data.max_response_length",
        "seed": "seed",
    }
    yield from ((name, _value(run.get(key))) for name, key in keys.items())
    yield "validation", ", ".join(f"{name} {value:.3f}" for name, (value, _) in validation.items())
    yield "versions", ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))


def _validation(checkpoint: Checkpoint, run: TrainingRun) -> Iterator[tuple[str, tuple[float, str]]]:
    """Yield each dataset's name, with its accuracy and measure, in the run's validation at the checkpoint's step."""
    if run.folder is None or checkpoint.step is None:
        return
    found: dict[str, tuple[float, str]] = {}
    num_damaged = 0
    try:
        # Read one record at a time, because all records of a long run take gigabytes.
        for _, record in lines_with_records(run.folder / METRICS):
            if record is None:
                num_damaged += 1
            elif record["step"] == checkpoint.step:
                found |= _accuracies(record)
    except OSError as error:
        logger.warning("the model card omits the validation, because %s can't be read (%s)", METRICS, first_line(error))
        return
    if num_damaged:
        logger.warning("the model card ignores %d damaged lines of %s", num_damaged, METRICS)
    yield from list(found.items())[:_MAX_NAMES]


def _accuracies(record: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    matches = ((_ACCURACY.fullmatch(key), value) for key, value in record.items())
    return {
        _value(match[1]): (float(value), match[2])
        for match, value in matches
        if match and type(value) in (int, float) and abs(value) < 1e6 and math.isfinite(value)
    }


def _value(value: Any) -> str:
    """Return `value` as text if it is a string or a finite number, else an empty string."""
    is_number = (type(value) is int and abs(value) < 2**63) or (type(value) is float and math.isfinite(value))
    if not is_number and not isinstance(value, str):
        return ""
    return printable(str(value), max_characters=_MAX_VALUE_CHARACTERS)


def _cell(text: str | None) -> str:
    """Return `text` on one line with markup escaped, for a cell of a table."""
    text = printable(" ".join((text or "").split()), max_characters=_MAX_CELL_CHARACTERS)
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", text)
