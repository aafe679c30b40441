"""The command that measures a model on the problems of an evaluation file."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rgtrain.commands.first_use import require_vllm, unpack_if_missing
from rgtrain.errors import exit_on_config_error
from rgtrain.evaluation.evaluation_progress import say
from rgtrain.evaluation.evaluation_stopping import STOP, EvaluationStopped
from rgtrain.machine.devices import num_gpus
from rgtrain.machine.environment import cpu_environment, fix_hash_seed, require_stack
from rgtrain.machine.orphan_cleanup import clean_up_after_this_process
from rgtrain.paths import path_from_here

_DESCRIPTION = """\
Measure a model on the problems of an evaluation file.

{program} --config evaluation/quickstart.yaml --model runs/quickstart/hf max_tokens=64
"""


class EvaluationParser(argparse.ArgumentParser):
    """A parser whose --help also describes the keys of an evaluation file."""

    def format_help(self) -> str:
        """Return argparse's help, then every key with its description, rule and default."""
        from rgtrain.evaluation.evaluation_config import help_text

        return f"{super().format_help()}\n{help_text()}"


def main(arguments: Sequence[str] | None = None, *, program: str) -> None:
    """Run the command.

    Args:
        arguments: The words after the program, by default those of this process.
        program: The program's name in messages.
    """
    try:
        with STOP.listening():
            _evaluate(_parser(program).parse_intermixed_args(arguments))
    except EvaluationStopped as stopped:
        say(f"\n{stopped}; {STOP.outlook()}", file=sys.stderr)
        sys.exit(STOP.exit_code)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = EvaluationParser(
        prog=program,
        description=_DESCRIPTION.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE.yaml", help="the evaluation file")
    parser.add_argument("--model", dest="model_path", metavar="PATH", help="in place of the file's model_path")
    parser.add_argument("--output-dir", metavar="DIR", help="in place of the file's output_dir")
    parser.add_argument("--category", metavar="NAME", help="evaluate only the datasets of this category")
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate only the first N problems of each dataset")
    parser.add_argument("--inspect-log", action="store_true", help="write a log for inspect_ai's viewer too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="in place of the file's own values")
    return parser


def _evaluate(options: argparse.Namespace) -> None:
    require_stack()
    fix_hash_seed()
    clean_up_after_this_process()
    if not num_gpus():
        os.environ.update(cpu_environment())
    # After the hash seed is fixed: these load Reasoning Gym, and would be loaded twice.
    from rgtrain.evaluation.engine_interface import EngineFailed
    from rgtrain.evaluation.evaluation_config import load_config, parse_overrides
    from rgtrain.evaluation.results import ResultsNotWritten
    from rgtrain.evaluation.runner import ScorerFailed, evaluate
    from rgtrain.provenance import mask_secrets
    from rgtrain.reporting.evaluation_report import write_report
    from rgtrain.reporting.inspect_log import write_inspect_log
    from rgtrain.reporting.live_report import live_report

    try:
        with exit_on_config_error(transform=mask_secrets):
            overrides = parse_overrides(options.overrides)
            given = {"model_path": options.model_path, "output_dir": options.output_dir, "limit": options.limit}
            overrides |= {key: value for key, value in given.items() if value is not None}
            file = path_from_here(options.config)
            _unpack_embedded_model(file, overrides)
            config = load_config(file, overrides=overrides, category=options.category)
            if config.endpoint_settings is None:
                require_vllm()
            folder = evaluate(config, command=["python", *sys.argv], live_view=live_report)
            say(f"report: {write_report(folder.path)}")
            if options.inspect_log:
                say(f"log for inspect_ai: {write_inspect_log(folder.path)}")
    except (EngineFailed, ScorerFailed, ResultsNotWritten) as error:
        say(f"error: {mask_secrets(str(error))}; {STOP.outlook()}", file=sys.stderr)
        sys.exit(1)
    except EvaluationStopped:
        raise
    except Exception:
        # A bug, or an error of vLLM. The traceback follows.
        say(f"\nthe evaluation failed; {STOP.outlook()}", file=sys.stderr)
        raise


def _unpack_embedded_model(file: Path, overrides: Mapping[str, Any]) -> None:
    from rgtrain.evaluation.evaluation_config import check_keys
    from rgtrain.problems.evaluation_set import read_evaluation_file

    values = read_evaluation_file(file) | dict(overrides)
    # A mistyped key is refused before the half minute that unpacking takes.
    check_keys(values, path=file)
    unpack_if_missing(values["model_path"])
