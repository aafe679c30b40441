"""The command that measures a model on external benchmarks by lm-evaluation-harness."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError, exit_on_config_error
from rgtrain.evaluation.evaluation_config import KEYS, parse_overrides, prompt_keys
from rgtrain.evaluation.evaluation_progress import say
from rgtrain.evaluation.evaluation_stopping import STOP, EvaluationStopped
from rgtrain.machine.environment import require_stack
from rgtrain.machine.orphan_cleanup import clean_up_after_this_process
from rgtrain.paths import IS_INSTALLED, SHIPPED

TASKS = ("rg_bbh", "rg_gsm8k", "rg_math", "rg_mmlu_pro")
_DESCRIPTION = """\
Measure a model on Big-Bench Hard, GSM8K, MATH and MMLU-Pro with our system prompt and answer tags, by
lm-evaluation-harness.

{program} --model runs/quickstart/hf --output-dir outputs/external [--tasks rg_gsm8k rg_math]

It needs the packages of requirements-eval.txt (of the wheel: `pip install 'rgtrain[eval]'`). The data comes from the
Hugging Face hub, or from files in --data-dir: gsm8k.jsonl, math.jsonl, mmlu_pro.jsonl, and bbh/SUBTASK.json or .jsonl.
"""


def main(arguments: Sequence[str] | None = None, *, program: str) -> None:
    """Run the command.

    Args:
        arguments: The words after the program, by default those of this process.
        program: The program's name in messages.
    """
    options = _parser(program).parse_args(arguments)
    require_stack()
    clean_up_after_this_process()
    from rgtrain.provenance import mask_secrets

    STOP.outlook = lambda: "no result is kept; the same command begins again"
    try:
        with STOP.listening(), exit_on_config_error(transform=mask_secrets):
            _measure(options)
    except EvaluationStopped as stopped:
        say(f"\n{stopped}; {STOP.outlook()}", file=sys.stderr)
        sys.exit(STOP.exit_code)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=_DESCRIPTION.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="PATH", help="a folder, hub name, adapter or checkpoint")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="the folder of the results")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument(
        "--system-prompt", help=f"{KEYS['developer_prompt'].description}; by default as in training, else DeepSeekZero"
    )
    parser.add_argument("--role", help=f"{KEYS['developer_role'].description}; by default as in training, else system")
    parser.add_argument("--chat-template", metavar="FILE", help=KEYS["chat_template"].description)
    parser.add_argument(
        "--chat-template-kwargs",
        metavar="YAML",
        help="arguments of the chat template, by default as in training",
    )
    parser.add_argument("--max-tokens", type=int, default=2048, help=KEYS["max_tokens"].description)
    parser.add_argument("--max-model-len", type=int, default=8192, help=KEYS["max_model_len"].description)
    parser.add_argument("--dtype", default=KEYS["dtype"].default, help=KEYS["dtype"].description)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N problems of each task or subtask")
    parser.add_argument(
        "--num-fewshot", type=int, metavar="N", help="worked examples in front of each question; by default 3 in rg_bbh"
    )
    parser.add_argument("--no-cot", action="store_true", help="worked examples show their answers without reasoning")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="a folder with the data, in place of the hub")
    return parser


def _measure(options: argparse.Namespace) -> None:
    """Run the benchmarks, write their results and print the table."""
    from rgtrain.evaluation.evaluation_model import ENDPOINT, find_model, short_name
    from rgtrain.problems.prompts import PromptStyle

    for name in ("max_tokens", "max_model_len", "dtype"):
        KEYS[name].check(getattr(options, name))
    if options.num_fewshot is not None and options.num_fewshot < 0:
        raise ConfigError(f"--num-fewshot is {options.num_fewshot}; give a whole number from 0 up")
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit is {options.limit}; give a whole number from 1 up")
    model = find_model(options.model)
    if model.startswith(ENDPOINT):
        raise ConfigError(f"--model is the endpoint {model!r}, but benchmarks need the model itself; give a folder")
    given = {
        "developer_prompt": options.system_prompt,
        "developer_role": options.role,
        "chat_template": options.chat_template,
        "chat_template_kwargs": _yaml(options.chat_template_kwargs),
    }
    # The benchmarks have their own worked examples.
    without = {"num_examples": 0, "examples_seed": 0, "examples": None}
    prompt = prompt_keys(model, without | {key: value for key, value in given.items() if value is not None})
    style = PromptStyle(prompt["developer_prompt"], prompt["developer_role"])
    # A function needs a problem of a dataset, so it is refused here.
    style.text()
    for note in prompt["prompt_notes"]:
        say(note)
    try:
        from rgtrain.evaluation.external import run_benchmarks
    except ModuleNotFoundError as error:
        packages = "'rgtrain[eval]'" if IS_INSTALLED else "-r requirements-eval.txt"
        raise ConfigError(f"{error.name} is not installed; run `{sys.executable} -m pip install {packages}`") from error
    results = run_benchmarks(
        model,
        tasks=options.tasks,
        task_folder=SHIPPED / "evaluation" / "external",
        style=style,
        max_tokens=options.max_tokens,
        max_model_len=options.max_model_len,
        dtype=KEYS["dtype"].rule.read(options.dtype),
        chat_template=prompt["chat_template"],
        chat_template_kwargs=prompt["chat_template_kwargs"],
        limit=options.limit,
        data_dir=options.data_dir,
        num_fewshot=options.num_fewshot,
        chain_of_thought=not options.no_cot,
    )
    settings = {name: value for name, value in prompt.items() if name not in without}
    print(_write_results({**results, "prompt": settings}, options.output_dir / short_name(model)))


def _yaml(text: str | None) -> Any:
    return None if text is None else parse_overrides([f"chat_template_kwargs={text}"])["chat_template_kwargs"]


def _write_results(results: dict[str, Any], folder: Path) -> str:
    """Write the numbers and every answer into `folder`, and return the table of the numbers."""
    from rgtrain.provenance import masked_values
    from rgtrain.reporting.benchmark_table import benchmark_figures, benchmark_table

    folder.mkdir(parents=True, exist_ok=True)
    samples = results.pop("samples", {})
    figures = benchmark_figures(samples)
    results["figures"] = [dataclasses.asdict(figure) for figure in figures]
    for task, records in samples.items():
        lines = (json.dumps(record, default=str) for record in records)
        (folder / f"{task}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "results.json").write_text(json.dumps(masked_values(results), indent=2, default=str))
    return f"{benchmark_table(figures)}\n\n{_examples_line(results['examples'])}\nresults: {folder}"


def _examples_line(examples: dict[str, dict[str, Any]]) -> str:
    """Return a line with the number of worked examples of each benchmark, because figures depend on it."""
    shown = [
        f"{task} {one['num_examples']}{'' if one.get('chain_of_thought', True) else ' without reasoning'}"
        for task, one in examples.items()
    ]
    return f"worked examples: {', '.join(shown)}"
