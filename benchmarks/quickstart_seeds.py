"""Run the quickstart with several seeds and publish each result.

python benchmarks/quickstart_seeds.py --seeds 1 2 3
python benchmarks/quickstart_seeds.py --seeds 1 2 3 --runs FOLDER --publish-only

Runs that are not finished yet continue in RUNS/quickstart_seed_N. --publish-only reads finished runs and starts none.
Prints a Markdown table of the held-out accuracies.
"""

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import yaml
from record import PACKAGES, RESULTS, command, machine, write_record

from rgtrain.paths import PROJECT_ROOT
from rgtrain.quickstart import run
from rgtrain.stats import share_interval
from rgtrain.tables import percent

# The tables show accuracies and their intervals. The summaries of both models hold much more.
KEPT = (
    "num_problems",
    "num_answers",
    "strict_accuracy",
    "strict_accuracy_error",
    "strict_accuracy_interval",
    "effective_sample_size",
)
METRICS = {
    "step": "step",
    "reward": "critic/rewards/mean",
    "response_length": "response_length/mean",
    "step_s": "timing_s/step",
    "generate_s": "timing_s/gen",
    "update_s": "timing_s/update_actor",
    "sync_weights_s": "timing_s/update_weights",
    "rollout_gap": "actor/rollout_gap/mean",
    "grad_norm": "actor/grad_norm",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(default: 1 2 3)")
    parser.add_argument("--runs", type=Path, default=PROJECT_ROOT / "runs", help="the folder of the runs")
    parser.add_argument("--publish-only", action="store_true", help="read finished runs; start none")
    parser.add_argument("--out", type=Path, help="the folder for the results (default: quickstart_cpu or _gpu)")
    arguments = parser.parse_args()
    seconds_by_seed = {}
    for seed in arguments.seeds:
        run_dir = arguments.runs / f"quickstart_seed_{seed}"
        started = time.monotonic()
        if not arguments.publish_only:
            run(run_dir=run_dir, overrides=[f"seed={seed}"])
            seconds_by_seed[seed] = time.monotonic() - started
        config = yaml.safe_load((run_dir / "config.yaml").read_text())
        device = "cpu" if config["trainer"]["device"] == "cpu" else "gpu"
        out = arguments.out or RESULTS / f"quickstart_{device}"
        publish(seed, run_dir, out / f"seed_{seed}.json", seeds=arguments.seeds, command_s=seconds_by_seed.get(seed))
    print(f"\n{table(read_results(out))}")


def publish(seed: int, run_dir: Path, path: Path, *, seeds: Sequence[int], command_s: float | None) -> None:
    """Write the result of one finished run.

    Args:
        seed: The run's seed.
        run_dir: The run's folder, with both evaluations.
        path: The file to write.
        seeds: All seeds of the command.
        command_s: Seconds that the whole command took; None if it did not run now.
    """
    summaries = summaries_of(run_dir)
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    start = json.loads((run_dir / "provenance.jsonl").read_text().splitlines()[0])
    metrics = {name: [step.get(key) for step in steps] for name, key in METRICS.items()}
    accuracy = {name: summary["overall"]["strict_accuracy"] for name, summary in summaries.items()}
    raw = {
        "summaries": {name: compact_summary(summary) for name, summary in summaries.items()},
        "steps": metrics,
        "validations": [
            {"step": step["step"]} | {name: value for name, value in step.items() if name.startswith("val-core/")}
            for step in steps
            if any(name.startswith("val-core/") for name in step)
        ],
    }
    derived = {
        "points": 100 * (accuracy["trained"] - accuracy["base"]),
        "median_step_s": median(metrics["step_s"][3:] or metrics["step_s"]),
        "median_rollout_gap": median(value for value in metrics["rollout_gap"] if value is not None),
        "steps_s": steps[-1]["time"] - steps[0]["time"] + steps[0]["timing_s/step"],
        "evaluation_s": {name: sum(summary["seconds"].values()) for name, summary in summaries.items()},
        **({"command_s": command_s} if command_s else {}),
    }
    envelope = {
        # The command of the benchmark, which started the run's commands.
        "command": f"python benchmarks/quickstart_seeds.py --seeds {' '.join(map(str, seeds))}",
        "training_command": command(shlex.split(start["command"])[1:]),
    }
    if command_s is None:
        envelope |= envelope_of_start(start)
    write_record(path, settings={"seed": seed, "steps": len(steps)}, raw=raw, derived=derived, envelope=envelope)


def envelope_of_start(start: dict[str, Any]) -> dict[str, Any]:
    """Return commit, date, machine and versions of an earlier start, given its line of provenance.jsonl."""
    packages = {name.replace("_", "-"): version for name, version in start["packages"].items()}
    return {
        "commit": start["commit"] + ("-dirty" if start["uncommitted_changes"] else ""),
        "date": start["time"][:10],
        # The load is that of another time.
        "machine": machine() | {"load": None},
        "versions": {"python": start["python"]} | {name: packages[name] for name in PACKAGES if name in packages},
    }


def summaries_of(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The summaries of the base and of the trained model."""
    paths = {"hf_step" in path.parent.name: path for path in run_dir.glob("evaluation/*/summary.json")}
    return {name: json.loads(paths[key].read_text()) for name, key in (("base", False), ("trained", True))}


def compact_summary(summary: dict[str, Any]) -> dict[str, Any]:
    datasets = [{"dataset": row["dataset"]} | {name: row[name] for name in KEPT} for row in summary["datasets"]]
    overall = {name: summary["overall"][name] for name in KEPT}
    names = ("model", "versions", "commit", "seconds")
    return {name: summary[name] for name in names} | {"overall": overall, "datasets": datasets}


def read_results(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("seed_*.json"), key=lambda path: int(path.stem.rpartition("_")[2]))
    return [json.loads(path.read_text()) for path in paths]


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table: percent solved before and after, by seed."""
    names = [row["dataset"] for row in results[0]["raw"]["summaries"]["base"]["datasets"]]
    lines = [f"| seed | {' | '.join(names)} | overall | points |", f"|{'---|' * (len(names) + 3)}"]
    gains = []
    for result in results:
        base, trained = (result["raw"]["summaries"][name] for name in ("base", "trained"))
        cells = [_change(*pair) for pair in zip(base["datasets"], trained["datasets"], strict=True)]
        gains.append(result["derived"]["points"])
        overall = _change(base["overall"], trained["overall"])
        lines.append(f"| {result['settings']['seed']} | {' | '.join(cells)} | {overall} | {gains[-1]:+.1f} |")
    if len(gains) > 1:
        lines.append(f"| mean | {' | ' * len(names)} | {fmean(gains):+.1f} (sd {stdev(gains):.1f}) |")
    return "\n".join(lines)


def _change(base: dict[str, Any], trained: dict[str, Any]) -> str:
    shown = []
    for part in (base, trained):
        # Results of older versions have one answer to each question.
        size = part.get("effective_sample_size", part["num_problems"])
        shown.append(percent(part["strict_accuracy"], share_interval(part["strict_accuracy"], num_independent=size)))
    return " → ".join(shown)


if __name__ == "__main__":
    main()
