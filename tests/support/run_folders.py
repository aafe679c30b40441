"""Write the folder of a run with made-up metrics and rollouts."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import yaml
from support.experiments import composed

from rgtrain.checkpoints.rollout_files import TRAINING, VALIDATION, KeptCompletion, KeptGroup, RolloutFiles
from rgtrain.config.run_config import plain_config

DATASETS = ("chain_sum", "spell_backward")


@cache
def _config() -> dict:
    return plain_config(composed())


def write_run(
    folder: Path, *, seed: int = 1, num_steps: int = 6, group: Callable[[int], KeptGroup] | None = None, **settings
) -> Path:
    """Write a run whose reward rises by 0.1 per step, and return its folder.

    Args:
        folder: The folder to create.
        seed: The seed, whose hundredth is added to each reward.
        num_steps: The number of training steps.
        group: A function that returns the group to keep of a step.
        **settings: Values of the configuration by key, with `__` for each dot.
    """
    config = json.loads(json.dumps(_config(), default=str)) | {"seed": seed, "run_dir": str(folder)}
    config["trainer"] |= {"total_training_steps": num_steps}
    for key, value in settings.items():
        *path, name = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[name] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "provenance.jsonl").write_text(json.dumps({"command": f"train_grpo.py seed={seed}"}) + "\n")
    files = RolloutFiles(folder / "rollouts", max_bytes=10**9, first_step=0)
    lines = []
    for step in range(num_steps + 1):
        record = {"step": step, "time": float(step)}
        if step:
            record |= {"timing_s/step": 2.0, "timing_s/gen": 1.5, "actor/entropy": None, "actor/grad_norm": 1.0}
            record |= {"critic/rewards/mean": step / 10 + seed / 100, "unknown/metric": 1}
            record |= {f"train/{name}/acc": step / 10 for name in DATASETS}
            if group:
                files.append([group(step)], step=step, split=TRAINING)
        if step % 3 == 0:
            record |= {f"val-core/{name}/acc/mean@1": step / 10 for name in DATASETS}
            if group:
                files.append([group(step)], step=step, split=VALIDATION)
        lines.append(json.dumps(record) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def kept_group(step: int, rewards: Sequence[float], *, text: str = "<think>so</think> end") -> KeptGroup:
    """Return a group with a completion per reward."""
    completions = [
        KeptCompletion(text, "4", reward, {"acc": reward, "reward_accuracy": reward}, 9, "stop", 0.5, -0.25, None)
        for reward in rewards
    ]
    return KeptGroup(DATASETS[step % 2], None, "0" * 16, f"<|user|>question {step}", "4", ["first"], completions)
