"""Measure how the time of a training step grows with the batch and with the response length.

python benchmarks/step_scaling.py --model models/SmolLM2-135M-Instruct

Prints a table and draws a plot. All responses of a setting have the same length. The batch grows with 64 tokens per
response, and the length grows with 256 responses. A setting with a result is not run again.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import COMMAND_VARIABLE, RESULTS, command, read_record

from rgtrain.machine.environment import fix_hash_seed
from rgtrain.paths import PROJECT_ROOT
from rgtrain.tables import text_table

GROUP_SIZE = 8
BY_BATCH = [(responses, 64) for responses in (64, 256, 1024)]
BY_LENGTH = [(256, length) for length in (64, 256, 1024)]
PLOT = PROJECT_ROOT / "benchmarks" / "plots" / "step_scaling.png"
PARTS = ("generate_s", "update_s", "sync_weights_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face model folder")
    parser.add_argument("--out", default=RESULTS / "step_scaling", type=Path, help="the folder for the results")
    parser.add_argument("--steps", type=int, default=9, help="training steps (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="steps left out of the medians (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further settings of train_grpo.py")
    arguments = parser.parse_intermixed_args()
    (arguments.out / "work").mkdir(parents=True, exist_ok=True)
    settings = list(dict.fromkeys(BY_BATCH + BY_LENGTH))
    medians = {setting: measured(setting, arguments) for setting in settings}
    rows = [[*map(str, setting), *_cells(medians[setting])] for setting in settings]
    print(text_table(["responses", "tokens", "step_s", *PARTS, "new_tokens_per_s"], rows))
    plot(medians, PLOT)


def measured(setting: tuple[int, int], arguments: argparse.Namespace) -> dict[str, float]:
    """Return the median times of a step for a number of responses and a length, measured by sides/ours.py."""
    num_responses, length = setting
    result = arguments.out / f"{num_responses}x{length}.json"
    if not result.is_file():
        words = [sys.executable, str(PROJECT_ROOT / "benchmarks/sides/ours.py"), "--model", arguments.model]
        words += ["--batch-size", str(num_responses // GROUP_SIZE), "--group-size", str(GROUP_SIZE), "--ignore-eos"]
        words += ["--max-tokens", str(length), "--steps", str(arguments.steps), "--warmup", str(arguments.warmup)]
        words += ["--out", str(result), "data.prompt.num_examples=0", *arguments.overrides]
        environment = os.environ | {COMMAND_VARIABLE: command()}
        with (arguments.out / "work" / f"{result.stem}.log").open("w") as log:
            subprocess.run(words, stdout=log, stderr=log, check=True, env=environment)
    return read_record(result)["derived"]["medians"]


def _cells(medians: dict[str, float]) -> list[str]:
    return [f"{medians[name]:.3g}" for name in ("step_s", *PARTS, "new_tokens_per_s")]


def plot(medians: dict[tuple[int, int], dict[str, float]], path: Path) -> None:
    """Plot the parts of a step as stacked bars, by batch on the left and by response length on the right."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed, so no plot was drawn; run the command again on a machine that has it")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    _bars(axes[0], BY_BATCH, medians, "responses of 64 tokens", 0)
    _bars(axes[1], BY_LENGTH, medians, "tokens of each of 256 responses", 1)
    axes[0].set_ylabel("seconds per step (median)")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def _bars(axis: Any, settings: list[tuple[int, int]], medians: dict, title: str, varied: int) -> None:
    labels = [str(setting[varied]) for setting in settings]
    below = [0.0] * len(settings)
    for name in (*PARTS, "other"):
        heights = [_part(medians[setting], name) for setting in settings]
        axis.bar(labels, heights, bottom=below, label=name.removesuffix("_s").replace("_", " "), width=0.6)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    for label, height in zip(labels, below, strict=True):
        axis.annotate(f"{height:.2g}", (label, height), ha="center", va="bottom")
    axis.set_xlabel(title)
    axis.margins(y=0.08)
    axis.spines[["top", "right"]].set_visible(False)


def _part(medians: dict[str, float], name: str) -> float:
    if name != "other":
        return medians[name]
    return max(0.0, medians["step_s"] - sum(medians[part] for part in PARTS))


if __name__ == "__main__":
    fix_hash_seed()
    main()
