"""The README.md of an exported model: what it is, and how the run made it, as far as the checkpoint's folder tells."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from rgtrain.checkpoints.checkpoint import Checkpoint
from rgtrain.checkpoints.layout import ModelLayout
from rgtrain.paths import project_path

# The run's folder above a checkpoint's: run/checkpoints/global_step_N/actor.
_MOST_LEVELS = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run's folder and its resolved configuration; both empty where a checkpoint lies outside its run."""

    folder: Path | None
    config: Mapping[str, Any]

    def get(self, path: str) -> Any:
        """The value of a dotted key, None where there is none."""
        value: Any = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def run_of(checkpoint: Checkpoint) -> Run:
    """The run that wrote the checkpoint, found by its config.yaml in a folder above."""
    for folder in checkpoint.folder.resolve().parents[:_MOST_LEVELS]:
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text())
        except FileNotFoundError:
            continue
        except (yaml.YAMLError, OSError, ValueError) as error:
            logger.warning("the model card tells less of the run, as its config.yaml can't be read: %s", error)
            continue
        if isinstance(config, Mapping) and "trainer" in config:
            return Run(folder, config)
    return Run(None, {})


def base_model(run: Run, layout: ModelLayout) -> str | None:
    """The model that training started from, as the run's config or the checkpoint's names it."""
    trained = "critic.model.path" if layout.is_critic else "actor_rollout_ref.model.path"
    saved = json.loads((layout.config_dir / "config.json").read_text())
    return run.get(trained) or saved.get("_name_or_path") or None


def write_model_card(folder: Path, checkpoint: Checkpoint, layout: ModelLayout, *, weights: str) -> None:
    """Write README.md to `folder`; `weights` says in words what was exported."""
    run = run_of(checkpoint)
    title = run.folder.name if run.folder else layout.architecture
    if checkpoint.step is not None:
        title += f", step {checkpoint.step}"
    facts = {"model": f"{layout.architecture}, {layout.kind}", "weights": weights}
    facts |= dict(_facts(checkpoint, layout, run))
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items() if value not in (None, "", {}))
    origin = f"Exported by Reasoning Gym Model Training from the sharded checkpoint {_cell(checkpoint.label)}"
    if run.folder:
        gym = "[Reasoning Gym](https://github.com/open-thought/reasoning-gym)"
        origin += f" of the run {_cell(run.folder.name)}, trained by reinforcement learning on {gym} problems"
    (folder / "README.md").write_text(
        f"---\n{_front_matter(layout, run)}---\n\n# {_cell(title)}\n\n{origin}.\n\n| | |\n|---|---|\n{rows}\n"
    )


def _front_matter(layout: ModelLayout, run: Run) -> str:
    tags = ["verl", "reinforcement-learning", "reasoning-gym"] if run.folder else ["verl"]
    matter = {"library_name": "transformers", "tags": tags}
    base = base_model(run, layout)
    # The hub takes names of its own there, no folders.
    if base and base.count("/") == 1 and not base.startswith(("/", ".", "~")) and not project_path(base).exists():
        matter["base_model"] = base
    return yaml.safe_dump(matter, sort_keys=False)


def _facts(checkpoint: Checkpoint, layout: ModelLayout, run: Run) -> Iterator[tuple[str, Any]]:
    num_steps = run.get("trainer.total_training_steps")
    yield "base model", base_model(run, layout)
    yield "step", f"{checkpoint.step} of {num_steps}" if num_steps else checkpoint.step
    yield "datasets", ", ".join(run.get("data.mixture") or {})
    yield "reward", ", ".join(run.get("reward.parts") or {})
    keys = {
        "algorithm": "algorithm.adv_estimator",
        "prompts a step": "data.train_batch_size",
        "completions a prompt": "actor_rollout_ref.rollout.n",
        "learning rate": "actor_rollout_ref.actor.optim.lr",
        "longest response": "data.max_response_length",
        "seed": "seed",
    }
    yield from ((name, run.get(key)) for name, key in keys.items())
    yield "validation", ", ".join(f"{name} {value:.3f}" for name, value in _validation(checkpoint, run))
    yield "versions", ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))


def _validation(checkpoint: Checkpoint, run: Run) -> Iterator[tuple[str, float]]:
    """The run's own validation at the checkpoint's step: accuracy by dataset."""
    if run.folder is None or not (path := run.folder / "metrics.jsonl").is_file():
        return
    for line in path.read_text().splitlines():
        try:
            metrics = json.loads(line)
        except ValueError:
            continue
        if metrics.get("step") != checkpoint.step:
            continue
        for key, value in metrics.items():
            if key.startswith("val-core/") and "/acc/" in key and isinstance(value, int | float):
                yield key.split("/")[1], value


def _cell(value: Any) -> str:
    """`value` as text that stays inside its cell and renders as itself."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    return text.replace("<", "&lt;").replace("[", "\\[").replace("`", "'")
