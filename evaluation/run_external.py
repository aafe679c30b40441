"""Measure a model on GSM8K, MATH and MMLU-Pro with our system prompt and answer tags, by lm-evaluation-harness.

python evaluation/run_external.py --model runs/quickstart/hf --output-dir outputs/external [--tasks rg_gsm8k rg_math]

Needs requirements-eval.txt. The data comes from the Hugging Face hub, or from NAME.jsonl files in --data-dir.
"""

import argparse
import json
import sys
from pathlib import Path

# Works from any folder, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rgtrain.errors import ConfigError, exit_on_config_error
from rgtrain.evaluation.evaluation_config import KEYS
from rgtrain.evaluation.evaluation_model import ENDPOINT, find_model, short_name
from rgtrain.evaluation.evaluation_progress import say
from rgtrain.evaluation.evaluation_stopping import STOP, EvaluationStopped
from rgtrain.machine.orphan_cleanup import clean_up_after_this_process
from rgtrain.problems.prompts import PromptStyle
from rgtrain.provenance import mask_secrets, masked_values

TASKS = ("rg_gsm8k", "rg_math", "rg_mmlu_pro")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="PATH", help="a folder, hub name, adapter or checkpoint")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--system-prompt", default="DeepSeekZero", help=KEYS["developer_prompt"].description)
    parser.add_argument("--max-tokens", type=int, default=2048, help=KEYS["max_tokens"].description)
    parser.add_argument("--max-model-len", type=int, default=8192, help=KEYS["max_model_len"].description)
    parser.add_argument("--dtype", default=KEYS["dtype"].default, help=KEYS["dtype"].description)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N problems of each task")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="with gsm8k.jsonl, math.jsonl, mmlu_pro.jsonl")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    clean_up_after_this_process()
    STOP.outlook = lambda: "no result is kept; the same command begins again"
    try:
        with STOP.listening(), exit_on_config_error(transform=mask_secrets):
            measure(arguments)
    except EvaluationStopped as stopped:
        say(f"\n{stopped}; {STOP.outlook()}", file=sys.stderr)
        sys.exit(STOP.exit_code)


def measure(arguments: argparse.Namespace) -> None:
    """Run the benchmarks, write their results and print the table."""
    for name in ("max_tokens", "max_model_len", "dtype"):
        KEYS[name].check(getattr(arguments, name))
    style = PromptStyle(arguments.system_prompt)
    model = find_model(arguments.model)
    if model.startswith(ENDPOINT):
        raise ConfigError(f"--model {model!r}: benchmarks need the model itself, not an endpoint; give a folder")
    try:
        from rgtrain.evaluation.external import run_benchmarks
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed: run `.venv/bin/python -m pip install -r requirements-eval.txt`"
        ) from error
    results = run_benchmarks(
        model,
        tasks=arguments.tasks,
        task_folder=Path(__file__).parent / "external",
        style=style,
        max_tokens=arguments.max_tokens,
        max_model_len=arguments.max_model_len,
        dtype=arguments.dtype,
        limit=arguments.limit,
        data_dir=arguments.data_dir,
    )
    print(write_results(results, arguments.output_dir / short_name(model)))


def write_results(results: dict, folder: Path) -> str:
    """Write the numbers and every answer into `folder`; the table of the numbers."""
    from lm_eval.utils import make_table

    folder.mkdir(parents=True, exist_ok=True)
    samples = results.pop("samples", {})
    for task, records in samples.items():
        lines = (json.dumps(record, default=str) for record in records)
        (folder / f"{task}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "results.json").write_text(json.dumps(masked_values(results), indent=2, default=str))
    return f"{make_table(results)}\nresults: {folder}"


if __name__ == "__main__":
    main()
