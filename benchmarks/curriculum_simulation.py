"""Count the answers that each curriculum policy needs to teach a simulated learner the top level.

python benchmarks/curriculum_simulation.py      (pure Python, minutes)

Prints a table and draws a plot. If there is a result already, no simulation runs.

The learner succeeds at level l with probability 1 / (1 + exp(-slope (skill - l))). At the start that is 1/2 for level
0. A group of 8 answers with mean success m adds RATE * m (1 - m) to the skill, which grows with the group's advantages
in GRPO. The learner has learned the top level when it succeeds there with probability 0.7. `oracle` always draws the
level whose success probability is closest to 1/2. It uses the learner's true skill, so it is a bound that no policy can
reach.
"""

import argparse
import math
import random
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from record import RESULTS, ROOT, read_record, write_record

from rgtrain.curriculum.policies import Frontier, Policy, Threshold, Uniform
from rgtrain.tables import text_table

NUM_LEVELS = 10
BATCH_SIZE = 32
GROUP_SIZE = 8
RATE = 0.02
LEARNED = 0.7
SLOPES = (1, 2, 3, 4, 5, 6)
LIMIT = 60_000

POLICIES: dict[str, Callable[[], Policy]] = {
    "frontier": lambda: Frontier(num_levels=NUM_LEVELS),
    # The published settings for spell_backward and for knights_knaves.
    "threshold": lambda: Threshold(num_levels=NUM_LEVELS, window=20, raise_above=0.7, lower_below=0.1),
    "threshold, 2560": lambda: Threshold(num_levels=NUM_LEVELS, window=2560, raise_above=0.7, lower_below=0.3),
    "uniform": lambda: Uniform(num_levels=NUM_LEVELS),
}


class Learner:
    """A simulated learner with a skill that grows."""

    def __init__(self, slope: float):
        self.slope = slope
        self.skill = 0.0

    def success(self, level: int) -> float:
        return 1 / (1 + math.exp(-self.slope * (self.skill - level)))


class Oracle(Uniform):
    """Draw the level closest to 1/2 by the learner's true skill."""

    def __init__(self, learner: Learner):
        super().__init__(num_levels=NUM_LEVELS)
        self._learner = learner

    def draw(self, rng: random.Random) -> int:
        return min(range(self.num_levels), key=lambda level: abs(self._learner.success(level) - 0.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=RESULTS / "curriculum_simulation", type=Path, help="the folder for the result")
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds (default: %(default)s)")
    arguments = parser.parse_args()
    path = arguments.out / "simulation.json"
    if not path.is_file():
        simulate(path, arguments.seeds)
    means = {float(slope): of_slope for slope, of_slope in read_record(path)["derived"]["means"].items()}
    names = list(means[SLOPES[0]])
    rows = []
    for slope, mean in means.items():
        ratios = [mean["frontier"] / mean["threshold"], mean["frontier"] / mean["uniform"]]
        ratios.append(mean["oracle"] / mean["threshold"])
        rows.append([f"{slope:g}", *(f"{mean[name]:,.0f}" for name in names), *(f"{ratio:.2f}" for ratio in ratios)])
    heads = ["slope", *names, "frontier / threshold", "frontier / uniform", "oracle / threshold"]
    print(text_table(heads, rows))
    _plot(means, ROOT / "benchmarks" / "plots" / "curriculum_simulation.png")


def simulate(path: Path, num_seeds: int) -> None:
    """Simulate all policies at all slopes, and write the result file."""
    samples = {slope: _samples(slope, num_seeds) for slope in SLOPES}
    means = {slope: {name: fmean(counts) for name, counts in of_slope.items()} for slope, of_slope in samples.items()}
    settings = {"seeds": num_seeds, "levels": NUM_LEVELS, "batch": BATCH_SIZE, "group": GROUP_SIZE, "rate": RATE}
    write_record(path, settings=settings, raw={"answers": samples}, derived={"means": means})


def _samples(slope: float, num_seeds: int) -> dict[str, list[int]]:
    """Return the number of samples (answers) for each seed, by policy."""
    counts = {name: [samples_needed(make, slope, seed) for seed in range(num_seeds)] for name, make in _all(slope)}
    print(slope, {name: round(fmean(of_policy)) for name, of_policy in counts.items()}, flush=True)
    return counts


def _all(slope: float) -> list[tuple[str, Callable[[Learner], Policy]]]:
    own = [(name, lambda _, make=make: make()) for name, make in POLICIES.items()]
    return [*own, ("oracle", Oracle)]


def samples_needed(make: Callable[[Learner], Policy], slope: float, seed: int) -> int:
    """Return the number of answers until the learner has learned the top level, at most those of LIMIT groups."""
    rng = random.Random(seed)
    learner = Learner(slope)
    policy = make(learner)
    num_groups = 0
    while learner.success(NUM_LEVELS - 1) <= LEARNED and num_groups < LIMIT:
        groups = []
        for _ in range(BATCH_SIZE):
            level = policy.draw(rng)
            chance = learner.success(level)
            groups.append((level, [float(rng.random() < chance) for _ in range(GROUP_SIZE)]))
        for level, answers in groups:
            policy.observe(level, answers)
            learner.skill += RATE * fmean(answers) * (1 - fmean(answers))
        policy.end_step()
        num_groups += BATCH_SIZE
    return num_groups * GROUP_SIZE


def _plot(means: dict[float, dict[str, float]], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed, so no plot was drawn; run the command again on a machine that has it")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 3.8), constrained_layout=True)
    for name in means[SLOPES[0]]:
        style = "--" if name == "oracle" else "-"
        axis.plot(SLOPES, [means[slope][name] for slope in SLOPES], style, marker="o", label=name)
    axis.set_yscale("log")
    axis.set_xlabel("slope: how sharply success falls from one level to the next")
    axis.set_ylabel("answers until the top level is learned")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
