"""Report mistakes on Hydra's command line and in configuration files as one-line errors with the nearest names."""

import argparse
import difflib
import re
import shlex
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from rgtrain.config import catalogue
from rgtrain.config.composition import declared_tree
from rgtrain.config.key_names import is_open, unknown_key
from rgtrain.errors import ConfigError, choose_from
from rgtrain.paths import CONFIGS
from rgtrain.yaml_files import problem_of

# Hydra raises these while it composes a configuration.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, RecursionError)


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line as Hydra does.

    Args:
        words: Hydra's options and overrides.

    Returns:
        The options, with the other words under `overrides`.

    Raises:
        ConfigError: An option is unknown or lacks its value.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the options")

    # Its own method prints the usage of all options.
    vars(parser)["error"] = refuse
    return parser.parse_args(list(words))


def check_experiment(options: argparse.Namespace) -> Path | None:
    """Check that the named experiment exists and can be read.

    Returns:
        Its file, or None if no experiment is named or a package holds it.

    Raises:
        ConfigError: The folder or the file does not exist, the file is no experiment, or it cannot be read.
    """
    given = [Path(folder) for folder in (options.config_path, options.config_dir) if folder]
    if any(str(folder).startswith("pkg:") for folder in given) or options.config_name is None:
        return None
    for folder in given:
        if not folder.is_dir():
            near = difflib.get_close_matches(folder.name, [path.name for path in folder.parent.glob("*/")])
            advice = f"did you mean {' or '.join(map(repr, near))}?" if near else "give a folder of experiment files"
            raise ConfigError(f"the folder {folder} does not exist; {advice}")
    name = options.config_name.removesuffix(".yaml")
    group, _, choice = name.partition("/")
    if group in catalogue.GROUPS and (CONFIGS / f"{name}.yaml").is_file():
        raise ConfigError(f"{name} is a choice of a group and not an experiment; write {group}={choice}")
    file = _file_of(options)
    if file is None:
        names = {catalogue.name_of(path): path for path in catalogue.experiments()}
        names |= {str(path.relative_to(folder).with_suffix("")): path for folder in given for path in _yaml_in(folder)}
        # A name without its folder, or in another one.
        same = [one for one in names if one.rpartition("/")[2] == name.rpartition("/")[2]]
        advice = f"did you mean {' or '.join(map(repr, same))}?" if same else choose_from(name, names)
        raise ConfigError(f"there is no experiment {name!r}; {advice} --help lists all")
    if problem := problem_of(file):
        raise ConfigError(problem)
    return file


def _yaml_in(folder: Path) -> Iterator[Path]:
    yield from (path for pattern in ("*.yaml", "*/*.yaml") for path in folder.glob(pattern) if path.is_file())


def _file_of(options: argparse.Namespace) -> Path | None:
    """Return the file of the named experiment, which is looked for in the same order as Hydra does."""
    name = f"{options.config_name.removesuffix('.yaml')}.yaml"
    folders = [options.config_path or CONFIGS, options.config_dir, CONFIGS]
    return next((path for folder in folders if folder and (path := Path(folder, name)).is_file()), None)


@contextmanager
def composition_errors_as_config_errors(options: argparse.Namespace) -> Iterator[None]:
    """Turn Hydra's errors into a ConfigError with one line.

    Args:
        options: The options that `parse_options` returned.

    Raises:
        ConfigError: Hydra cannot compose the configuration.
    """
    try:
        yield
    except ConfigError:
        raise
    except COMPOSITION_ERRORS as error:
        # An error of the run itself, which Hydra passes on.
        if any(frame.f_code.co_name == "run_job" for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise
        is_sweep = options.multirun or "hydra.mode=MULTIRUN" in options.overrides
        folders = [Path(folder) for folder in (options.config_path, options.config_dir, CONFIGS) if folder]
        raise ConfigError(explain(error, options.overrides, folders=folders, is_sweep=is_sweep)) from error


def explain(
    error: Exception, overrides: Sequence[str], *, folders: Sequence[Path] = (CONFIGS,), is_sweep: bool = False
) -> str:
    """Describe an error of a composition in one line.

    Args:
        error: One of COMPOSITION_ERRORS.
        overrides: The words that set values or choose files.
        folders: The folders of experiments.
        is_sweep: Whether the words may give several values.

    Returns:
        The message.
    """
    if (file := _file_being_read(error)) and (problem := problem_of(file)):
        return problem
    for word in overrides:
        if problem := _problem_of_word(word, error, is_sweep):
            return problem
    if isinstance(error, RecursionError):
        return "the files of the experiment name each other in their `defaults` in a circle; remove one of the names"
    # Hydra's error may be empty, and then its cause has the message.
    message = str(error).strip() or str(error.__cause__)
    if found := re.search(r"In '(.+?)': Could not (?:find|load) '(.+?)'", message):
        return f"the file {found[1]!r} names {found[2]!r} in its `defaults`; {_choices(found[2])}"
    if found := re.search(r"In '(.+?)': Could not override '(.+?)'", message):
        advice = choose_from(found[2], catalogue.GROUPS)
        return f"the file {found[1]!r} overrides the group {found[2]!r}, which has no choice yet; {advice}"
    if found := re.search(r"Multiple values for (\w+)", message):
        advice = f"write `override /{found[1]}: CHOICE` at the end of the list to replace a choice"
        return f"the `defaults` choose {found[1]} twice; {advice}"
    if (found := re.search(r"In '(.+?)': ConfigTypeError", message)) and (
        problem := _wrong_form_in(f"{found[1]}.yaml", folders)
    ):
        return problem
    if "Could not override" in message and error.__cause__:
        message = str(error.__cause__)
    cause = f": {_one_line(str(error.__cause__))}" if error.__cause__ and "Error merging" in message else ""
    return f"the configuration cannot be composed: {_one_line(message)}{cause}"


def _wrong_form_in(name: str, folders: Sequence[Path]) -> str | None:
    """Return a message on a list in place of a mapping, or the reverse, in a file of the given name."""
    for path in (folder / name for folder in folders):
        if path.is_file():
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            found = next(_wrong_forms(content, declared_tree(), path=""), None)
            return f"{path}: {found}" if found else None
    return None


def _wrong_forms(content: dict[str, Any], declared: DictConfig, *, path: str) -> Iterator[str]:
    for key, value in content.items():
        node, full_name = declared._get_node(key), f"{path}{key}"
        if isinstance(node, DictConfig) and isinstance(value, dict):
            yield from _wrong_forms(value, node, path=f"{full_name}.")
        elif isinstance(node, DictConfig) and isinstance(value, list):
            yield f"{full_name} is {value!r}; give a mapping"
        elif isinstance(node, ListConfig) and isinstance(value, dict):
            yield f"{full_name} is {value!r}; give a list"


def _one_line(message: str) -> str:
    kept = re.split(r"\n\s*(?:object_type|Config search path|See https|To append|Available options)", message)[0]
    return " ".join(kept.split()).replace("full_key:", "at")


def _file_being_read(error: Exception) -> Path | None:
    """Return the configuration file that Hydra was reading, a local variable of its reader."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "load_config" and "full_path" in frame.f_locals:
            return Path(frame.f_locals["full_path"])
    return None


def _choices(name: str) -> str:
    """Return advice on a file that does not exist, such as "model/qwen9"."""
    group, _, choice = name.removeprefix("/").partition("/")
    if group in catalogue.GROUPS and choice:
        return _choices_of(group, choice)
    return choose_from(name.rpartition("/")[2], ["base", *map(catalogue.name_of, catalogue.experiments())])


def _choices_of(group: str, missing: str) -> str:
    """Return advice on an unknown choice of a group."""
    advice = choose_from(missing, [catalogue.name_of(path) for path in catalogue.choices(group)])
    if group != "model":
        return advice
    return f"{advice}, and there is no folder {missing!r}; give a choice, a model's folder or its hub name ORG/NAME"


def _problem_of_word(word: str, error: Exception, is_sweep: bool) -> str | None:
    if word.startswith("="):
        return _unreadable(word)
    try:
        override = OverridesParser.create().parse_override(word)
    except (OverrideParseException, HydraException, ValueError):
        return _unreadable(word)
    key = override.key_or_group
    if override.is_sweep_override() and not is_sweep:
        values = word.partition("=")[2]
        as_list = (
            f"for a list, write '{key}=[{values}]'; " if override.value_type == ValueType.SIMPLE_CHOICE_SWEEP else ""
        )
        return f"{word!r} gives several values; {as_list}for a run per value, add --multirun"
    if key in catalogue.GROUPS:
        return _problem_of_choice(override, error)
    if key.startswith("hydra"):
        return None
    return _problem_of_key(word, override)


def _unreadable(word: str) -> str:
    key, equals, value = word.partition("=")
    if word.startswith("--"):
        return f"unknown option {word!r}; --help lists the options"
    if not key:
        return f"{word!r} has no key; write key=value, such as seed=3"
    if value.startswith("="):
        return f"{word!r} has two signs =; write {key}{value}"
    if not equals:
        hint = "a list with spaces needs quotes, such as 'trainer.logger=[wandb, tensorboard]'"
        return f"{word!r} is no setting; write key=value" + (f"; {hint}" if word[-1:] in "]},)" else "")
    if not re.fullmatch(r"[+~]*[\w./@-]+", key):
        return f"{word!r} has no usable key; write key=value, such as seed=3"
    if value[:1] in ("[", "{") and value.count(value[0]) != value.count({"[": "]", "{": "}"}[value[0]]):
        return f"the value of {word!r} does not end; put the whole word in quotes, such as '{key}=[a, b]'"
    quoted = '"' + value.replace('"', '\\"') + '"'
    return f"the value of {word!r} cannot be read; quote it twice, as in {shlex.quote(f'{key}={quoted}')}"


def _problem_of_choice(override: Override, error: Exception) -> str | None:
    group, value = override.key_or_group, override.value()
    names = [catalogue.name_of(path) for path in catalogue.choices(group)]
    if not override.is_delete() and not isinstance(value, str | list):
        return f"{group} is {'null' if value is None else value}; {choose_from('', names)}"
    if override.is_add() and f"Multiple values for {group}" in str(error):
        return f"{group} has a choice already; write {group}={value} without +"
    if isinstance(error, MissingConfigException):
        missing = str(error.missing_cfg_file or "").removesuffix(".yaml").removeprefix(f"{group}/")
        if missing in (value if isinstance(value, list) else [value]):
            return f"{group} has no choice {missing!r}; {_choices_of(group, missing)}"
    return None


def _problem_of_key(word: str, override: Override) -> str | None:
    key, declared = override.key_or_group, declared_tree()
    section: Any = declared
    for part in key.split("."):
        node = section._get_node(part) if isinstance(section, DictConfig) else None
        if node is None:
            break
        section = node
    else:
        if override.is_add():
            return f"{key} has a value already; write {word.lstrip('+')} without +"
        value = override.value()
        if isinstance(section, DictConfig) and isinstance(value, list):
            return f"{key} is {value!r}; give a mapping"
        return f"{key} is {value!r}; give a list" if isinstance(value, dict) else None
    if is_open(key, declared=declared):
        return f"{key} is not set; correct its name, or write +{word} to add it" if not override.is_add() else None
    near = difflib.get_close_matches(key, {*catalogue.GROUPS, *map(str, declared)}, n=1)
    if near and near[0] in catalogue.GROUPS:
        return f"there is no group {key!r}; did you mean {near[0]}={override.value()}?"
    return unknown_key(key, declared=declared)
