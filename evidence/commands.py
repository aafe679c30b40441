"""The command lines of a training's stages."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evidence.records import RL_RUN, SFT_RUN, read_record
from evidence.training_plan import RL, SFT, Training

# The model that `train_sft.py` exports in the folder of its run.
SFT_MODEL = "huggingface"
_LEARNING_RATE = "actor_rollout_ref.actor.optim.lr"
_BATCH_SIZE = "data.train_batch_size"
# Far from the seeds of the programme.
_SFT_SEEDS = 500


def stages(
    training: Training,
    run_dir: Path,
    *,
    start: str,
    rates: Mapping[str, float],
    sft_batch: int | None,
    machine: Mapping[str, Any] | None = None,
) -> list[list[str]]:
    """Return the commands of a training, which run one after the other in the project's root.

    Args:
        training: The training.
        run_dir: The folder of its stages.
        start: The folder of the model from which it starts.
        rates: The learning rates of its stages, for `rl` and `sft`.
        sft_batch: The samples per step on right answers, if it has such steps.
        machine: Settings for this machine, for example to share a GPU.

    Returns:
        One or two commands: train on right answers, and train with rewards or only evaluate.
    """
    shared = {"seed": training.seed, "trainer.stop_within_s": 5, **(machine or {})}
    commands = []
    if training.sft_steps:
        sft_settings = {
            **training.settings,
            **training.sft_settings,
            _LEARNING_RATE: rates[SFT],
            "trainer.total_training_steps": training.sft_steps,
            _BATCH_SIZE: sft_batch,
            # One epoch, so that no problem repeats.
            "data.train_size": training.sft_steps * (sft_batch or 0),
            **shared,
        }
        if training.rl_steps:
            # The rewards of the second stage must not come from problems whose answers the first one has taught.
            sft_settings["seed"] = training.seed + _SFT_SEEDS
        commands.append(_program("train_sft.py", training.config, start, run_dir / SFT_RUN, sft_settings))
        start = str(run_dir / SFT_RUN / SFT_MODEL)
    if training.rl_steps:
        steps = training.rl_steps
        rl = {_LEARNING_RATE: rates[RL], "trainer.total_training_steps": steps, "trainer.test_freq": steps}
    else:
        rl = {"trainer.val_only": True}
    rl_settings = {**training.settings, **rl, **shared}
    commands.append(_program("train_grpo.py", training.config, start, run_dir / RL_RUN, rl_settings))
    return commands


def _program(program: str, config: str, model: str, run_dir: Path, settings: Mapping[str, Any]) -> list[str]:
    return [
        *(sys.executable, program, "--config-path", "evidence/configs"),
        *("--config-name", config, f"model={_value(model)}", f"run_dir={_value(str(run_dir))}"),
        *overrides(settings),
    ]


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as words of Hydra's command line.

    Args:
        settings: Plain values by key. A key may begin with `+` or `++`. A mapping adds its keys to the present ones.

    Returns:
        One word for each setting.
    """
    return [
        f"{'++' if isinstance(value, Mapping) and not key.startswith('+') else ''}{key}={_value(value)}"
        for key, value in settings.items()
    ]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_value, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        if re.fullmatch(r"[A-Za-z/][\w./-]*", value, re.ASCII) and value not in ("null", "true", "false"):
            return value
        # Hydra reads \' in a quoted text as a quote.
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{quoted}'"
    return str(value)


def sft_batch_size(training: Training, *, answer_tokens: float, results: Path) -> int:
    """Return the number of right answers per step.

    Args:
        training: The training on right answers.
        answer_tokens: The mean length of a right answer in tokens.
        results: The folder of the records.

    Returns:
        The number of samples whose prompts and answers are nearest to the mean number of prompt and completion tokens
        per step in the record of `training.equal_tokens`. Without such a training, as many as a step with rewards has
        completions.

    Raises:
        ConfigError: That record is missing or cannot be read.
    """
    if training.equal_tokens is None:
        return training.settings[_BATCH_SIZE] * training.settings["actor_rollout_ref.rollout.n"]
    record = read_record(training.equal_tokens.record_path(results))
    tokens, num_steps = record["tokens"], record["config"]["rl_steps"]
    prompt_tokens = tokens["trained_prompts"] / tokens["samples"]
    return max(1, round(tokens["trained"] / num_steps / (prompt_tokens + answer_tokens)))
