"""Estimates of the duration of trainings, from records and from the assumed seconds in programme.yaml."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from evidence.training_plan import EVIDENCE, ModelPlan, Programme, Training

_NUM_SAMPLES = "actor_rollout_ref.rollout.val_kwargs.n"
# A step on right answers takes longer than one with rewards, because no two of its samples share a prompt: 6 to 7 s and
# 1.2 to 1.8 s with 13 trainings of the 135M model on an H200.
_SFT_STEP = 4
# Each further training on a GPU adds this share to the duration of all. With 13 of the 135M model on an H200, each took
# 1.9 times its assumed seconds.
_CROWDING = 0.075


class _Shape(NamedTuple):
    """The properties of a training that determine its duration."""

    num_programs: int
    sft_steps: int
    rl_steps: int
    num_answers: int


class Durations:
    """Estimates the duration of a model's trainings.

    A training is assumed to take the seconds of its programs' starts, its steps and its evaluated answers, times a
    factor for the trainings beside it on its GPU. Records of trainings with the same stages correct this: the estimate
    is multiplied by the mean ratio of their duration to their assumed one. Only those with the most similar number of
    trainings per GPU count.

    Args:
        programme: The programme.
        model: The model.
        records: The records of the model's trainings.
    """

    def __init__(self, programme: Programme, model: ModelPlan, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self._programme, self._model = programme, model
        # For the stages on right answers and with rewards, the trainings per GPU and the ratio of each record.
        self._ratios: dict[tuple[bool, bool], list[tuple[int, float]]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record into account."""
        config, per_gpu = record["config"], record["seconds"]["per_gpu"]
        shape = _Shape(
            num_programs=record["command"].count(" && ") + 1,
            sft_steps=config["sft_steps"],
            rl_steps=config["rl_steps"],
            num_answers=sum(each["samples"] * len(each["solved"]) for each in record["evaluation"].values()),
        )
        ratio = record["seconds"]["total"] / self._assumed(shape, per_gpu)
        self._ratios.setdefault(_stages(shape), []).append((per_gpu, ratio))

    def seconds(self, training: Training, *, per_gpu: int) -> float:
        """Return the estimated duration in seconds.

        Args:
            training: The training.
            per_gpu: The number of trainings on its GPU, itself included.

        Returns:
            The seconds from its start to its end.
        """
        shape = _Shape(
            num_programs=bool(training.sft_steps) + 1,
            sft_steps=training.sft_steps,
            rl_steps=training.rl_steps,
            num_answers=self._num_answers(training),
        )
        measured = self._ratios.get(_stages(shape), [])
        nearest = min((abs(other - per_gpu) for other, _ in measured), default=0)
        ratios = [ratio for other, ratio in measured if abs(other - per_gpu) == nearest]
        return self._assumed(shape, per_gpu) * (fmean(ratios) if ratios else 1.0)

    def _assumed(self, shape: _Shape, per_gpu: int) -> float:
        assumed = self._model.assumed_seconds
        alone = (
            assumed["start"] * shape.num_programs
            + assumed["step"] * (shape.rl_steps + _SFT_STEP * shape.sft_steps)
            + assumed["evaluation"] * shape.num_answers / self._usual_answers
        )
        return alone * (1 + _CROWDING * (per_gpu - 1))

    def _num_answers(self, training: Training) -> int:
        """Return the number of answers of a training's evaluation."""
        return self._num_problems(training.evaluated_tasks) * training.settings.get(_NUM_SAMPLES, self._default_samples)

    def _num_problems(self, tasks: Iterable[str]) -> int:
        return sum(entry["size"] for task in tasks for entry in self._programme.datasets(task).values())

    @cached_property
    def _default_samples(self) -> int:
        text = (EVIDENCE / "configs" / "training.yaml").read_text(encoding="utf-8")
        return yaml.safe_load(text)["actor_rollout_ref"]["rollout"]["val_kwargs"]["n"]

    @cached_property
    def _usual_answers(self) -> int:
        """The answers of the evaluation whose duration programme.yaml assumes: to the problems of all categories."""
        return self._num_problems(self._programme.categories) * self._default_samples


def _stages(shape: _Shape) -> tuple[bool, bool]:
    return bool(shape.sft_steps), bool(shape.rl_steps)
