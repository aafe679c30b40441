"""Everything that can be known to be wrong with a run before Ray, vLLM or a GPU is touched."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rgtrain.devices import num_gpus
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT, project_path
from rgtrain.problems import parse_mixture, parse_reward
from rgtrain.problems.prompts import parse_prompt
from rgtrain.problems.scoring import check_confinement, parse_scorer
from rgtrain.problems.soundness import check_sound
from rgtrain.vllm_settings import attention_backend

# Advantages that compare a completion with its group need at least two of them.
_GROUP_ESTIMATORS = ("grpo", "rloo", "grpo_passk", "opo", "gpg")


def check(config: Mapping[str, Any]) -> list[str]:
    """Raise ConfigError for the first thing wrong with the plain configuration of a run; warnings, a line each."""
    specs = parse_mixture(config["data"]["mixture"])
    drawn = [spec.name for spec in specs if spec.weight > 0]
    warnings = check_sound(drawn, allowed=config["data"]["allow_unsound_verifiers"])
    parse_reward(config["reward"]["parts"])
    check_confinement(parse_scorer(config["reward"]["scorer"]))
    parse_prompt(config["data"]["prompt"])
    check_held_out_files(config["data"]["held_out_files"])
    check_batches(config)
    check_devices(config)
    attention_backend()
    check_model(config["actor_rollout_ref"]["model"]["path"])
    check_run_dir(Path(config["run_dir"]))
    check_same_run(config, Path(config["run_dir"]))
    check_resume(config["trainer"])
    return warnings


def check_held_out_files(files: list[str]) -> None:
    """Raise ConfigError unless every file exists."""
    for file in files:
        if not project_path(file).is_file():
            raise ConfigError(f"data.held_out_files names {file}, which is no file in {PROJECT_ROOT}")


def check_batches(config: Mapping[str, Any]) -> None:
    """Raise ConfigError unless prompts, mini-batches, groups, GPUs and tensor parallel sizes divide each other."""
    actor, rollout = config["actor_rollout_ref"]["actor"], config["actor_rollout_ref"]["rollout"]
    batch, mini, group = config["data"]["train_batch_size"], actor["ppo_mini_batch_size"], rollout["n"]
    num_devices = config["trainer"]["n_gpus_per_node"] * config["trainer"]["nnodes"]
    sizes = {"data.train_batch_size": batch, "actor_rollout_ref.actor.ppo_mini_batch_size": mini}
    sizes |= {"actor_rollout_ref.rollout.n": group, "trainer.n_gpus_per_node * trainer.nnodes": num_devices}
    tensor_parallel = rollout["tensor_model_parallel_size"]
    sizes |= {"actor_rollout_ref.rollout.tensor_model_parallel_size": tensor_parallel}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{name} is {size!r}; give a whole number from 1 up")
    if config["algorithm"]["adv_estimator"] in _GROUP_ESTIMATORS and group < 2:
        raise ConfigError(
            f"actor_rollout_ref.rollout.n={group}: {config['algorithm']['adv_estimator']} compares the completions "
            "of a prompt with each other; set it to 2 or more (8 is usual)"
        )
    _check_divides("data.train_batch_size", batch, "actor_rollout_ref.actor.ppo_mini_batch_size", mini)
    _check_divides("ppo_mini_batch_size * rollout.n", mini * group, "the number of GPUs", num_devices)
    _check_divides("the number of GPUs", num_devices, "rollout.tensor_model_parallel_size", tensor_parallel)
    if config["data"]["train_size"] < batch:
        raise ConfigError(f"data.train_size={config['data']['train_size']} is less than data.train_batch_size={batch}")


def check_devices(config: Mapping[str, Any]) -> None:
    """Raise ConfigError where more GPUs are asked for than this machine has."""
    trainer = config["trainer"]
    if trainer["device"] != "cuda" or trainer["nnodes"] > 1:
        return
    present = num_gpus()
    if trainer["n_gpus_per_node"] > present:
        raise ConfigError(
            f"trainer.n_gpus_per_node={trainer['n_gpus_per_node']}, but {present} GPU(s) can be used "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}): "
            f"set it to {present}"
            if present
            else "no GPU can be used: choose hardware=cpu"
        )


def check_model(path: str) -> None:
    """Raise ConfigError unless `path` is a complete model folder, or a hub name such as Qwen/Qwen2.5-3B-Instruct."""
    folder = Path(path).expanduser()
    if not folder.exists():
        if path.count("/") == 1 and not path.startswith((".", "~", "/")):
            return
        raise ConfigError(
            f"actor_rollout_ref.model.path={path} does not exist: give a model's folder or its hub name ORG/NAME"
            " (`bash train.sh setup` makes the embedded model)"
        )
    for needed in ("config.json", "tokenizer_config.json"):
        if not (folder / needed).is_file():
            raise ConfigError(f"actor_rollout_ref.model.path={path} is no complete model: it has no {needed}")


def check_run_dir(run_dir: Path) -> None:
    """Raise ConfigError unless files can be written into `run_dir`, which need not exist yet."""
    existing = next(parent for parent in (run_dir.absolute(), *run_dir.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as error:
        raise ConfigError(
            f"cannot write to run_dir={run_dir}: {existing}: {error.strerror}; set run_dir=FOLDER"
        ) from error


def check_same_run(config: Mapping[str, Any], run_dir: Path) -> None:
    """Raise ConfigError where `run_dir` holds a run with other settings: continuing it would mix two experiments.

    How long and where a run goes on may change: what stands under `trainer` and `ray_kwargs`.
    """
    saved = run_dir / "config.yaml"
    if config["trainer"]["resume_mode"] != "auto" or not saved.is_file():
        return
    before, now = (dict(_leaves(tree)) for tree in (yaml.safe_load(saved.read_text()), config))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changed = [key for key in changed if key.split(".")[0] not in ("trainer", "ray_kwargs", "run_dir")]
    if changed:
        differences = ", ".join(f"{key} ({before.get(key)} there, {now.get(key)} now)" for key in changed[:5])
        raise ConfigError(
            f"run_dir={run_dir} holds a run with other settings: {differences}; set run_dir=ANOTHER or delete it"
        )


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def check_resume(trainer: Mapping[str, Any]) -> None:
    """Raise ConfigError where the checkpoint to continue from is missing or lacks a part."""
    if trainer["resume_mode"] != "resume_path":
        return
    path = trainer["resume_from_path"]
    if not path or "global_step_" not in str(path):
        raise ConfigError(f"trainer.resume_from_path={path}: give a folder named global_step_N")
    for needed in ("actor", "data.pt"):
        if not (Path(path) / needed).exists():
            raise ConfigError(f"trainer.resume_from_path={path} is no complete checkpoint: it has no {needed}")


def _check_divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        below, above = value // divisor * divisor, (value // divisor + 1) * divisor
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(f"{name}={value} is not a multiple of {divisor_name}={divisor}: make it {nearest}")
