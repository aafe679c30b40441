"""Compare curriculum policies by training a real model with each of them.

python benchmarks/curriculum_training.py

Trains configs/curriculum/chain_sum.yaml (or --experiment) with each policy and seed on the same number of samples.
`uniform` is training without a curriculum. Prints the final held-out accuracy by level as means over the seeds with
standard errors, and plots the accuracy over the steps. Finished runs are not repeated, nor are runs whose curves are in
curves.json already. The plot can therefore be drawn on another machine.
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

from record import RESULTS, read_record, write_record

from rgtrain.machine.devices import num_gpus
from rgtrain.machine.environment import fix_hash_seed
from rgtrain.paths import PROJECT_ROOT
from rgtrain.stats import clustered_standard_error
from rgtrain.tables import text_table

POLICIES = ("frontier", "threshold", "uniform")
# Several runs share a GPU if vLLM gets a fixed amount of memory instead of measuring the free memory.
SHARING_A_GPU = (
    "actor_rollout_ref.rollout.gpu_memory_utilization=0.05",
    "+actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=2000000000",
    "reward.scorer.num_workers=2",
)
# Accuracies of a run's validations, by step and then by level.
Curve = dict[int, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", default=RESULTS / "curriculum_training", type=Path, help="the folder for the result (runs: its work/)"
    )
    parser.add_argument("--experiment", default="curriculum/chain_sum", help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(default: 1 2 3)")
    parser.add_argument("--at-once", type=int, default=1, help="number of runs side by side on one GPU")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further settings of train_grpo.py")
    arguments = parser.parse_intermixed_args()
    (arguments.out / "work").mkdir(parents=True, exist_ok=True)
    kept = arguments.out / "curves.json"
    curves = read(kept) if kept.is_file() else {}
    settings = [setting for setting in product(POLICIES, arguments.seeds) if setting not in curves]
    if settings:
        with ThreadPoolExecutor(arguments.at_once) as pool:
            curves |= zip(settings, pool.map(lambda setting: curve_of(setting, arguments), settings), strict=True)
        keep(kept, curves, arguments)
    print(f"\n{table(curves)}")
    plot(curves, PROJECT_ROOT / "benchmarks" / "plots" / "curriculum_training.png")


def keep(path: Path, curves: Mapping[tuple[str, int], Curve], arguments: argparse.Namespace) -> None:
    rows = [{"policy": policy, "seed": seed, "curve": curve} for (policy, seed), curve in curves.items()]
    settings = {"experiment": arguments.experiment, "at_once": arguments.at_once, "overrides": arguments.overrides}
    write_record(path, settings=settings, raw={"validations": rows}, derived={"accuracy": final_accuracies(curves)})


def read(path: Path) -> dict[tuple[str, int], Curve]:
    """Return the curves in a curves.json, with the steps as numbers again."""
    return {
        (row["policy"], row["seed"]): {int(step): levels for step, levels in row["curve"].items()}
        for row in read_record(path)["raw"]["validations"]
    }


def curve_of(setting: tuple[str, int], arguments: argparse.Namespace) -> Curve:
    """Return the validations of the run with this policy and seed, training it unless it is finished."""
    policy, seed = setting
    run_dir = arguments.out.absolute() / "work" / f"{policy}_{seed}"
    done = run_dir / "done"
    if not done.exists():
        command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-name", arguments.experiment]
        command += [f"run_dir={run_dir}", f"seed={seed}", f"data.curriculum.policy.name={policy}"]
        command += SHARING_A_GPU if num_gpus() and arguments.at_once > 1 else ()
        with (arguments.out / "work" / f"{policy}_{seed}.log").open("w") as log:
            subprocess.run([*command, *arguments.overrides], stdout=log, stderr=log, check=True)
        done.touch()
        print(f"{policy}, seed {seed}: done", flush=True)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    curve = {step["step"]: by_level(step) for step in map(json.loads, lines)}
    return {step: levels for step, levels in curve.items() if levels}


def by_level(step: Mapping[str, float]) -> dict[str, float]:
    """Return the validation accuracies in a line of metrics, by the level's number."""
    names = [name for name in step if name.startswith("val-core/") and "/acc/" in name]
    return {name.split("/")[1].rpartition("_level_")[2]: step[name] for name in sorted(names)}


def final_accuracies(curves: Mapping[tuple[str, int], Curve]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the mean held-out accuracies and standard errors before training and at each policy's end, by level."""
    first = next(iter(curves.values()))
    levels = list(first[min(first)])
    accuracies = {}
    for name, at in (("before", min), *((policy, max) for policy in POLICIES)):
        runs = [curve[at(curve)] for (policy, _), curve in curves.items() if name in ("before", policy)]
        if runs:
            of_levels = {f"level {level}": _mean_and_error([run[level] for run in runs]) for level in levels}
            accuracies[name] = of_levels | {"all": _mean_and_error([fmean(run.values()) for run in runs])}
    return accuracies


def table(curves: Mapping[tuple[str, int], Curve]) -> str:
    """Return a table of the held-out accuracies in percent before training and at the end of each policy."""
    accuracies = final_accuracies(curves)
    rows = [
        [name, *(f"{100 * mean:.1f} ± {100 * error:.1f}" for mean, error in values.values())]
        for name, values in accuracies.items()
    ]
    return text_table(["policy", *next(iter(accuracies.values()))], rows)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    return fmean(values), clustered_standard_error(values, clusters=range(len(values)))


def plot(curves: Mapping[tuple[str, int], Curve], path: Path) -> None:
    """Plot the mean accuracy over all levels by step, with a thin line per seed and a thick line for their mean."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed, so no plot was drawn; run the command again on a machine that has it")
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
