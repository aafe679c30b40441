"""The command that trains: Hydra composes the configuration, which is checked before anything heavy is imported."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rgtrain.commands.first_use import require_vllm, unpack_if_missing
from rgtrain.config.catalogue import help_text
from rgtrain.config.default_experiment import default_experiment
from rgtrain.errors import ConfigError, exit_on_config_error
from rgtrain.machine.devices import num_gpus
from rgtrain.machine.environment import fix_hash_seed, require_stack
from rgtrain.machine.garbage_collection import collect_rarely
from rgtrain.paths import CONFIGS, project_path
from rgtrain.provenance import mask_secrets

if TYPE_CHECKING:
    from omegaconf import DictConfig

_CONFIG_PATH_OPTIONS = ("--config-path", "-cp")


def main(arguments: Sequence[str] | None = None, *, program: str) -> None:
    """Run the command. The process ends here.

    Args:
        arguments: The words after the program, by default those of this process.
        program: The program's name in the help.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    run_program(words, show_help=lambda: print(help_text(program)), check=lambda: choose_experiment(words, program))


def run_program(
    words: Sequence[str],
    *,
    show_help: Callable[[], None],
    check: Callable[[], None],
    run: "Callable[[DictConfig], None] | None" = None,
) -> None:
    """Show the help, or check the command line and run it with Hydra. The process ends here after a run.

    Args:
        words: The words after the program.
        show_help: Prints the help.
        check: Raises ConfigError if the words cannot be used. It may complete them in place.
        run: Runs a composed configuration; by default, trains by reinforcement learning.
    """
    if {"--help", "-h"} & set(words):
        # `--help | head` ends without a traceback.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        show_help()
        return
    require_stack()
    fix_hash_seed()
    with exit_on_config_error():
        check()
    run_hydra(words, run=run)
    # Skip Ray's slow atexit handler, whose work the clean-up process does, and wait for no thread of a library. The
    # terminal may be gone.
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(0)


def run_hydra(words: Sequence[str], *, run: "Callable[[DictConfig], None] | None" = None) -> None:
    """Run Hydra's command line, which runs, sweeps, prints a configuration or completes a word.

    Args:
        words: Hydra's options and overrides.
        run: Runs a composed configuration; by default, trains by reinforcement learning.
    """
    import hydra

    from rgtrain.config.composition import register_plugins
    from rgtrain.config.hydra_errors import composition_errors_as_config_errors, parse_options

    words = _with_absolute_config_path(words)
    with exit_on_config_error():
        register_plugins()
        options = parse_options(words)
    # Hydra then raises its errors instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    given = list(sys.argv)

    def task(config: "DictConfig") -> None:
        # A run records its command line.
        sys.argv[:] = given
        (run or _run)(config)

    # Hydra reads sys.argv only.
    sys.argv[1:] = words
    with exit_on_config_error(transform=mask_secrets), composition_errors_as_config_errors(options):
        hydra.main(config_path=str(CONFIGS), config_name=default_experiment(), version_base="1.3")(task)()


def choose_experiment(words: Sequence[str], program: str) -> None:
    """Print which experiment is trained if the command line names none.

    Args:
        words: Hydra's options and overrides.
        program: The program's name in messages.

    Raises:
        ConfigError: The command line names a folder of experiments and no experiment, or a configuration of the
            original training code.
    """
    from rgtrain.config.hydra_errors import check_experiment, parse_options
    from rgtrain.migration import refuse_original

    options = parse_options(_with_absolute_config_path(words))
    if options.experimental_rerun is not None:
        return
    if options.config_name is not None:
        if file := check_experiment(options):
            refuse_original(file)
        return
    if options.config_path is not None:
        raise ConfigError(f"--config-path={options.config_path} is given without an experiment; add --config-name NAME")
    if not (options.cfg or options.info or options.hydra_help or options.shell_completion):
        machine = "has a GPU" if num_gpus() else "has no GPU"
        print(
            f"experiment {default_experiment()}, because none is named and this machine {machine}; "
            f"--config-name NAME chooses another (see {program} --help)",
            flush=True,
        )


def _run(config: "DictConfig") -> None:
    from rgtrain.config.composition import checked_config, model_path
    from rgtrain.config.run_config import plain_config

    # The trainer collects as usual before its first step.
    collect_rarely()
    with exit_on_config_error():
        checked = checked_config(config.copy())
        # First of all, so that no check meets a dataset that a package has not registered yet.
        from rgtrain.problems.plugins import import_plugins

        import_plugins(checked.plugins)
        # Preflight takes a second to import, which a mistake in the configuration should not wait for.
        from rgtrain.preflight.open_settings import complete_config

        require_vllm()
        unpack_if_missing(model_path(checked))
        checked = complete_config(config, checked)
        if checked.preflight == "only":
            from rgtrain.preflight.preflight_report import run_preflight

            sys.exit(run_preflight(plain_config(checked)))
        # Torch and Ray are imported only for a configuration without unknown keys.
        from rgtrain.training.launch import train

        train(checked)
        _finish(Path(checked.run_dir))


def _finish(run_dir: Path) -> None:
    """Write the run's report and print its result. The run has succeeded, so a failure is only reported."""
    from rgtrain.reporting.run_ending import PART_OF_QUICKSTART, ending_lines
    from rgtrain.reporting.run_reader import read_run
    from rgtrain.reporting.run_report import write_run_report

    page = run_dir / "report.html"
    try:
        write_run_report([run_dir], page=page)
        lines = ending_lines(read_run(run_dir), with_commands=PART_OF_QUICKSTART not in os.environ)
    except (ConfigError, OSError) as error:
        print(f"warning: no report was written: {error}", flush=True)
    else:
        print("\n".join([*lines, f"report: {page}"]), flush=True)


def _with_absolute_config_path(words: Sequence[str]) -> list[str]:
    """Make --config-path absolute: Hydra would look for a relative one beside this file."""
    words = list(words)
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option not in _CONFIG_PATH_OPTIONS:
            continue
        if equals:
            words[number] = f"{option}={_config_folder(value)}"
        elif number + 1 < len(words):
            words[number + 1] = _config_folder(words[number + 1])
    return words


def _config_folder(given: str) -> str:
    """Return the folder from the project's root or else from the current folder."""
    if given.startswith("pkg://"):
        return given
    folder = project_path(given)
    return str(folder if folder.is_dir() else Path(given).absolute())
