"""The report of training runs: one self-contained page with curves, rollouts and settings."""

import base64
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from omegaconf import OmegaConf

from rgtrain.checkpoints.rollout_files import (
    ROLLOUTS,
    TRAINING,
    KeptCompletion,
    KeptGroup,
    RolloutBlock,
    read_rollouts,
)
from rgtrain.checkpoints.supervised_run import is_supervised
from rgtrain.checkpoints.validation_accuracy import HeldOutAccuracy, held_out_accuracies
from rgtrain.config.composition import declared_tree
from rgtrain.config.plain_tree import leaves
from rgtrain.errors import ConfigError
from rgtrain.files import write_atomically
from rgtrain.reporting.curves import RunGroup, charts_by_section
from rgtrain.reporting.rendering import packed, render
from rgtrain.reporting.run_ending import follow_up_commands
from rgtrain.reporting.run_reader import RunRecord, is_number, read_run
from rgtrain.run_health import HealthWarning, health_warnings
from rgtrain.tables import duration_text

# Keys whose values differ between any two runs.
_OWN_KEYS = re.compile(r"run_dir|trainer\.(?:experiment_name|default_local_dir)|(?:.*\.)?\w*seed|hydra\..*")
# The rollouts of a page, compressed. Together with the rest it stays below 25 MB in base64.
_MAX_ROLLOUT_BYTES = 14_000_000
# Longer texts are cut. The complete ones are in the run's folder.
_MAX_CHARS = 20_000


def write_run_report(folders: Sequence[Path], *, page: Path) -> None:
    """Write the report of runs.

    Args:
        folders: The runs' folders. Runs that differ only in their seeds are drawn as one band.
        page: The HTML file, which is created or replaced.

    Raises:
        ConfigError: A folder is not that of a run, or the page cannot be written.
    """
    content = run_report([read_run(folder) for folder in folders])
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(page, content)
    except OSError as error:
        raise ConfigError(f"cannot write {page} ({error.strerror}); choose another file with --output") from error


def run_report(runs: Sequence[RunRecord]) -> str:
    """Return the report of runs as HTML."""
    groups = _grouped_by_settings(runs)
    sections = charts_by_section(groups)
    rollouts, num_left_out = _rollouts(runs)
    data = {
        "runs": [run.name for run in runs],
        "charts": [asdict(chart) for charts in sections.values() for chart in charts],
    }
    return render(
        "run.html.j2",
        script="run.js",
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        overviews=[run_overview(run) for run in runs],
        warnings=[(run.name, warning) for run in runs for warning in _warnings(run)],
        seed_tables=[_seed_table(group) for group in groups if len(group.runs) > 1],
        sections={title: [chart.title for chart in charts] for title, charts in sections.items()},
        settings=_settings(runs),
        commands=[_commands(run) for run in runs],
        num_left_out=num_left_out,
        max_chars=_MAX_CHARS,
        data=packed(json.dumps(data).encode()),
        rollouts=base64.b64encode(rollouts).decode(),
    )


def _grouped_by_settings(runs: Sequence[RunRecord]) -> list[RunGroup]:
    """Group runs that differ only in their seeds. A run without such others is a group by itself."""
    groups: dict[str, RunGroup] = {}
    for run in runs:
        settings = {key: value for key, value in leaves(run.config) if not _OWN_KEYS.fullmatch(key)}
        # Paths contain the run's folder.
        key = json.dumps(settings, sort_keys=True, default=str).replace(str(run.setting("run_dir")), "")
        groups.setdefault(key, RunGroup(run.name)).runs.append(run)
    for group in groups.values():
        if len(group.runs) > 1:
            group.name = f"{group.name} and {len(group.runs) - 1} other seed{'s' if len(group.runs) > 2 else ''}"
    return list(groups.values())


@dataclass(frozen=True)
class Overview:
    """The figures at the top of the page.

    Attributes:
        name: The run's name.
        figures: Figures by their meaning. A figure that the run does not have is empty.
        held_out: Held-out accuracy by dataset.
    """

    name: str
    figures: Mapping[str, str]
    held_out: Sequence[HeldOutAccuracy]


def run_overview(run: RunRecord) -> Overview:
    """Return the figures at the top of a run's page."""
    steps, supervised = run.steps, is_supervised(run.folder)
    num_steps = run.setting("trainer.total_training_steps")
    done = int(steps[-1]["step"]) if steps else 0
    seconds = median(record["timing_s/step"] for record in steps[-50:]) if steps else None
    is_running = seconds is not None and is_number(num_steps) and num_steps > done
    figures = {
        "training steps": f"{done} of {num_steps}" if is_number(num_steps) else str(done),
        "per step": "" if seconds is None else duration_text(seconds),
        "left": duration_text(seconds * (num_steps - done)) if is_running else "",
        "mean reward of the last 10 steps": _number_text(_last_reward(run)),
        "model": Path(str(run.setting("actor_rollout_ref.model.path"))).name,
        "training": "on right answers" if supervised else "",
        "advantage estimator": "" if supervised else str(run.setting("algorithm.adv_estimator")),
        "learning rate": _number_text(run.setting("actor_rollout_ref.actor.optim.lr")),
    }
    return Overview(run.name, figures, _held_out(run))


def _last_reward(run: RunRecord) -> float | None:
    rewards = [record.get("critic/rewards/mean") for record in run.steps[-10:]]
    numbers = [reward for reward in rewards if is_number(reward)]
    return fmean(numbers) if numbers else None


def _number_text(value: Any) -> str:
    return f"{value:.3g}" if is_number(value) else ""


def _held_out(run: RunRecord) -> list[HeldOutAccuracy]:
    return held_out_accuracies(
        run.records,
        validation_size=run.setting("data.validation_size", 0),
        datasets=run.setting("data.validation_datasets", {}),
    )


def _warnings(run: RunRecord) -> list[HealthWarning]:
    """Return the warnings of a run, the severe ones first."""
    found = health_warnings(
        run.records,
        num_validation_problems=run.setting("data.validation_size", 0),
        mixture=run.setting("data.mixture", {}),
    )
    return sorted(found, key=lambda warning: not warning.is_severe)


def _seed_table(group: RunGroup) -> dict[str, Any]:
    """Return the table of runs that differ only in their seeds: last values with mean and standard deviation."""
    values = [
        {"reward": _last_reward(run)} | {one.dataset: one.values["now"][1] for one in _held_out(run)}
        for run in group.runs
    ]
    columns: dict[str, list[float]] = {}
    for name in values[0]:
        numbers = [number for row in values if is_number(number := row.get(name))]
        # A run may have stopped before its first validation.
        if len(numbers) == len(values):
            columns[name] = numbers
    return {
        "name": group.name,
        "columns": list(columns),
        "rows": [
            (run.name, [f"{numbers[position]:.3f}" for numbers in columns.values()])
            for position, run in enumerate(group.runs)
        ],
        "summary": [f"{fmean(numbers):.3f} ± {stdev(numbers):.3f}" for numbers in columns.values()],
    }


def _settings(runs: Sequence[RunRecord]) -> list[tuple[str, str, list[str], bool]]:
    """Return the settings that are not the defaults: key, default, value of each run, and whether they differ."""
    defaults = dict(leaves(OmegaConf.to_container(declared_tree())))
    flat = [dict(leaves(run.config)) for run in runs]
    rows = []
    for key in dict.fromkeys(key for one in flat for key in one):
        if key.startswith("hydra."):
            continue
        values = [one.get(key) for one in flat]
        differ = any(value != values[0] for value in values)
        # The value of a reference is known only while a run is composed.
        is_default = values[0] == defaults.get(key) or "${" in str(defaults.get(key))
        if differ or not is_default:
            rows.append((key, _shown(defaults.get(key)), [_shown(value) for value in values], differ))
    return sorted(rows, key=lambda row: not row[3])


def _shown(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _commands(run: RunRecord) -> list[tuple[str, str]]:
    repeat = [("repeat or continue", run.command)] if run.command else []
    return [*repeat, *follow_up_commands(run)]


def _rollouts(runs: Sequence[RunRecord]) -> tuple[bytes, int]:
    """Return the rollouts of a page as gzip members with a JSON line per group, and the number of groups left out.

    If they are too many, the blocks of some steps are left out evenly.
    """
    blocks = [(number, run, block) for number, run in enumerate(runs) for block in run.blocks]
    budget = _MAX_ROLLOUT_BYTES / max(1, sum(block.num_bytes for _, _, block in blocks))
    compressor = zlib.compressobj(6, wbits=zlib.MAX_WBITS | 16)
    parts: list[bytes] = []
    kept, left_out = 0.0, 0
    for number, run, block in blocks:
        kept += min(1.0, budget)
        if kept < 1:
            left_out += block.num_groups
            continue
        kept -= 1
        parts += [compressor.compress(line) for line in _lines(number, run, block)]
    return b"".join([*parts, compressor.flush()]), left_out


def _lines(number: int, run: RunRecord, block: RolloutBlock) -> Iterator[bytes]:
    for _, groups in read_rollouts(run.folder / ROLLOUTS, [block]):
        for position, group in enumerate(groups):
            fields = _group_fields(group) | {
                "id": f"{number}-{'t' if block.split == TRAINING else 'v'}{block.step}-{position}",
                "run": number,
                "step": block.step,
                "split": block.split,
            }
            yield json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _group_fields(group: KeptGroup) -> dict[str, Any]:
    return {
        "dataset": group.dataset,
        "level": group.level,
        "prompt": _clipped(group.prompt),
        "expected": _clipped(group.expected_answer),
        "why": list(group.chosen_as),
        "completions": [_completion_fields(completion) for completion in group.completions],
    }


def _completion_fields(completion: KeptCompletion) -> dict[str, Any]:
    parts = {name: value for name, value in completion.details.items() if name.startswith("reward_")}
    failures = [name[4:] for name, value in completion.details.items() if name.startswith("num_") and value]
    return {
        "text": _clipped(completion.text),
        "answer": None if completion.answer is None else _clipped(completion.answer),
        "reward": completion.reward,
        "accuracy": completion.details.get("acc"),
        "parts": {name.removeprefix("reward_"): value for name, value in parts.items()},
        "failures": failures,
        "advantage": completion.advantage,
        "tokens": completion.num_tokens,
        "cut": completion.finish_reason == "length",
        "logProb": completion.mean_log_prob,
        "gap": completion.rollout_gap,
    }


def _clipped(text: str) -> str:
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}…"
