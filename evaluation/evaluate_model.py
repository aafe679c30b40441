"""Measure a model on the problems of an evaluation file.

python evaluation/evaluate_model.py --config evaluation/quickstart.yaml --model runs/quickstart/hf max_tokens=64
"""

import argparse
import os
import sys
from pathlib import Path

# Works from any folder, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rgtrain.devices import num_gpus
from rgtrain.environment import cpu_environment, fix_hash_seed, require_stack
from rgtrain.errors import input_errors_told
from rgtrain.leftovers import clean_up_after_this_process

_CONTINUES = "what was answered is kept, and the same command continues"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE.yaml", help="the evaluation file")
    parser.add_argument("--model", dest="model_path", metavar="PATH", help="or a checkpoint; in place of the file's")
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
    from rgtrain.evaluating.config import load_config, parse_overrides
    from rgtrain.evaluating.endpoint import EndpointFailed
    from rgtrain.evaluating.runner import evaluate
    from rgtrain.reporting.report import write_report

    with input_errors_told():
        overrides = parse_overrides(arguments.overrides)
        options = {"model_path": arguments.model_path, "output_dir": arguments.output_dir}
        overrides |= {key: value for key, value in options.items() if value is not None}
        config = load_config(arguments.config, overrides=overrides, category=arguments.category)
        try:
            folder = evaluate(config, command=["python", *sys.argv])
        except EndpointFailed as error:
            sys.exit(f"error: {error}; {_CONTINUES}")
        except KeyboardInterrupt:
            sys.exit(f"\ninterrupted; {_CONTINUES}")
        print(f"report: {write_report(folder.path)}")


if __name__ == "__main__":
    main()
