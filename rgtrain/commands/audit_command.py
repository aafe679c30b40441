"""The command that measures whether Reasoning Gym's datasets are fit to train on."""

import argparse
import importlib.metadata
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rgtrain.errors import ConfigError, exit_on_config_error
from rgtrain.machine.environment import require_stack
from rgtrain.paths import IS_INSTALLED

_DESCRIPTION = """\
Measure whether Reasoning Gym's datasets are fit to train on, and write audit.json and audit.csv.

{program}                                        all datasets; replaces the audit in a working tree
{program} --datasets chain_sum gcd --out DIR     some datasets
{program} --plugins my_tasks --datasets my_sums --out DIR
"""


def main(arguments: Sequence[str] | None = None, *, program: str) -> None:
    """Run the command.

    Args:
        arguments: The words after the program, by default those of this process.
        program: The program's name in messages.
    """
    options = _parser(program).parse_args(arguments)
    require_stack()
    started = time.monotonic()
    # After the arguments are read: these load Reasoning Gym.
    from tqdm import tqdm

    from rgtrain.problems.audit import NUM_STEPS, Audit, audit_datasets, write_audit
    from rgtrain.problems.plugins import import_plugins
    from rgtrain.problems.soundness import AUDIT_FOLDER
    from rgtrain.reporting.audit_table import audit_table

    with exit_on_config_error():
        for notice in import_plugins(options.plugins):
            print(notice, file=sys.stderr)
        names = _names_of(options)
        folder = options.out or AUDIT_FOLDER
        _check_writable(folder)
        count_tokens, prompts = _prompt_counter()
        settings = {"seeds": options.seeds, "num_items": options.items, "budget_s": options.budget}
        with tqdm(total=NUM_STEPS * len(names), unit="step") as bar:

            def on_step(name: str) -> None:
                bar.set_postfix_str(name, refresh=False)
                bar.update()

            datasets = audit_datasets(names, **settings, count_tokens=count_tokens, on_step=on_step)
        audit = Audit(
            command=shlex.join(["python", *sys.argv]),
            versions=_versions_of(names),
            prompts=prompts,
            seconds=round(time.monotonic() - started, 1),
            datasets=datasets,
            **settings,
        )
        write_audit(audit, folder)
        print(audit_table(audit))


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=_DESCRIPTION.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="only these datasets (default: all)")
    parser.add_argument(
        "--plugins", nargs="+", metavar="PACKAGE", default=[], help="packages that register further datasets"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder to write (default: the tree's own audit)")
    parser.add_argument("--items", type=int, default=120, help="items per dataset (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3], help="seeds of the items (default: 0 1 2 3)"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=6.0,
        metavar="SECONDS",
        help="longest time for the items of a slow dataset (default: %(default)s)",
    )
    return parser


def _names_of(options: argparse.Namespace) -> list[str]:
    """Return the datasets to audit. Raises ConfigError unless every argument can be used."""
    from reasoning_gym.factory import DATASETS

    from rgtrain.problems.mixture import MAX_SPLIT_SIZE, DatasetSpec, Split, check_spec
    from rgtrain.problems.sound_datasets import SOUND_PREFIX

    for seed in options.seeds:
        Split.TRAIN.base_seed(seed)
    if not 1 <= options.items <= MAX_SPLIT_SIZE:
        raise ConfigError(f"--items is {options.items}; give a whole number from 1 to {MAX_SPLIT_SIZE}")
    if not 0 < options.budget < float("inf"):
        raise ConfigError(f"--budget is {options.budget}; give seconds above 0")
    if IS_INSTALLED and options.out is None:
        raise ConfigError("the audit of an installed package is not replaced; name another folder with --out DIR")
    if options.datasets is None:
        return sorted(name for name in DATASETS if name != "composite" and not name.startswith(SOUND_PREFIX))
    for name in options.datasets:
        check_spec(DatasetSpec(name))
    if options.out is None:
        raise ConfigError(
            "some datasets can't replace the committed audit, which is of all; name a folder with --out DIR"
        )
    return list(dict.fromkeys(options.datasets))


def _versions_of(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of the distributions that make and judge the problems."""
    from reasoning_gym.factory import DATASETS

    # The tasks of another distribution are adapted by this package, which names the distribution on their class.
    others = {str(DATASETS[name][0].distribution) for name in names if hasattr(DATASETS[name][0], "distribution")}
    versions = {name: importlib.metadata.version(name) for name in ("reasoning_gym", *sorted(others))}
    return versions | {"python": platform.python_version()}


def _check_writable(folder: Path) -> None:
    """Make `folder` if need be. Raises ConfigError if nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write the audit into {folder} ({error.strerror}); give another --out") from error


def _prompt_counter() -> tuple[Callable[..., int], str]:
    """Return a function that counts the tokens of a problem's prompt, and a description of these prompts."""
    from rgtrain.models.embedded_model import EMBEDDED_MODEL, embedded_tokenizer
    from rgtrain.problems.prompt_rendering import PromptRenderer
    from rgtrain.problems.prompts import PromptBuilder, PromptStyle

    builder, renderer = PromptBuilder(PromptStyle()), PromptRenderer(embedded_tokenizer(), model=EMBEDDED_MODEL)
    described = f"{EMBEDDED_MODEL}'s chat template with the system prompt {builder.style.system_prompt}"
    return lambda problem: len(renderer.token_ids(builder.messages(problem))), described
