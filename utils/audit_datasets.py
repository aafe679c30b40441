"""Measure whether Reasoning Gym's datasets are fit to train on, and write audit.json and audit.csv.

python utils/audit_datasets.py                                        all of them; replaces the committed audit
python utils/audit_datasets.py --datasets chain_sum gcd --out DIR     some of them
"""

import argparse
import importlib.metadata
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Works from any folder, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rgtrain.errors import ConfigError, exit_on_config_error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: the committed audit)")
    parser.add_argument("--items", type=int, default=120, help="items of each dataset (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], help="they come from (default: 0 1 2 3)")
    parser.add_argument(
        "--budget", type=float, default=6.0, metavar="SECONDS", help="for slow datasets (default: %(default)s)"
    )
    return parser.parse_args()


def names_of(arguments: argparse.Namespace) -> list[str]:
    """The datasets to audit. Raises ConfigError unless every argument can be used."""
    from reasoning_gym.factory import DATASETS

    from rgtrain.problems.mixture import MAX_SPLIT_SIZE, DatasetSpec, Split, check_spec

    for seed in arguments.seeds:
        Split.TRAIN.base_seed(seed)
    if not 1 <= arguments.items <= MAX_SPLIT_SIZE:
        raise ConfigError(f"--items is {arguments.items}; give a whole number from 1 to {MAX_SPLIT_SIZE}")
    if not 0 < arguments.budget < float("inf"):
        raise ConfigError(f"--budget is {arguments.budget}; give seconds above 0")
    if arguments.datasets is None:
        return sorted(set(DATASETS) - {"composite"})
    for name in arguments.datasets:
        check_spec(DatasetSpec(name))
    if arguments.out is None:
        raise ConfigError("some datasets can't replace the committed audit, which is of all: name a folder, --out DIR")
    return list(dict.fromkeys(arguments.datasets))


def check_writable(folder: Path) -> None:
    """Make `folder` if need be. Raises ConfigError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write the audit into {folder}: {error.strerror}; give another --out") from error


def prompt_counter() -> tuple[Callable[..., int], str]:
    """What counts the tokens of a problem's prompt, and which prompts these are."""
    from rgtrain.models.embedded_model import EMBEDDED_MODEL, embedded_tokenizer
    from rgtrain.problems.prompts import PromptBuilder, PromptStyle, render_prompt

    builder, tokenizer = PromptBuilder(PromptStyle()), embedded_tokenizer()
    described = f"{EMBEDDED_MODEL}'s chat template with the system prompt {builder.style.system_prompt}"
    return lambda problem: len(render_prompt(builder.messages(problem), tokenizer)), described


def main() -> None:
    arguments = parse_arguments()
    started = time.monotonic()
    # After the arguments are read: these load Reasoning Gym.
    from tqdm import tqdm

    from rgtrain.problems.audit import NUM_STEPS, Audit, audit_datasets, write_audit
    from rgtrain.problems.soundness import AUDIT_FOLDER
    from rgtrain.reporting.audit_table import audit_table

    with exit_on_config_error():
        names = names_of(arguments)
        folder = arguments.out or AUDIT_FOLDER
        check_writable(folder)
        count_tokens, prompts = prompt_counter()
        settings = {"seeds": arguments.seeds, "num_items": arguments.items, "budget_s": arguments.budget}
        with tqdm(total=NUM_STEPS * len(names), unit="step") as bar:

            def on_step(name: str) -> None:
                bar.set_postfix_str(name, refresh=False)
                bar.update()

            datasets = audit_datasets(names, **settings, count_tokens=count_tokens, on_step=on_step)
        audit = Audit(
            command=shlex.join(["python", *sys.argv]),
            versions={
                "reasoning_gym": importlib.metadata.version("reasoning_gym"),
                "python": platform.python_version(),
            },
            prompts=prompts,
            seconds=round(time.monotonic() - started, 1),
            datasets=datasets,
            **settings,
        )
        write_audit(audit, folder)
        print(audit_table(audit))


if __name__ == "__main__":
    main()
