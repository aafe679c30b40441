"""What can be chosen on the command line: every experiment and every group of configs/, with a line each."""

from pathlib import Path

from rgtrain.paths import CONFIGS

GROUPS = ("model", "mixture", "mixture_policy", "reward", "algorithm", "hardware", "debug")
_USAGE = """\
Train a language model with reinforcement learning on Reasoning Gym problems.

  python train_grpo.py --config-name EXPERIMENT [GROUP=CHOICE ...] [key=value ...]
  python train_grpo.py --config-name EXPERIMENT ... preflight=only     check everything, start nothing
  python train_grpo.py --config-name EXPERIMENT ... --cfg job          print the whole configuration

An experiment is a file; --config-path FOLDER --config-name NAME takes one from elsewhere. Keys are verl's and those of
configs/base.yaml; Hydra's own options are listed by --hydra-help."""


def experiments() -> list[Path]:
    """The files of all experiments, by name."""
    files = (path for path in CONFIGS.rglob("*.yaml") if path.relative_to(CONFIGS).parts[0] not in GROUPS)
    return sorted((path for path in files if path.name != "base.yaml"), key=lambda path: (path.parent != CONFIGS, path))


def choices(group: str) -> list[Path]:
    """The files of a group, by name."""
    return sorted((CONFIGS / group).glob("*.yaml"))


def name_of(path: Path) -> str:
    """What the command line calls the experiment or choice in the file `path`."""
    inside = path.relative_to(CONFIGS).with_suffix("")
    return str(inside.relative_to(inside.parts[0]) if inside.parts[0] in GROUPS else inside)


def description(path: Path) -> str:
    """The first line of the file's comment; empty where it has none."""
    comments = (line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package"))
    first = next(comments, "")
    return first.lstrip("# ") if first.startswith("#") else ""


def help_text() -> str:
    """What `python train_grpo.py --help` prints."""
    parts = [_USAGE, _listing("Experiments", experiments())]
    parts += [_listing(f"{group}=", choices(group)) for group in GROUPS]
    return "\n\n".join(parts)


def _listing(title: str, paths: list[Path]) -> str:
    width = max(len(name_of(path)) for path in paths)
    return "\n".join([title, *(f"  {name_of(path):<{width}}  {description(path)}" for path in paths)])
