"""Dispatch `rgtrain COMMAND ...` to the command's module, which is imported only then."""

import importlib
import sys
from dataclasses import dataclass

from rgtrain import __version__
from rgtrain.commands.shell_completion import complete
from rgtrain.errors import ConfigError, choose_from, exit_on_config_error
from rgtrain.paths import PROJECT_ROOT


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        module: The module in this package that has its `main(arguments, *, program)`.
        summary: One line for --help.
    """

    module: str
    summary: str


COMMANDS = {
    "quickstart": Command("quickstart_command", "train, export and evaluate the embedded model, in minutes"),
    "train": Command("train_command", "train a model with reinforcement learning"),
    "train-sft": Command("sft_command", "train a model on right answers"),
    "evaluate": Command("evaluate_command", "measure a model on the problems of an evaluation file"),
    "report": Command("report_command", "write a page about training runs, or an index of runs and evaluations"),
    "compare": Command("compare_command", "compare evaluations of the same problems"),
    "export": Command("export_command", "convert a sharded training checkpoint to a Hugging Face model folder"),
    "external": Command("external_command", "measure a model on GSM8K, MATH and MMLU-Pro"),
    "audit": Command("audit_command", "measure whether Reasoning Gym's datasets are fit to train on"),
    "serve-environment": Command(
        "serve_environment_command", "serve problems and rewards over HTTP to other trainers, such as TRL or NeMo Gym"
    ),
    "migrate": Command("migrate_command", "translate a configuration of the original training code"),
    "prepare-model": Command("prepare_model_command", "unpack the embedded model, or convert a GGUF file"),
    "random-model": Command("random_model_command", "make a randomly initialised model of a known model's shape"),
}


def main() -> None:
    """Run the command line in `sys.argv`. An unknown command exits with code 2."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(help_text())
    elif name in ("--version", "-V"):
        print(f"rgtrain {__version__}")
    elif name in ("--shell-completion", "-sc"):
        complete(arguments, commands=COMMANDS)
    else:
        with exit_on_config_error():
            if name not in COMMANDS:
                raise ConfigError(f"unknown command {name!r}; {choose_from(name, COMMANDS)}")
        # Modules that a configuration names as pkg://... may lie in the project's folder, as beside train_grpo.py.
        if str(PROJECT_ROOT) not in sys.path:
            sys.path.append(str(PROJECT_ROOT))
        command = importlib.import_module(f"rgtrain.commands.{COMMANDS[name].module}")
        command.main(arguments, program=f"rgtrain {name}")


def help_text() -> str:
    """Return the text of `rgtrain --help`."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return f"""\
usage: rgtrain COMMAND ...

Reinforcement learning of language models on Reasoning Gym problems.

{listing}

`rgtrain COMMAND --help` describes a command, `rgtrain --version` prints the version, and
`eval "$(rgtrain --shell-completion install=bash)"` completes commands and configuration keys in bash."""
