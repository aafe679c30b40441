"""The quickstart over several seeds, every one shown: python benchmarks/quickstart_seeds.py [--seeds 1 2 3]

Runs what is not finished yet under runs/quickstart_seed_N and prints a Markdown table of the held-out accuracies.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rgtrain.paths import PROJECT_ROOT
from rgtrain.provenance import commit
from rgtrain.quickstart import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    seeds = parser.parse_args().seeds
    results = {}
    for seed in seeds:
        run_dir = PROJECT_ROOT / "runs" / f"quickstart_seed_{seed}"
        run(run_dir=run_dir, overrides=[f"seed={seed}"])
        results[seed] = _summaries(run_dir)
    print(f"\n{_table(results)}\n\n{_provenance(seeds)}")


def _summaries(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summaries of base and trained model."""
    paths = {"hf_step" in path.parent.name: path for path in run_dir.glob("evaluation/*/summary.json")}
    return json.loads(paths[False].read_text()), json.loads(paths[True].read_text())


def _table(results: dict[int, tuple[dict[str, Any], dict[str, Any]]]) -> str:
    names = [dataset["dataset"] for dataset in next(iter(results.values()))[0]["datasets"]]
    lines = [f"| seed | {' | '.join(names)} | overall | points |", f"|{'---|' * (len(names) + 3)}"]
    gains = []
    for seed, (base, trained) in results.items():
        cells = [_change(*pair) for pair in zip(base["datasets"], trained["datasets"], strict=True)]
        gains.append(100 * (trained["overall"]["strict_accuracy"] - base["overall"]["strict_accuracy"]))
        overall = _change(base["overall"], trained["overall"])
        lines.append(f"| {seed} | {' | '.join(cells)} | {overall} | {gains[-1]:+.1f} |")
    if len(gains) > 1:
        spread = f"{fmean(gains):+.1f} (sd {stdev(gains):.1f})"
        lines.append(f"| mean | {' | ' * len(names)} | {spread} |")
    return "\n".join(lines)


def _change(base: dict[str, Any], trained: dict[str, Any]) -> str:
    return " → ".join(
        f"{100 * part['strict_accuracy']:.1f} ± {100 * part['strict_accuracy_error']:.1f}" for part in (base, trained)
    )


def _provenance(seeds: list[int]) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("verl", "torch", "transformers", "reasoning-gym"))
    seeds_given = " ".join(map(str, seeds))
    return f"`python benchmarks/quickstart_seeds.py --seeds {seeds_given}` at {commit()}, {versions}"


if __name__ == "__main__":
    main()
