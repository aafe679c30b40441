"""The help of a training: every experiment, every choice of a group, and the keys that configs/base.yaml documents.

It is read from the configuration files' comments, with nothing but Python's standard library.
"""

import re
import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rgtrain.paths import CONFIGS

GROUPS = ("model", "mixture", "mixture_policy", "reward", "algorithm", "hardware", "debug")
# These nodes of base.yaml are Hydra's, not a run's.
_HYDRA_NODES = ("defaults", "hydra")
_MAX_COLUMNS = 120
_KEY_LINE = re.compile(r"(?P<indent> *)(?P<name>\w+):(?: (?P<value>.*))?")
_SENTENCE_END = re.compile(r"(?<!\bDr)\.(?= [A-Z`])")


@dataclass(frozen=True)
class DocumentedKey:
    """A key of configs/base.yaml.

    Attributes:
        path: The dotted name, as on the command line.
        default: Its value as written in the file; empty for a section.
        description: The comment above it, as one paragraph; empty if it has none.
    """

    path: str
    default: str
    description: str


def experiments() -> list[Path]:
    """Return the files of all experiments, those in the top folder first."""
    files = (path for path in CONFIGS.rglob("*.yaml") if path.relative_to(CONFIGS).parts[0] not in GROUPS)
    return sorted((path for path in files if path.name != "base.yaml"), key=lambda path: (path.parent != CONFIGS, path))


def choices(group: str) -> list[Path]:
    """Return the files of a group, by name."""
    return sorted((CONFIGS / group).glob("*.yaml"))


def name_of(path: Path) -> str:
    """Return the name on the command line of the experiment or choice in the file `path`."""
    inside = path.relative_to(CONFIGS).with_suffix("")
    return str(inside.relative_to(inside.parts[0]) if inside.parts[0] in GROUPS else inside)


def description(path: Path) -> str:
    """Return the first sentence of a configuration file's comment; empty if it has none."""
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            comment.append(line.lstrip("# "))
    paragraph = " ".join(comment)
    end = _SENTENCE_END.search(paragraph)
    return paragraph[: end.end()] if end else paragraph


def documented_keys() -> list[DocumentedKey]:
    """Return the keys of configs/base.yaml, in its order, each with the comment above it."""
    keys: list[DocumentedKey] = []
    parents: list[str] = []
    comment: list[str] = []
    for line in (CONFIGS / "base.yaml").read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip("# "))
            continue
        if found := _KEY_LINE.fullmatch(line):
            parents[len(found["indent"]) // 2 :] = [found["name"]]
            if parents[0] not in _HYDRA_NODES:
                keys.append(DocumentedKey(".".join(parents), found["value"] or "", " ".join(comment)))
        comment = []
    return keys


def help_text(program: str) -> str:
    """Return the text that `--help` prints.

    Args:
        program: The command that trains, such as "python train_grpo.py".
    """
    return "\n\n".join(
        [
            _usage(program),
            _listing("Experiments:", ((name_of(path), description(path)) for path in experiments())),
            *(
                _listing(f"{group}=", ((name_of(path), description(path)) for path in choices(group)))
                for group in GROUPS
            ),
            _listing(
                "Keys of configs/base.yaml, with their defaults:",
                ((_assignment(key), key.description) for key in documented_keys() if key.description),
            ),
            _more(program),
        ]
    )


def _usage(program: str) -> str:
    return f"""\
usage: {program} [--config-name EXPERIMENT] [GROUP=CHOICE ...] [key=value ...]

Train a language model with reinforcement learning on Reasoning Gym problems.

  {program} --config-name quickstart                     train
  {program} --config-name quickstart model=FOLDER        train the model in a folder, or ORG/NAME of the hub
  {program} --config-name quickstart preflight=only      check everything, start nothing
  {program} --config-name quickstart --cfg job           print the whole configuration

An experiment is a file; --config-path FOLDER --config-name NAME takes one from another folder. Without a name, it is
quickstart_gpu on a machine with a GPU and quickstart on any other."""


def _more(program: str) -> str:
    return f"""\
All other keys are verl's; `--cfg job` prints them with their values. --hydra-help lists Hydra's own options.

Sweeps: --multirun (-m) runs every combination of the values after commas, one after another, each in its own folder
such as runs/quickstart/seed_1. It prints a table of all jobs with the mean and standard deviation over the seeds:
  {program} --multirun --config-name quickstart seed=1,2,3

Completion of groups, choices and keys in bash (also zsh and fish):
  eval "$({program} --shell-completion install=bash)\""""


def _assignment(key: DocumentedKey) -> str:
    return f"{key.path}={key.default}" if key.default else key.path


def _listing(title: str, lines: Iterable[tuple[str, str]]) -> str:
    lines = list(lines)
    columns = min(shutil.get_terminal_size().columns, _MAX_COLUMNS)
    # A longer name stands alone on its line.
    indent = min(max(len(name) for name, _ in lines), 34) + 4
    shown = [title]
    for name, words in lines:
        wrapped = textwrap.wrap(words, max(columns - indent, 20), break_on_hyphens=False, break_long_words=False)
        if len(name) + 4 > indent:
            shown.append(f"  {name}")
            shown += [f"{' ' * indent}{each}" for each in wrapped]
        else:
            first, *others = wrapped or [""]
            shown.append(f"  {name:<{indent - 4}}  {first}".rstrip())
            shown += [f"{' ' * indent}{each}" for each in others]
    return "\n".join(shown)
