"""How a step of this project grows with the batch and with the response length: a table, and a plot beside it.

python benchmarks/step_scaling.py --model models/SmolLM2-135M-Instruct --out results/scaling

Responses have exactly the length asked for; the batch grows at 64 tokens, the length at 256 responses. A setting whose
result is there is not run again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rgtrain.machine.environment import fix_hash_seed
from rgtrain.paths import PROJECT_ROOT
from rgtrain.tables import text_table

GROUP_SIZE = 8
BY_BATCH = [(responses, 64) for responses in (64, 256, 1024)]
BY_LENGTH = [(256, length) for length in (64, 256, 1024)]
PARTS = ("generate_s", "update_s", "sync_weights_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face model folder")
    parser.add_argument("--out", required=True, type=Path, help="the folder for the results")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further settings of train_grpo.py")
    arguments = parser.parse_intermixed_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = list(dict.fromkeys(BY_BATCH + BY_LENGTH))
    medians = {setting: measured(setting, arguments) for setting in settings}
    rows = [[*map(str, setting), *_cells(medians[setting])] for setting in settings]
    print(text_table(["responses", "tokens", "step_s", *PARTS, "new_tokens_per_s"], rows))
    plot(medians, arguments.out / "scaling.png")


def measured(setting: tuple[int, int], arguments: argparse.Namespace) -> dict[str, float]:
    """The medians of a step with so many responses of so many tokens, as sides/ours.py measures them."""
    num_responses, length = setting
    result = arguments.out / f"{num_responses}x{length}.json"
    if not result.is_file():
        command = [sys.executable, str(PROJECT_ROOT / "benchmarks/sides/ours.py"), "--model", arguments.model]
        command += ["--batch-size", str(num_responses // GROUP_SIZE), "--group-size", str(GROUP_SIZE), "--ignore-eos"]
        command += ["--max-tokens", str(length), "--steps", str(arguments.steps), "--warmup", str(arguments.warmup)]
        command += ["--out", str(result), "data.prompt.num_examples=0", *arguments.overrides]
        with result.with_suffix(".log").open("w") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True)
    return json.loads(result.read_text())["medians"]


def _cells(medians: dict[str, float]) -> list[str]:
    return [f"{medians[name]:.3g}" for name in ("step_s", *PARTS, "new_tokens_per_s")]


def plot(medians: dict[tuple[int, int], dict[str, float]], path: Path) -> None:
    """Stacked parts of a step, over the batch on the left and over the response length on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    _bars(axes[0], BY_BATCH, medians, "responses of 64 tokens", 0)
    _bars(axes[1], BY_LENGTH, medians, "tokens of each of 256 responses", 1)
    axes[0].set_ylabel("seconds a step (median)")
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
