"""Check that a run's folder is writable and that a run in it has the same settings."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from rgtrain.checkpoints.checkpoint_store import MANIFEST, problems, recorded_last
from rgtrain.checkpoints.shards.checkpoint import complete_checkpoint, files_beside, saved_by
from rgtrain.checkpoints.supervised_run import is_supervised
from rgtrain.config.composition import is_declared, with_declared_defaults
from rgtrain.config.plain_tree import leaves, lookup
from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError
from rgtrain.preflight.disk import existing_parent
from rgtrain.preflight.machine_checks import runs_here
from rgtrain.provenance import masked_values

# The loader in C reads a configuration ten times as fast.
_FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Keys that a resumed run may change, because they concern its length, the machine or the estimate of memory.
_FSDP = "actor_rollout_ref.actor.fsdp_config"
_REF_FSDP = "actor_rollout_ref.ref.fsdp_config"
_MAY_CHANGE = (
    "trainer",
    "ray_kwargs",
    "run_dir",
    "preflight",
    "hardware",
    "model.shape",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu",
    "actor_rollout_ref.model.enable_gradient_checkpointing",
    "critic.model.enable_gradient_checkpointing",
    "actor_rollout_ref.ref.fsdp_config.fsdp_size",
    "actor_rollout_ref.rollout.free_cache_engine",
    "actor_rollout_ref.rollout.enable_sleep_mode",
    "actor_rollout_ref.rollout.gpu_memory_utilization",
    "actor_rollout_ref.rollout.n_gpus_per_node",
    "actor_rollout_ref.rollout.tensor_model_parallel_size",
    "actor_rollout_ref.rollout.free_cache_engine",
    "actor_rollout_ref.rollout.enable_sleep_mode",
    "actor_rollout_ref.model.enable_gradient_checkpointing",
    "critic.model.enable_gradient_checkpointing",
    "critic.ppo_max_token_len_per_gpu",
    "critic.forward_max_token_len_per_gpu",
    *(
        f"{section}.{name}"
        for section in (_FSDP, _REF_FSDP, "critic.fsdp")
        for name in (
            "fsdp_size",
            "reshard_after_forward",
            "use_no_sync_for_gradient_accumulation",
            "param_offload",
            "optimizer_offload",
            "offload_policy",
        )
    ),
)
_SHOWN_CHARS = 60
# Sections and keys that the config.yaml of every run has.
_ALWAYS_SAVED = ("actor_rollout_ref", "algorithm", "data", "run_dir", "seed", "trainer")


def check_run_folder(config: RunConfig) -> None:
    """Check that the run can write its folders and can resume from the files in them.

    A preflight for other hardware does not check whether this machine can write the folders.

    Raises:
        ConfigError: A folder can't be written, or the run can't be resumed. The message names the folder or file.
    """
    if config.preflight != "only" or runs_here(config):
        check_run_dir(config.run_dir)
        if is_supervised(config.run_dir):
            raise ConfigError(f"run_dir={config.run_dir} holds a run of train_sft.py; set run_dir=ANOTHER")
        if config.trainer.save_freq > 0:
            check_run_dir(config.trainer.default_local_dir, key="trainer.default_local_dir")
    if config.trainer.resume_mode == "auto":
        # launch.py saves the configuration with masked secrets, so a changed secret is no difference between runs.
        check_same_run(masked_values(config.whole), config.run_dir)
        checkpoints = config.trainer.default_local_dir
        check_saved_ranks(checkpoints / f"global_step_{recorded_last(checkpoints)}", num_gpus=config.trainer.num_gpus)
    if config.trainer.resume_mode == "resume_path":
        check_resume(config.trainer.resume_from_path, contents=_loaded_contents(config))
        check_saved_ranks(Path(config.trainer.resume_from_path or ""), num_gpus=config.trainer.num_gpus)


def check_save_failure(config: RunConfig) -> None:
    """Check that a run that goes on after a failed save has a single rank.

    If one rank fails to save, the others wait for it in a barrier of verl's save. The failed rank's next collective
    operation would then meet that barrier, and the run would hang.

    Raises:
        ConfigError: Several ranks save, and the run is to go on after a failure.
    """
    trainer = config.trainer
    if trainer.save_failure == "continue" and trainer.save_freq > 0 and trainer.num_gpus > 1:
        raise ConfigError(
            "trainer.save_failure=continue needs a single worker, but trainer.n_gpus_per_node="
            f"{trainer.n_gpus_per_node} and trainer.nnodes={trainer.nnodes}; set trainer.save_failure=stop, and the "
            "same command resumes from the last saved step"
        )


def check_run_dir(run_dir: Path, *, key: str = "run_dir") -> None:
    """Check that files can be written into `run_dir`, which need not exist yet.

    Args:
        run_dir: The folder.
        key: The configuration key that names the folder, for messages.

    Raises:
        ConfigError: The folder can't be written, or its path contains a broken link.
    """
    for folder in (run_dir.absolute(), *run_dir.absolute().parents):
        if folder.is_symlink() and not folder.exists():
            raise ConfigError(
                f"{key}={run_dir} can't be used, because {folder} is a link to {folder.readlink()}, which does not "
                "exist; mount that disk or remove the link"
            )
    existing = existing_parent(run_dir)
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as error:
        raise ConfigError(
            f"cannot write to {key}={run_dir} ({error.strerror} in {existing}); set {key}=FOLDER"
        ) from error


def check_same_run(config: Mapping[str, Any], run_dir: Path) -> None:
    """Check that a run in `run_dir` has the same settings, because resuming it otherwise would mix two experiments.

    Settings bind a folder from the first checkpoint on. The length of a run and the machine may change.

    Args:
        config: The plain configuration of this start, with masked secrets.
        run_dir: The folder of the run.

    Raises:
        ConfigError: Other settings differ, or the saved configuration is damaged.
    """
    saved = run_dir / "config.yaml"
    if not saved.is_file() or not _has_checkpoint(config, saved):
        return
    if changed := changed_settings(config, run_dir):
        differences = ", ".join(
            f"{key} ({_shown(before)} there, {_shown(now)} now)" for key, before, now in changed[:5]
        )
        raise ConfigError(
            f"run_dir={run_dir} holds a run with other settings: {differences}. "
            "Set another run_dir, or delete the folder"
        )


def _shown(value: Any) -> str:
    """Return a value, or the start of a long one such as a prompt with its length."""
    text = str(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]!r}... of {len(text)} characters"


def changed_settings(config: Mapping[str, Any], run_dir: Path) -> list[tuple[str, Any, Any]]:
    """Compare a start's plain configuration with the one that an earlier start saved in `run_dir`.

    A key that the saved one lacks counts as its declared default, and a key that no longer exists does not count.

    Returns:
        The keys of changed settings with their earlier and present values, sorted. Keys that may change are left out.

    Raises:
        ConfigError: The saved configuration is damaged.
    """
    saved, now = _read_config(run_dir / "config.yaml"), dict(leaves(config))
    before = dict(leaves(saved))
    if now.keys() - before.keys():
        before = dict(leaves(with_declared_defaults(saved)))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changed = [key for key in changed if not _may_change(key) and (key in now or is_declared(key))]
    return [(key, before.get(key), now.get(key)) for key in changed]


def _may_change(key: str) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in _MAY_CHANGE)


def _has_checkpoint(config: Mapping[str, Any], saved: Path) -> bool:
    """Return whether this start's folder of checkpoints holds one, or that of the earlier start in the same run_dir."""
    configs = [config]
    with suppress(ConfigError):
        configs.append(_read_config(saved))
    folders = [lookup(tree, "trainer.default_local_dir") for tree in configs]
    return any(next(Path(str(folder)).glob("global_step_*"), None) for folder in folders)


def _read_config(path: Path) -> Mapping[str, Any]:
    """Read the configuration that an earlier start saved to `path`; raise ConfigError if it is damaged."""
    try:
        saved = yaml.load(path.read_text(), _FAST_LOADER)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    else:
        # A truncated file may still be valid YAML.
        missing = [key for key in _ALWAYS_SAVED if not isinstance(saved, Mapping) or key not in saved]
        if not missing:
            return saved
        reason = f"it has no {', '.join(missing[:3])}"
    raise ConfigError(
        f"{str(path)!r} is damaged ({reason}), so the settings of the run there are unknown; restore it from a copy or "
        "set another run_dir, or, if this command has the same settings, delete the file and the run will resume"
    )


def check_saved_ranks(checkpoint: Path, *, num_gpus: int) -> None:
    """Check that a run on `num_gpus` GPUs can continue from a checkpoint, which another number of GPUs may have saved.

    Args:
        checkpoint: The folder `global_step_N`. It need not exist.
        num_gpus: The number of GPUs of this start.

    Raises:
        ConfigError: FSDP1 saved it on another number of GPUs.
    """
    for role in ("actor", "critic"):
        try:
            saved = saved_by(checkpoint / role)
        except ConfigError:
            # The start sets a damaged checkpoint aside, and check_resume refuses it.
            continue
        # FSDP1 flattens parameters, so the state of its optimizer has no shards of single parameters.
        if saved is not None and saved.is_fsdp1 and saved.world_size != num_gpus:
            raise ConfigError(
                f"{str(checkpoint / role)!r} was saved on {saved.world_size} GPUs by strategy=fsdp, which can't resume "
                f"on {num_gpus}; use {saved.world_size} GPUs, or start a new run with strategy=fsdp2"
            )


def _loaded_contents(config: RunConfig) -> dict[str, Sequence[str]]:
    """Return the parts of a checkpoint that verl loads, by its folders."""
    sections = {"actor": "actor_rollout_ref.actor", "critic": "critic"}
    return {role: lookup(config.whole, f"{section}.checkpoint.load_contents") for role, section in sections.items()}


def check_resume(resume_from_path: str | None, *, contents: Mapping[str, Sequence[str]]) -> None:
    """Check the checkpoint named by `trainer.resume_from_path`.

    Args:
        resume_from_path: The value of the key.
        contents: The parts that the run loads, by the folders of the checkpoint's models.

    Raises:
        ConfigError: The checkpoint is missing, incomplete or damaged.
    """
    given = f"trainer.resume_from_path={resume_from_path}"
    path = Path(resume_from_path or ".")
    if not re.fullmatch(r"global_step_[0-9]+", path.name):
        raise ConfigError(f"{given} is not a checkpoint; give a folder named global_step_N")
    for needed in ("actor", "data.pt"):
        if not (path / needed).exists():
            raise ConfigError(
                f"{given} is not a complete checkpoint, because {needed} is missing; give another checkpoint"
            )
    # A checkpoint written by another program has no manifest.
    if (path / MANIFEST).exists() and (wrong := problems(path)):
        raise ConfigError(f"{given} is damaged ({', '.join(wrong[:3])}); restore it or give another checkpoint")
    for role, parts in contents.items():
        model_files = complete_checkpoint(path / role).rank_files
        for part, kind in (("optimizer", "optim"), ("extra", "extra_state")):
            if model_files and part in parts:
                files_beside(model_files, kind)
