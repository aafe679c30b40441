"""The README.md of an exported model: its weights, and the run that trained it, as far as the run's folder shows.

Every text in it comes from files that somebody else may have written. A value of an unexpected kind is left out, and
Markdown and HTML in a value are escaped, so no such file changes the card's form or ends an export.
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

from rgtrain.checkpoints.metrics_file import METRICS, lines_with_records
from rgtrain.checkpoints.shards.checkpoint import Checkpoint
from rgtrain.checkpoints.shards.layout import ModelLayout
from rgtrain.checkpoints.untrusted_files import first_line, printable, read_bounded
from rgtrain.paths import project_path

# The run's folder above a checkpoint's: run/checkpoints/global_step_N/actor.
_MOST_LEVELS = 5
# A run's config.yaml has 30 KB.
_MOST_CONFIG_BYTES = 256 * 1024
_MOST_VALUE_CHARACTERS = 200
_MOST_NAMES = 120
_MOST_CELL_CHARACTERS = _MOST_NAMES * (_MOST_VALUE_CHARACTERS + 10)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)
_ACCURACY = re.compile(r"val-core/([^/]{1,100})/acc/(mean@\d{1,6})", re.ASCII)
# Characters that begin a form of Markdown, HTML or mathematics at any place in a line.
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
class Run:
    """A run's folder and its resolved configuration; both empty if a checkpoint lies outside its run."""

    folder: Path | None
    config: Mapping[str, Any]

    def get(self, path: str) -> Any:
        """The value of a dotted key, None if there is none."""
        value: Any = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def names(self, path: str) -> str:
        """The keys of the mapping at a dotted key, as a list in words."""
        value = self.get(path)
        keys = [key for key in value if isinstance(key, str)] if isinstance(value, Mapping) else []
        more = f" and {len(keys) - _MOST_NAMES} more" if len(keys) > _MOST_NAMES else ""
        return ", ".join(_value(key) for key in keys[:_MOST_NAMES]) + more


def run_of(checkpoint: Checkpoint) -> Run:
    """The run that wrote the checkpoint, found by its config.yaml in a folder above. Never raises for what it reads."""
    for folder in checkpoint.folders_above(most=_MOST_LEVELS)[1:]:
        try:
            config = yaml.load(read_bounded(folder / "config.yaml", most_bytes=_MOST_CONFIG_BYTES), _PlainLoader)
        except FileNotFoundError:
            continue
        except _YAML_ERRORS as error:
            logger.warning(
                "the model card says less about the run: its config.yaml can't be read (%s)", first_line(error)
            )
            continue
        if isinstance(config, Mapping) and "trainer" in config:
            return Run(folder, config)
    return Run(None, {})


def base_model(run: Run, layout: ModelLayout, saved: Mapping[str, Any]) -> str | None:
    """The model that training started from, as the run's config or the checkpoint's own (`saved`) names it."""
    trained = run.get("critic.model.path" if layout.is_critic else "actor_rollout_ref.model.path")
    names = (name for name in (trained, saved.get("_name_or_path")) if isinstance(name, str) and name)
    return next((name for name in names if name.isprintable() and len(name) <= _MOST_VALUE_CHARACTERS), None)


def model_card(checkpoint: Checkpoint, layout: ModelLayout, run: Run, *, base: str | None, weights: str) -> str:
    """The text of README.md; `base` names the model that was trained, and `weights` says in words what was exported."""
    title = run.folder.name if run.folder else layout.architecture
    if checkpoint.step is not None:
        title += f", step {checkpoint.step}"
    facts = {"model": f"{layout.architecture}, {layout.kind}", "weights": weights, "base model": base}
    facts |= dict(_facts(checkpoint, run))
    rows = "\n".join(f"| {name} | {text} |" for name, value in facts.items() if (text := _cell(value)))
    origin = f"Exported by Reasoning Gym Model Training from the sharded checkpoint {_cell(checkpoint.label)}"
    if run.folder:
        gym = "[Reasoning Gym](https://github.com/open-thought/reasoning-gym)"
        origin += f" of the run {_cell(run.folder.name)}, trained by reinforcement learning on {gym} problems"
    return f"---\n{_front_matter(run, base)}---\n\n# {_cell(title)}\n\n{origin}.\n\n| | |\n|---|---|\n{rows}\n"


def _front_matter(run: Run, base: str | None) -> str:
    tags = ["verl", "reinforcement-learning", "reasoning-gym"] if run.folder else ["verl"]
    matter = {"library_name": "transformers", "tags": tags}
    # The hub takes names of its own there, no folders.
    if base and _HUB_NAME.fullmatch(base) and not project_path(base).exists():
        matter["base_model"] = base
    return yaml.safe_dump(matter, sort_keys=False)


def _facts(checkpoint: Checkpoint, run: Run) -> Iterator[tuple[str, str | None]]:
    num_steps = run.get("trainer.total_training_steps")
    of_all = f" of {num_steps}" if type(num_steps) is int and 0 < num_steps < 2**53 else ""
    yield "step", None if checkpoint.step is None else f"{checkpoint.step}{of_all}"
    yield "datasets", run.names("data.mixture")
    yield "reward", run.names("reward.parts")
    keys = {
        "algorithm": "algorithm.adv_estimator",
        "prompts per step": "data.train_batch_size",
        "completions per prompt": "actor_rollout_ref.rollout.n",
        "learning rate": "actor_rollout_ref.actor.optim.lr",
        "longest response": "data.max_response_length",
        "seed": "seed",
    }
    yield from ((name, _value(run.get(key))) for name, key in keys.items())
    yield "validation", ", ".join(f"{name} {value:.3f}" for name, value in _validation(checkpoint, run))
    yield "versions", ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))


def _validation(checkpoint: Checkpoint, run: Run) -> Iterator[tuple[str, float]]:
    """The run's own validation at the checkpoint's step: mean accuracy by dataset."""
    if run.folder is None or checkpoint.step is None:
        return
    found: dict[str, float] = {}
    num_damaged = 0
    try:
        # One record at a time: those of a long run take gigabytes.
        for _, record in lines_with_records(run.folder / METRICS):
            if record is None:
                num_damaged += 1
            elif record["step"] == checkpoint.step:
                found |= _accuracies(record)
    except OSError as error:
        logger.warning("the model card has no validation: %s can't be read (%s)", METRICS, first_line(error))
        return
    if num_damaged:
        logger.warning("the model card leaves out %d damaged lines of %s", num_damaged, METRICS)
    yield from list(found.items())[:_MOST_NAMES]


def _accuracies(record: Mapping[str, Any]) -> dict[str, float]:
    matches = ((_ACCURACY.fullmatch(key), value) for key, value in record.items())
    return {
        _value(match[1]): float(value)
        for match, value in matches
        if match and type(value) in (int, float) and abs(value) < 1e6 and math.isfinite(value)
    }


def _value(value: Any) -> str:
    """`value` in words if it is a plain text or number, else nothing."""
    is_number = (type(value) is int and abs(value) < 2**63) or (type(value) is float and math.isfinite(value))
    if not is_number and not isinstance(value, str):
        return ""
    return printable(str(value), most=_MOST_VALUE_CHARACTERS)


def _cell(text: str | None) -> str:
    """`text` on one line that stays inside its cell and renders as itself."""
    text = printable(" ".join((text or "").split()), most=_MOST_CELL_CHARACTERS)
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", text)


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML without aliases, of which a few lines can stand for billions of values. A run's config has none."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases, which a run's config never has")
        return super().compose_node(parent, index)
