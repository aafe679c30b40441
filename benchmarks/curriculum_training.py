"""What a curriculum is worth to a real model: python benchmarks/curriculum_training.py --out results/curricula

Trains configs/curriculum/chain_sum.yaml (or --experiment) with each policy and seed, on equally many samples:
`frontier`, `threshold`, and `uniform`, which is training without a curriculum. Prints the held-out accuracy by level at
the end, means over the seeds with standard errors, and draws it over the steps. Runs that are there are not repeated;
nor those whose curves a curves.json in the folder holds, so that the plot can be drawn elsewhere.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import fmean

from rgtrain.machine.devices import num_gpus
from rgtrain.machine.environment import fix_hash_seed
from rgtrain.paths import PROJECT_ROOT
from rgtrain.provenance import commit
from rgtrain.stats import clustered_standard_error
from rgtrain.tables import percent, text_table

POLICIES = ("frontier", "threshold", "uniform")
# Several runs on one GPU: vLLM, told how much memory to take, does not measure what the others leave.
SHARING_A_GPU = (
    "actor_rollout_ref.rollout.gpu_memory_utilization=0.05",
    "+actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=2000000000",
    "reward.scorer.num_workers=2",
)
# Accuracies of a run's validations: by step, then by level.
Curve = dict[int, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="the folder for runs, table and plot")
    parser.add_argument("--experiment", default="curriculum/chain_sum")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side on one GPU")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further settings of train_grpo.py")
    arguments = parser.parse_intermixed_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / "curves.json"
    curves = read(kept) if kept.is_file() else {}
    settings = [setting for setting in product(POLICIES, arguments.seeds) if setting not in curves]
    with ThreadPoolExecutor(arguments.at_once) as pool:
        curves |= zip(settings, pool.map(lambda setting: curve_of(setting, arguments), settings), strict=True)
    kept.write_text(json.dumps([[*setting, curve] for setting, curve in curves.items()]) + "\n")
    print(f"\n{table(curves)}\n\ncommit {commit()}; {' '.join(sys.argv)}")
    plot(curves, arguments.out / "accuracy.png")


def read(path: Path) -> dict[tuple[str, int], Curve]:
    """The curves of a curves.json; JSON makes text of the steps."""
    return {
        (policy, seed): {int(step): levels for step, levels in curve.items()}
        for policy, seed, curve in json.loads(path.read_text())
    }


def curve_of(setting: tuple[str, int], arguments: argparse.Namespace) -> Curve:
    """The validations of the run with this policy and seed, which is trained unless it is there."""
    policy, seed = setting
    run_dir = arguments.out.absolute() / f"{policy}_{seed}"
    done = run_dir / "done"
    if not done.exists():
        command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-name", arguments.experiment]
        command += [f"run_dir={run_dir}", f"seed={seed}", f"data.curriculum.policy.name={policy}"]
        command += SHARING_A_GPU if num_gpus() and arguments.at_once > 1 else ()
        with (arguments.out / f"{policy}_{seed}.log").open("w") as log:
            subprocess.run([*command, *arguments.overrides], stdout=log, stderr=log, check=True)
        done.touch()
        print(f"{policy}, seed {seed}: done", flush=True)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    curve = {step["step"]: by_level(step) for step in map(json.loads, lines)}
    return {step: levels for step, levels in curve.items() if levels}


def by_level(step: Mapping[str, float]) -> dict[str, float]:
    """Validation accuracies of a line of metrics, by the level's number."""
    names = [name for name in step if name.startswith("val-core/") and "/acc/" in name]
    return {name.split("/")[1].rpartition("_level_")[2]: step[name] for name in sorted(names)}


def table(curves: Mapping[tuple[str, int], Curve]) -> str:
    """Per policy the held-out accuracy in percent before training and at the end, of each level and of all."""
    first = next(iter(curves.values()))
    levels = list(first[min(first)])
    rows = []
    for name, at in (("before", min), *((policy, max) for policy in POLICIES)):
        runs = [curve[at(curve)] for (policy, _), curve in curves.items() if name in ("before", policy)]
        cells = [_mean_and_error([run[level] for run in runs]) for level in levels]
        rows.append([name, *cells, _mean_and_error([fmean(run.values()) for run in runs])])
    return text_table(["policy", *(f"level {level}" for level in levels), "all"], rows)


def _mean_and_error(values: Sequence[float]) -> str:
    error = clustered_standard_error(values, clusters=range(len(values)))
    return percent(fmean(values), error)


def plot(curves: Mapping[tuple[str, int], Curve], path: Path) -> None:
    """The mean accuracy over all levels by step: a thin line a seed, a thick one for their mean."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot; run the command again where it is")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 3.8), constrained_layout=True)
    for number, policy in enumerate(POLICIES):
        runs = [
            {step: 100 * fmean(at.values()) for step, at in curve.items()}
            for (p, _), curve in curves.items()
            if p == policy
        ]
        steps = sorted(set.intersection(*map(set, runs)))
        for run in runs:
            axis.plot(steps, [run[step] for step in steps], color=f"C{number}", linewidth=0.8, alpha=0.5)
        means = [fmean(run[step] for run in runs) for step in steps]
        axis.plot(steps, means, color=f"C{number}", linewidth=2, label=policy)
    axis.set_xlabel("step")
    axis.set_ylabel("held-out accuracy, all levels (%)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    fix_hash_seed()
    main()
