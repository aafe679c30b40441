"""The command that translates a configuration of the original training code to an experiment of this project."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError, exit_on_config_error

_DESCRIPTION = """\
Translate a configuration of the original Reasoning Gym training code to an experiment of this project.

{program} FILE [OUTPUT]
"""


def main(arguments: Sequence[str] | None = None, *, program: str) -> None:
    """Run the command.

    Args:
        arguments: The words after the program, by default those of this process.
        program: The program's name in messages.
    """
    options = _parser(program).parse_args(arguments)
    with exit_on_config_error():
        output = options.output or options.file.with_name(f"{options.file.stem}_migrated.yaml")
        for line in migrate_file(options.file, output, force=options.force, max_names=None if options.all else 3):
            print(line)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=_DESCRIPTION.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the original configuration, a YAML file")
    parser.add_argument(
        "output", metavar="OUTPUT", type=Path, nargs="?", help="the experiment file (default: FILE's name + _migrated)"
    )
    parser.add_argument("--force", action="store_true", help="replace OUTPUT if it exists")
    parser.add_argument("--all", action="store_true", help="also name every key that the experiment does not need")
    return parser


def migrate_file(file: Path, output: Path, *, force: bool = False, max_names: int | None = 3) -> Iterator[str]:
    """Write the experiment for an original configuration, and describe the differences.

    Args:
        file: The original configuration.
        output: The experiment file to write.
        force: Whether to replace `output`.
        max_names: The number of keys to name for each reason that the experiment does not need them. None means all.

    Yields:
        Lines for the terminal.

    Raises:
        ConfigError: `file` is not an original configuration, `output` can't be written, or the experiment can't be
            composed.
    """
    from rgtrain.files import write_atomically
    from rgtrain.migration import as_yaml, migrate, read_original, without_defaults

    if output.suffix != ".yaml":
        raise ConfigError(f"OUTPUT is {str(output)!r}; Hydra reads only files that end in .yaml, so choose such a name")
    if output.exists() and not force:
        raise ConfigError(f"{output} exists; give another OUTPUT, or --force to replace it")
    migration = migrate(read_original(file))
    defaults = _composed(as_yaml(file.name, migration.choices, {}))
    values = without_defaults(migration, lambda key: _selected(defaults, key))
    unsound = _unsound(values)
    if unsound:
        values["data"]["allow_unsound_verifiers"] = unsound
    text = as_yaml(file.name, migration.choices, values)
    composed = _composed(text)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, text)
    except OSError as error:
        raise ConfigError(f"{output} can't be written ({error.strerror}); give another OUTPUT") from error
    yield f"wrote {output}"
    yield f"train: python train_grpo.py --config-path {output.parent.absolute()} --config-name {output.stem}"
    if unsound:
        yield f"a constant answer pays in {', '.join(unsound)}, so data.allow_unsound_verifiers names them"
    yield from _by_reason(migration.lost, "no equivalent, so the experiment differs:", max_names=None)
    yield from _by_reason(migration.unused, "left out, without an effect on the experiment:", max_names=max_names)
    yield from (f"to be corrected by hand: {error}" for error in _errors(composed))


def _by_reason(keys: Mapping[str, str], title: str, *, max_names: int | None) -> Iterator[str]:
    if keys:
        yield title
    for reason in dict.fromkeys(keys.values()):
        names = [key for key, its_reason in keys.items() if its_reason == reason]
        shown = names[:max_names]
        more = f" and {len(names) - len(shown)} more (--all)" if len(shown) < len(names) else ""
        yield f"  {', '.join(shown)}{more}: {reason}"


def _composed(text: str) -> Any:
    """Compose an experiment from its text."""
    import tempfile

    from hydra import compose, initialize_config_dir

    from rgtrain.config.composition import checked_config, register_plugins

    register_plugins()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "migrated.yaml").write_text(text, encoding="utf-8")
        with initialize_config_dir(folder, version_base="1.3"):
            # Hydra sets the name of its job, which is the experiment's name by default, only for its own command line.
            named = "experiment_name" not in text
            return checked_config(compose("migrated", ["trainer.experiment_name=migrated"] if named else []))


def _selected(config: Any, key: str) -> Any:
    from omegaconf import OmegaConf

    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _unsound(values: Mapping[str, Any]) -> list[str]:
    """Return the datasets of the mixture that training would refuse."""
    from rgtrain.problems.soundness import committed_audit, is_unsound

    audited = committed_audit().datasets
    mixture = values.get("data", {}).get("mixture", {})
    return [name for name in mixture if name in audited and is_unsound(audited[name])]


def _errors(composed: Any) -> list[str]:
    """Return the errors for which a start would refuse the experiment."""
    from rgtrain.config.run_config import RunConfig, plain_config
    from rgtrain.preflight.checks import collect_errors

    errors, _ = collect_errors(RunConfig.of(plain_config(composed)))
    return errors
