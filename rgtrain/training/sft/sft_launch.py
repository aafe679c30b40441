"""Check a supervised run, prepare its folder, environment and log, train, and export the model."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, open_dict

from rgtrain import provenance
from rgtrain.checkpoints.supervised_run import SFT_CONFIG
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.files import write_atomically
from rgtrain.machine.environment import cpu_environment
from rgtrain.machine.orphan_cleanup import clean_up_after_this_process
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

# The exported model, in the run's folder.
MODEL_FOLDER = "huggingface"


def train_on_answers(composed: DictConfig) -> None:
    """Run the supervised training that a configuration describes, and export its model to RUN/huggingface.

    A run that failed or was stopped starts over. If it fails, the cause and the path of the log are printed and the
    process exits with code 1; a run that was asked to stop exits with 75 (SIGTERM, SIGHUP) or 130 (SIGINT).

    Args:
        composed: The composed configuration. It is completed in place.

    Raises:
        ConfigError: The run cannot work, or its folder is in use. Raised before training starts.
    """
    config = RunConfig.of(plain_config(composed))
    warnings = check_sft(config)
    run_dir = config.run_dir.absolute()
    with locked_run(run_dir, wait_s=config.trainer.stop_within_s, say=print) as lock:
        if (run_dir / MODEL_FOLDER).exists():
            print(f"{run_dir} has finished, its model is in {MODEL_FOLDER}/; set run_dir for another run")
            return
        with open_dict(composed):
            composed.run_dir = str(run_dir)
            composed.trainer.default_local_dir = str(run_dir / "checkpoints")
            composed.trainer.total_training_steps = plan_of(config).num_steps
            composed.trainer.experiment_name = run_name(config)
        download_model(config)
        _train_locked(composed, RunConfig.of(plain_config(composed)), warnings, lock)


def preflight_on_answers(composed: DictConfig) -> None:
    """Check a supervised run as its start does, and print the first sample of each dataset.

    Args:
        composed: The composed configuration.

    Raises:
        ConfigError: The run cannot work.
    """
    config = RunConfig.of(plain_config(composed))
    warnings = check_sft(config)
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
    model = export(checkpoints / f"global_step_{num_steps}", config.run_dir / MODEL_FOLDER, dtype="bf16", force=True)
    shutil.rmtree(checkpoints)
    return model
