"""Records as matrices of trainings and problems, and differences between arms."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy
from numpy import float64
from numpy.typing import NDArray

from evidence.durations import Durations
from evidence.records import read_record
from evidence.training_plan import GREEDY, UNTRAINED, ModelPlan, Programme, Training
from rgtrain.errors import ConfigError
from rgtrain.stats import Block, Contrast, crossed_contrast

Record = Mapping[str, Any]
Part = Callable[[Programme, ModelPlan], list[Training]]


class Arm(NamedTuple):
    """All trainings that differ only in their seed.

    Attributes:
        model: The model's name.
        task: The trained task.
        name: The variant of training.
    """

    model: str
    task: str
    name: str

    @property
    def is_trained(self) -> bool:
        """Whether its trainings have steps, so that their seeds matter."""
        return self.name not in (UNTRAINED, GREEDY)


class Comparison(NamedTuple):
    """Two arms on the same datasets.

    Attributes:
        after: The arm.
        before: The arm that it is compared with.
        datasets: The datasets, of equal weight. Their number of problems does not matter.
    """

    after: Arm
    before: Arm
    datasets: Sequence[str]


class Measured:
    """All records of the programme.

    Attributes:
        programme: The programme.
        records: The records of each arm by seed.
        parts: The function that lists the trainings of each part, by the part's name.
    """

    def __init__(self, programme: Programme, records: Iterable[Record], parts: Mapping[str, Part]) -> None:
        self.programme = programme
        self.parts = parts
        self._planned: dict[tuple[str, str], list[Training]] = {}
        self._durations: dict[str, Durations] = {}
        found: dict[Arm, dict[int, Record]] = defaultdict(dict)
        for record in records:
            found[Arm(record["model"], record["task"], record["arm"])][record["seed"]] = record
        self.records = {arm: dict(sorted(by_seed.items())) for arm, by_seed in found.items()}

    @property
    def models(self) -> list[ModelPlan]:
        """The models of the programme, in its order."""
        return list(self.programme.models.values())

    def record(self, training: Training) -> Record | None:
        """Return the record of a training, or None if it has none."""
        return self.records.get(Arm(training.model, training.task, training.arm), {}).get(training.seed)

    def num_seeds(self, arm: Arm) -> int:
        """Return the number of recorded trainings of an arm."""
        return len(self.records.get(arm, ()))

    def is_complete(self, comparison: Comparison) -> bool:
        """Return whether both arms have the trainings that a difference needs, on all its datasets."""
        arms = (comparison.after, comparison.before)
        return all(
            self.num_seeds(arm) >= (2 if arm.is_trained else 1)
            and all(set(comparison.datasets) <= set(record["evaluation"]) for record in self.records[arm].values())
            for arm in arms
        )

    def shares(self, arm: Arm, dataset: str, *, seeds: Sequence[int] | None = None) -> NDArray[float64]:
        """Return the share of an arm's answers that are fully right.

        Args:
            arm: An arm with records.
            dataset: The dataset.
            seeds: The seeds of the trainings; None for all.

        Returns:
            Shares in [0, 1], of shape trainings x distinct problems. An evaluation file may draw a problem twice. All
            its answers then count as those of one problem, because errors are clustered by problem.

        Raises:
            ConfigError: The trainings answered different problems.
        """
        by_seed = self.records[arm]
        evaluations = [by_seed[seed]["evaluation"][dataset] for seed in (by_seed if seeds is None else seeds)]
        if len({tuple(each["digests"]) for each in evaluations}) != 1:
            raise ConfigError(f"trainings of {arm} answered different problems of {dataset}; run them again")
        shares = numpy.array([each["solved"] for each in evaluations]) / [[each["samples"]] for each in evaluations]
        digests = evaluations[0]["digests"]
        columns = [[each == digest for each in digests] for digest in dict.fromkeys(digests)]
        return numpy.stack([shares[:, is_problem].mean(axis=1) for is_problem in columns], axis=1)

    def digests(self, arm: Arm, dataset: str) -> list[str]:
        """Return the digests of the problems that an arm answered."""
        return next(iter(self.records[arm].values()))["evaluation"][dataset]["digests"]

    def mean_share(self, arm: Arm, datasets: Sequence[str]) -> float:
        """Return the mean over datasets, trainings and problems of the share of right answers."""
        return fmean(float(self.shares(arm, dataset).mean()) for dataset in datasets)

    def difference(self, comparisons: Sequence[Comparison]) -> Contrast | None:
        """Return the mean difference over comparisons, each of which is a mean over its datasets.

        Args:
            comparisons: The comparisons. Arms and problems may occur in several of them.

        Returns:
            The difference of shares in [-1, 1]; None if an arm lacks records.

        Raises:
            ConfigError: Arms answered different problems.
        """
        if not comparisons or not all(map(self.is_complete, comparisons)):
            return None
        weights: dict[tuple[Arm, str], float] = defaultdict(float)
        for after, before, datasets in comparisons:
            for dataset in datasets:
                weight = 1 / len(comparisons) / len(datasets)
                weights[after, dataset] += weight
                weights[before, dataset] -= weight
                if self.digests(after, dataset) != self.digests(before, dataset):
                    raise ConfigError(f"{after} and {before} answered different problems of {dataset}; run them again")
        return crossed_contrast(
            [
                Block(arm, dataset, weight, self.shares(arm, dataset), has_seed_effect=arm.is_trained)
                for (arm, dataset), weight in weights.items()
            ]
        )

    def can_differ(self, comparison: Comparison) -> bool:
        """Return whether the two arms solve neither all nor none of the problems together."""
        shares = [self.mean_share(arm, comparison.datasets) for arm in (comparison.after, comparison.before)]
        return not (all(share == 0 for share in shares) or all(share == 1 for share in shares))

    def planned(self, part: str, model: ModelPlan) -> list[Training]:
        """Return the different trainings of a part, or none if the programme lacks the part."""
        if part not in self.parts:
            return []
        if (part, model.name) not in self._planned:
            trainings = self.parts[part](self.programme, model)
            self._planned[part, model.name] = list({training.name: training for training in trainings}.values())
        return self._planned[part, model.name]

    def num_planned(self, arm: Arm) -> int:
        """Return the number of trainings of an arm in the whole programme."""
        [model] = [model for model in self.models if model.name == arm.model]
        return len(
            {
                training.name
                for part in self.parts
                for training in self.planned(part, model)
                if (training.task, training.arm) == (arm.task, arm.name)
            }
        )

    def evaluated(self, training: Training) -> list[str]:
        """Return the datasets that a training answers at its end."""
        return [dataset for task in training.evaluated_tasks for dataset in self.programme.datasets(task)]

    def missing(self, part: str, model: ModelPlan) -> list[Training]:
        """Return the trainings of a part that have no record."""
        return [training for training in self.planned(part, model) if self.record(training) is None]

    def estimated_minutes(self, trainings: Sequence[Training], model: ModelPlan) -> float:
        """Return the estimated GPU minutes of trainings, with as many side by side as the model's plan names."""
        if model.name not in self._durations:
            records = [
                record
                for arm, by_seed in self.records.items()
                if arm.model == model.name
                for record in by_seed.values()
            ]
            self._durations[model.name] = Durations(self.programme, model, records)
        durations = self._durations[model.name]
        seconds = sum(durations.seconds(training, per_gpu=model.per_gpu) for training in trainings)
        return seconds / model.per_gpu / 60


def read_records(folder: Path) -> list[Record]:
    """Return all records below a folder, in the order of their paths. Raises ConfigError if one cannot be read."""
    return [read_record(path) for path in sorted(folder.glob("*/*/*/seed_*.json"))]
