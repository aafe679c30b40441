"""Check a supervised run, prepare its folder, environment and log, train, and export the model."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, open_dict

from rgtrain import provenance
from rgtrain.checkpoints.supervised_run import MODEL_FOLDER, SFT_CONFIG
from rgtrain.config.plain_tree import lookup
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.errors import ConfigError
from rgtrain.files import write_atomically
from rgtrain.machine.environment import cpu_environment
from rgtrain.machine.orphan_cleanup import clean_up_after_this_process
from rgtrain.preflight.machine_checks import runs_here
from rgtrain.preflight.plan import drawn_specs, plan_of
from rgtrain.preflight.sft_checks import check_sft
from rgtrain.preflight.start_summary import datasets_text, model_text
from rgtrain.preflight.training_model import find_model
from rgtrain.tables import labelled_lines
from rgtrain.training.launch import download_model, process_environment
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.lifecycle.exits import report_exit
from rgtrain.training.lifecycle.run_lock import RunLock, locked_run
from rgtrain.training.sft.sft_settings import sft_config
from rgtrain.training.trackers import run_name


def train_on_answers(composed: DictConfig, *, words: Sequence[str] = ()) -> None:
    """Run the supervised training that a configuration describes, and export its model to RUN/huggingface.

    A run that failed or was stopped starts over. If it fails, the cause and the path of the log are printed and the
    process exits with code 1; a run that was asked to stop exits with 75 (SIGTERM, SIGHUP) or 130 (SIGINT).

    Args:
        composed: The composed configuration. It is completed in place.
        words: The overrides of the command line. A warning names those that have no effect.

    Raises:
        ConfigError: The run cannot work, or its folder is in use. Raised before training starts.
    """
    config = RunConfig.of(plain_config(composed))
    warnings = check_sft(config, words=words)
    run_dir = config.run_dir.absolute()
    with locked_run(run_dir, wait_s=config.trainer.stop_within_s, say=print) as lock:
        num_steps, checkpoints = plan_of(config).num_steps, run_dir / "checkpoints"
        if (run_dir / MODEL_FOLDER).exists():
            _check_length(run_dir, num_steps=num_steps)
            # The previous start may have ended before it deleted them.
            shutil.rmtree(checkpoints, ignore_errors=True)
            print(f"{run_dir} has finished, its model is in {MODEL_FOLDER}/; set run_dir for another run")
            return
        # A run that was interrupted starts over, and so do its curves.
        shutil.rmtree(run_dir / "tensorboard", ignore_errors=True)
        (run_dir / "wandb_run_id").unlink(missing_ok=True)
        with open_dict(composed):
            composed.run_dir = str(run_dir)
            composed.trainer.default_local_dir = str(checkpoints)
            # The report of an early end then promises no continuation.
            composed.trainer.resume_mode = "disable"
            composed.trainer.total_training_steps = num_steps
            composed.trainer.experiment_name = run_name(config)
        download_model(config)
        _train_locked(composed, RunConfig.of(plain_config(composed)), warnings, lock)


def _check_length(run_dir: Path, *, num_steps: int) -> None:
    """Raise ConfigError if the finished run in a folder has another number of steps."""
    saved = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    if (trained := lookup(saved, "trainer.total_training_steps")) != num_steps:
        raise ConfigError(
            f"run_dir={run_dir} holds a model of {trained} steps, but this run has {num_steps}; set run_dir=ANOTHER, "
            "or delete the folder"
        )


def preflight_on_answers(composed: DictConfig, *, words: Sequence[str] = ()) -> None:
    """Check a supervised run as its start does, and print the first sample of each dataset.

    A run for a machine with more GPUs than this one is checked without them.

    Args:
        composed: The composed configuration.
        words: The overrides of the command line. A warning names those that have no effect.

    Raises:
        ConfigError: The run cannot work.
    """
    config = RunConfig.of(plain_config(composed))
    warnings = check_sft(config, words=words, is_for_here=runs_here(config))
    os.environ.update(cpu_environment())
    from rgtrain.training.sft.first_samples import first_samples

    for line in [*_summary(config), *first_samples(config), *(f"warning: {warning}" for warning in warnings)]:
        print(line)
    print(f"preflight: 0 errors, {len(warnings)} warning(s), nothing was started")


def _train_locked(composed: DictConfig, config: RunConfig, warnings: list[str], lock: RunLock) -> None:
    run_dir, num_steps = config.run_dir, plan_of(config).num_steps
    temporary = clean_up_after_this_process()
    os.environ.update(process_environment(config))
    # A group of one process, which needs no port.
    os.environ |= {
        **{"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"},
        "DIST_INIT_METHOD": f"file://{temporary}/process_group?rank=0&world_size=1",
    }
    # Imports torch, which reads the environment.
    from rgtrain.training.sft.first_samples import first_samples

    first_samples(config)
    sft = sft_config(composed, num_steps=num_steps)
    saved = provenance.masked_values(config.whole)
    write_atomically(run_dir / SFT_CONFIG, _as_yaml(provenance.masked_values(plain_config(sft))))
    write_atomically(run_dir / "config.yaml", _as_yaml(saved))
    provenance.record(run_dir)
    # W&B records the command line too.
    sys.argv[:] = provenance.masked_words(sys.argv)
    with report_exit(config, stopping=lock.mark_stopping):
        for line in [*_summary(config), *(f"warning: {warning}" for warning in warnings)]:
            announce(line)
        from rgtrain.training.sft.sft_trainer import train_by_verl

        train_by_verl(sft)
        announce(f"finished: model in {_export(config, num_steps=num_steps)}")


def _as_yaml(plain: Any) -> str:
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _summary(config: RunConfig) -> list[str]:
    """Return the lines that describe a run."""
    num_steps, batch = plan_of(config).num_steps, config.data.train_batch_size
    rows = [
        ("run", f"{config.run_dir.absolute()} (seed {config.whole['seed']})"),
        ("model", model_text(config, find_model(config))),
        ("training", "supervised, on right answers"),
        ("datasets", datasets_text(drawn_specs(config), curriculum=())),
        ("learning rate", f"{config.actor.optim.lr:g}"),
        ("length", f"{num_steps} steps of {batch} problems"),
    ]
    return labelled_lines(rows)


def _export(config: RunConfig, *, num_steps: int) -> Path:
    """Export the trained weights in bf16, as released models have them, and delete the checkpoint."""
    from rgtrain.checkpoints.export import export

    checkpoints = config.trainer.default_local_dir
    model = export(
        checkpoints / f"global_step_{num_steps}",
        config.run_dir / MODEL_FOLDER,
        dtype="bf16",
        force=True,
        # Training has just saved it, and has run the model's code if that is trusted.
        trust_checkpoint=bool(config.model.trust_remote_code),
    )
    shutil.rmtree(checkpoints)
    return model
