"""Measure a model on the problems of an evaluation file.

python evaluation/evaluate_model.py --config evaluation/quickstart.yaml --model runs/quickstart/hf max_tokens=64
"""

import argparse
import os
import sys
from pathlib import Path

# Works from any folder, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rgtrain.errors import exit_on_config_error
from rgtrain.evaluation.evaluation_progress import say
from rgtrain.evaluation.evaluation_stopping import STOP, EvaluationStopped
from rgtrain.machine.devices import num_gpus
from rgtrain.machine.environment import cpu_environment, fix_hash_seed, require_stack
from rgtrain.machine.orphan_cleanup import clean_up_after_this_process


class Parser(argparse.ArgumentParser):
    """A parser whose --help also describes the keys of an evaluation file."""

    def format_help(self) -> str:
        require_stack()
        # Only now: it takes a second.
        from rgtrain.evaluation.evaluation_config import help_text

        return f"{super().format_help()}\n{help_text()}"


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE.yaml", help="the evaluation file")
    parser.add_argument("--model", dest="model_path", metavar="PATH", help="in place of the file's model_path")
    parser.add_argument("--output-dir", metavar="DIR", help="in place of the file's output_dir")
    parser.add_argument("--category", metavar="NAME", help="evaluate only the datasets of this category")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="in place of the file's own values")
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = parse_arguments()
    require_stack()
    fix_hash_seed()
    clean_up_after_this_process()
    if not num_gpus():
        os.environ.update(cpu_environment())
    # After the hash seed is fixed: these load Reasoning Gym, and would be loaded twice.
    from rgtrain.evaluation.engine_interface import EngineFailed
    from rgtrain.evaluation.evaluation_config import load_config, parse_overrides
    from rgtrain.evaluation.results import ResultsNotWritten
    from rgtrain.evaluation.runner import evaluate
    from rgtrain.provenance import mask_secrets
    from rgtrain.reporting.evaluation_report import write_report

    try:
        with exit_on_config_error(transform=mask_secrets):
            overrides = parse_overrides(arguments.overrides)
            options = {"model_path": arguments.model_path, "output_dir": arguments.output_dir}
            overrides |= {key: value for key, value in options.items() if value is not None}
            config = load_config(arguments.config, overrides=overrides, category=arguments.category)
            folder = evaluate(config, command=["python", *sys.argv])
            say(f"report: {write_report(folder.path)}")
    except (EngineFailed, ResultsNotWritten) as error:
        say(f"error: {mask_secrets(str(error))}; {STOP.outlook()}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    try:
        with STOP.listening():
            main()
    except EvaluationStopped as stopped:
        say(f"\n{stopped}; {STOP.outlook()}", file=sys.stderr)
        sys.exit(STOP.exit_code)
