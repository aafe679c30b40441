"""Part 8: does training carry over to GSM8K, MATH and Big-Bench Hard? It was not run.

`python evidence/run.py outside --model PATH` trains the arm `accuracy` of each category and keeps the models. Then

    python evidence/parts/outside.py --model PATH --data DIR

measures the model and every trained one by `evaluation/run_external.py`, one after the other on the visible GPU, with
the system prompt of the training. DIR has gsm8k.jsonl, math.jsonl and bbh/SUBTASK.json or .jsonl; without `--data`, the
data comes from the Hugging Face hub. Each model's results.json and answers are in RUNS/MODEL/outside/NAME. The same
command continues.
"""

import argparse
import subprocess
import sys
from pathlib import Path

# The script works from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evidence.commands import EXPORTED
from evidence.training_plan import ModelPlan, Programme, Training, read_programme
from rgtrain.errors import ConfigError, exit_on_config_error
from rgtrain.paths import PROJECT_ROOT

TASKS = ("rg_gsm8k", "rg_math", "rg_bbh")
_MAX_TOKENS = 512


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the trainings whose models are measured: each category with the accuracy as the reward, by seed."""
    return [
        programme.training(
            model,
            task=f"outside_{category}",
            arm="accuracy",
            seed=seed,
            mixture=programme.mixture(category),
            evaluated=[category],
            keeps_checkpoint=True,
        )
        for seed in model.seeds
        for category in programme.categories
    ]


def command(model: ModelPlan, folder: Path, output: Path, *, data: Path | None) -> list[str]:
    """Return the command that measures a model.

    Args:
        model: The settings of the model, whose system prompt is used.
        folder: The model's folder.
        output: The folder of its results.
        data: The folder of the data; None for the hub.

    Returns:
        The words of the command, which runs in the project's root.
    """
    words = [sys.executable, "evaluation/run_external.py", "--model", str(folder), "--output-dir", str(output)]
    words += ["--tasks", *TASKS, "--max-tokens", str(_MAX_TOKENS)]
    words += ["--system-prompt", model.settings["data.prompt.system_prompt"], "--role", "system"]
    return [*words, "--data-dir", str(data)] if data else words


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python evidence/parts/outside.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, type=Path, metavar="PATH", help="the folder of the model")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder with the data, in place of the hub")
    parser.add_argument("--runs", type=Path, default=PROJECT_ROOT / "runs" / "evidence", help="the folder of the runs")
    arguments = parser.parse_args()
    with exit_on_config_error():
        if arguments.data and not arguments.data.is_dir():
            raise ConfigError(
                f"--data {arguments.data} is not a folder; give the folder with gsm8k.jsonl and the others"
            )
        programme = read_programme()
        model = programme.model_of(arguments.model)
        runs = arguments.runs.absolute() / model.name
        folders = {"base": arguments.model.absolute()}
        folders |= {one.name: runs / one.name / EXPORTED for one in trainings(programme, model)}
        if missing := [name for name, folder in folders.items() if not folder.is_dir()]:
            raise ConfigError(
                f"{len(missing)} models are missing, such as {missing[0]}; run evidence/run.py outside first"
            )
    for name, folder in folders.items():
        output = runs / "outside" / name
        if not list(output.glob("*/results.json")):
            print(f"measuring {name}", flush=True)
            data = arguments.data.absolute() if arguments.data else None
            subprocess.run(command(model, folder, output, data=data), cwd=PROJECT_ROOT, check=True)


if __name__ == "__main__":
    main()
