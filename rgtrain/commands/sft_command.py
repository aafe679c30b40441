"""The command for supervised fine-tuning on right answers. It reads the experiments of `train_grpo.py`."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rgtrain.commands.first_use import unpack_if_missing
from rgtrain.commands.train_command import choose_experiment, run_program
from rgtrain.errors import ConfigError, exit_on_config_error

if TYPE_CHECKING:
    from omegaconf import DictConfig

_HELP = """\
usage: {program} --config-name EXPERIMENT [GROUP=CHOICE ...] [key=value ...]

Train a language model on right answers to the training problems of an experiment, with its prompts.

  {program} --config-name quickstart_sft                     train
  {program} --config-name quickstart_sft model=FOLDER        train the model in a folder, or ORG/NAME of the hub
  {program} --config-name quickstart_sft preflight=only      check the configuration and the problems, train nothing

Experiments, groups and keys are those of `python train_grpo.py --help`. The keys of the actor set the model, the
optimizer and the memory. Keys of rollouts, rewards, algorithms, validation, checkpoints and Ray have no effect; a start
names those of them on the command line. The trained model is in RUN/huggingface, from which
`train_grpo.py model=RUN/huggingface` continues."""


def main(arguments: Sequence[str] | None = None, *, program: str) -> None:
    """Run the command. The process ends here.

    Args:
        arguments: The words after the program, by default those of this process.
        program: The program's name in the help.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    run_program(
        words,
        show_help=lambda: print(_HELP.format(program=program)),
        check=lambda: _check_command_line(words, program),
        run=_run,
    )


def _check_command_line(words: Sequence[str], program: str) -> None:
    from rgtrain.config.composition import verl_sft_tree
    from rgtrain.config.hydra_errors import parse_options

    options = parse_options(words)
    if options.multirun:
        raise ConfigError(f"{program} runs no sweeps; start it once for each configuration")
    if options.config_name is None and not (options.info or options.hydra_help or options.shell_completion):
        raise ConfigError(f"no experiment is given; add --config-name NAME, such as quickstart_sft (see {program} -h)")
    choose_experiment(words, program)
    # Hydra composes only one configuration within its own command, so this one is read before.
    verl_sft_tree()


def _run(config: "DictConfig") -> None:
    from hydra.core.hydra_config import HydraConfig

    from rgtrain.config.composition import checked_config, model_path

    with exit_on_config_error():
        _set_open_values(config)
        checked = checked_config(config.copy())
        # First of all, so that no check meets a dataset that a package has not registered yet.
        from rgtrain.problems.plugins import import_plugins

        import_plugins(checked.plugins)
        # Preflight takes a second to import, which a mistake in the configuration should not wait for.
        from rgtrain.preflight.open_settings import complete_config

        unpack_if_missing(model_path(checked))
        checked = complete_config(config, checked)
        from rgtrain.training.sft.sft_launch import preflight_on_answers, train_on_answers

        start = preflight_on_answers if checked.preflight == "only" else train_on_answers
        start(checked, words=HydraConfig.get().overrides.task)


def _set_open_values(config: "DictConfig") -> None:
    """Set the default name of the run, which must differ from that of `train_grpo.py`, and the number of GPUs."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    name = str(HydraConfig.get().job.config_name)
    with open_dict(config):
        if config.trainer._get_node("experiment_name")._value() == "${hydra:job.config_name}" and "sft" not in name:
            config.trainer.experiment_name = f"{name}_sft"
        if str(config.trainer._get_node("n_gpus_per_node")._value()).startswith("${chosen:"):
            config.trainer.n_gpus_per_node = 1
