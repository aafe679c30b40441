"""The plan of the evidence programme: its trainings, and the settings in programme.yaml that they share.

A training is one cell of the programme: a model, a task, an arm and a seed. It has up to two stages. The first one
trains on right answers (`train_sft.py`) for `sft_steps`. The second one trains with rewards (`train_grpo.py`) for
`rl_steps` and then answers the evaluation files; with 0 steps it only answers them. Thus every arm is measured in the
same way. The modules in parts/ list the trainings of each part of the programme.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rgtrain.errors import ConfigError, choose_from
from rgtrain.paths import PROJECT_ROOT
from rgtrain.yaml_files import StrictLoader

EVIDENCE = Path(__file__).resolve().parent
PROGRAMME = EVIDENCE / "programme.yaml"
RESULTS = EVIDENCE / "results"
# The modules in parts/, in the order in which `all` runs them.
PARTS = (
    "learning_rate",
    "categories",
    "controls",
    "curriculum",
    "boundary",
    "breadth",
    "algorithms",
    "outside",
    "warm_start",
    "greedy",
)
# The task whose trainings choose the learning rates, and the task of a model without training.
LEARNING_RATE, BASE = "learning_rate", "base"
# The arms of a model without training, whose evaluation samples at temperature 1 or is greedy.
UNTRAINED, GREEDY = "none", "greedy"
# The trained arms whose evaluation is greedy, with their configurations.
GREEDY_ARMS = {"accuracy_greedy": "training", "format_only_greedy": "format_only"}
# The trained arms that answer outside benchmarks, with their configurations.
OUTSIDE_ARMS = {"accuracy": "training", "format_only": "format_only"}
# The evaluation files of parts 5 and 8.
BOUNDARY, OUTSIDE = "boundary", "outside"
# The group of an evaluation file whose datasets are trained on. The datasets of other groups are only evaluated.
TRAINED = "trained"
RL, SFT = "rl", "sft"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training of the programme, or one evaluation without training.

    Attributes:
        model: The model's name.
        task: The trained task, for example a category.
        arm: The variant of training, for example `accuracy` or `random_reward`.
        seed: The seed of problems, sampling and data order.
        sft_steps: Steps on right answers, which come first.
        rl_steps: Steps with rewards, which follow.
        config: The file of configs/, without its suffix, that has the arm's reward.
        settings: Settings of both programs by key. A key may begin with `+` or `++`, as on Hydra's command line.
        sft_settings: Settings that only `train_sft.py` has, or that it has with another value, in the same form.
        rl_learning_rate: None for the rate that the part learning_rate chose.
        sft_learning_rate: None for the rate that the part learning_rate chose.
        equal_tokens: The training whose number of tokens per step SFT matches, or None for the batch size as it is set.
        needs: Further trainings whose records must exist before this one starts.
    """

    model: str
    task: str
    arm: str
    seed: int
    sft_steps: int = 0
    rl_steps: int = 0
    config: str = "training"
    settings: Mapping[str, Any] = field(default_factory=dict)
    sft_settings: Mapping[str, Any] = field(default_factory=dict)
    rl_learning_rate: float | None = None
    sft_learning_rate: float | None = None
    equal_tokens: "Training | None" = None
    needs: "tuple[Training, ...]" = ()

    @property
    def name(self) -> str:
        """TASK/ARM/seed_N, which is also its folder among the runs and its record among the results."""
        return f"{self.task}/{self.arm}/seed_{self.seed}"

    @property
    def prerequisites(self) -> "tuple[Training, ...]":
        """All trainings that must be finished before this one starts."""
        return (*self.needs, self.equal_tokens) if self.equal_tokens else self.needs

    @property
    def evaluated_tasks(self) -> list[str]:
        """The tasks whose evaluation files are answered at its end."""
        return [Path(path).stem for path in self.settings["data.validation_files"]]

    def record_path(self, results: Path = RESULTS) -> Path:
        """Return the path of its record below the folder `results`."""
        return results / self.model / f"{self.name}.json"


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """The settings of a model, as in programme.yaml.

    Attributes:
        name: Its name in records and tables.
        folder: The name of the model's folder, by which `--model PATH` finds these settings.
        seeds: The seeds of each arm.
        steps: Steps of a training.
        settings: Settings of both programs by key, for example the prompt and lengths.
        sft_settings: Settings that only `train_sft.py` has, or that it has with another value.
        grids: The learning rates that the part learning_rate tries, for `rl` and `sft`.
        grid_seeds: The seeds of these trials.
        chosen: The learning rates that other parts use, for `rl` and `sft`. A missing one is computed from the records.
        kv_cache_gb: Memory for the keys and values of vLLM on a GPU, in GB (10^9 bytes).
        per_gpu: The trainings side by side on a GPU for which durations are estimated.
        assumed_seconds: Assumed seconds of a start (`start`), a step (`step`) and the evaluation (`evaluation`), which
            estimate the duration of a part without records.
    """

    name: str
    folder: str
    seeds: tuple[int, ...]
    steps: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    sft_settings: Mapping[str, Any] = field(default_factory=dict)
    grids: Mapping[str, Sequence[float]] = field(default_factory=dict)
    grid_seeds: tuple[int, ...] = (1, 2)
    chosen: Mapping[str, float] = field(default_factory=dict)
    kv_cache_gb: float = 4.0
    assumed_seconds: Mapping[str, float] = field(default_factory=dict)
    per_gpu: int = 1


@dataclass(frozen=True)
class Programme:
    """The categories and models of programme.yaml, with the evaluation files in the folder evaluation/ beside it.

    Attributes:
        categories: The categories that are trained on. Each has an evaluation file of its name.
        models: The models by name.
        default_model: The name of the model whose settings other models have, apart from its chosen learning rates.
        folder: The folder of programme.yaml.
    """

    categories: tuple[str, ...]
    models: Mapping[str, ModelPlan]
    default_model: str
    folder: Path = EVIDENCE

    def evaluation_file(self, task: str) -> Path:
        """Return the evaluation file of a task."""
        return self.folder / "evaluation" / f"{task}.yaml"

    def datasets(self, task: str, *, group: str | None = None) -> dict[str, dict[str, Any]]:
        """Return the datasets of a task's evaluation file.

        Args:
            task: The name of the file without its suffix.
            group: The only group (a `category` of the file) to return, for example `trained`; None for all.

        Returns:
            The entry of each dataset in the file, by name.
        """
        categories = self._evaluation(task)["categories"]
        return {
            entry["dataset"]: entry
            for category in categories
            if group in (None, category["category"])
            for entry in category["datasets"]
        }

    def mixture(self, task: str) -> dict[str, dict[str, Any]]:
        """Return the training mixture of a task: its trained datasets with equal weights, as `data.mixture` has it."""
        return {
            name: {"weight": 1}
            | {key: entry[key] for key in ("generator",) if key in entry}
            | ({"config": entry["params"]} if entry.get("params") else {})
            for name, entry in self.datasets(task, group=TRAINED).items()
        }

    def training(
        self,
        model: ModelPlan,
        *,
        task: str,
        arm: str,
        seed: int,
        mixture: Mapping[str, Any] | None = None,
        evaluated: Iterable[str] | None = None,
        settings: Mapping[str, Any] | None = None,
        rl_steps: int | None = None,
        sft_steps: int = 0,
        needs: "Sequence[Training]" = (),
        **fields: Any,
    ) -> Training:
        """Return a training with the settings that all trainings of a model share.

        Args:
            model: The model.
            task: The trained task.
            arm: The variant of training.
            seed: The seed.
            mixture: The value of `data.mixture`; None for that of the task.
            evaluated: Names of the evaluation files that it answers at the end; None for those of all categories.
            settings: Further settings, which replace those of the model.
            rl_steps: Steps with rewards; None for the model's number.
            sft_steps: Steps on right answers.
            needs: Trainings whose records must exist before it starts, besides those that choose a learning rate.
            fields: Further fields of `Training`.

        Returns:
            The training.
        """
        rl_steps = model.steps if rl_steps is None else rl_steps
        mixture = self.mixture(task) if mixture is None else mixture
        files = [self.evaluation_file(name) for name in (self.categories if evaluated is None else evaluated)]
        rates_needed = [
            kind
            for kind, steps in ((RL, rl_steps), (SFT, sft_steps))
            if steps and fields.get(f"{kind}_learning_rate") is None and kind not in model.chosen
        ]
        trials = [trial for kind in rates_needed for trial in self.learning_rate_trials(model, kind)]
        return Training(
            model=model.name,
            task=task,
            arm=arm,
            seed=seed,
            rl_steps=rl_steps,
            sft_steps=sft_steps,
            settings={
                **model.settings,
                "data.mixture": mixture,
                "data.validation_files": [_from_root(path) for path in files],
                # Trainings of the boundary answer these problems, so no training may learn from them.
                "data.held_out_files": [_from_root(self.evaluation_file(BOUNDARY))],
                **(settings or {}),
            },
            sft_settings=model.sft_settings,
            needs=(*needs, *trials),
            **fields,
        )

    def learning_rate_trials(self, model: ModelPlan, kind: str) -> list[Training]:
        """Return the trainings that choose a learning rate, on datasets that only the part breadth uses otherwise.

        Args:
            model: The model.
            kind: `rl` or `sft`.

        Returns:
            A training for each rate of the model's grid and each seed. The arm is KIND_RATE, for example `rl_2e-05`.
        """
        key = model.name, kind
        if key not in self._trials:
            steps = {"rl_steps": model.steps} if kind == RL else {"rl_steps": 0, "sft_steps": model.steps}
            self._trials[key] = [
                self.training(
                    model,
                    task=LEARNING_RATE,
                    arm=f"{kind}_{rate:g}",
                    seed=seed,
                    evaluated=[LEARNING_RATE],
                    **steps,
                    **{f"{kind}_learning_rate": rate},
                )
                for rate in model.grids[kind]
                for seed in model.grid_seeds
            ]
        return self._trials[key]

    def model_of(self, path: str | Path) -> ModelPlan:
        """Return the settings of the model in a folder.

        Args:
            path: The folder. It need not exist if programme.yaml names it.

        Returns:
            The settings in programme.yaml, or those of the default model under the folder's name in lower case.

        Raises:
            ConfigError: The folder is not named in programme.yaml, and has no model or a name with other characters
                than letters, digits, `.`, `_` and `-`.
        """
        # A symbolic link has the name that the user chose, so it is not followed.
        folder = Path(path).absolute().name
        for model in self.models.values():
            if folder.lower() in (model.folder.lower(), model.name):
                return model
        if not (Path(path) / "config.json").is_file():
            known = [model.folder for model in self.models.values()]
            raise ConfigError(
                f"{path} is no folder of a model in Hugging Face format, and programme.yaml does not name it; "
                f"{choose_from(folder, known)}"
            )
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", folder.lower()):
            raise ConfigError(
                f"the folder {folder!r} cannot name a model in records; rename it with letters, digits, '.', '_', '-'"
            )
        return self._with_default_settings(folder)

    def with_models(self, names: Iterable[str]) -> "Programme":
        """Return this programme with further models, such as those of records, which have the default settings.

        Args:
            names: Names of models. Those that the programme has keep their settings.

        Returns:
            The programme. Further models follow its own, in the given order.
        """
        added = {name: self._with_default_settings(name) for name in names if name not in self.models}
        return replace(self, models={**self.models, **added})

    def _with_default_settings(self, folder: str) -> ModelPlan:
        return replace(self.models[self.default_model], name=folder.lower(), folder=folder, chosen={})

    @cached_property
    def _trials(self) -> dict[tuple[str, str], list[Training]]:
        # All trainings of a model share these objects, which makes comparisons of trainings quick.
        return {}

    @cached_property
    def _evaluations(self) -> dict[str, Mapping[str, Any]]:
        return {}

    def missing_question_files(self, tasks: Iterable[str]) -> list[Path]:
        """Return the files of questions that the evaluation files of tasks name and that are not there."""
        entries = [entry for task in tasks for entry in self.datasets(task).values()]
        files = [PROJECT_ROOT / entry["path"] for entry in entries if "path" in entry]
        return [path for path in files if not path.is_file()]

    def _evaluation(self, task: str) -> Mapping[str, Any]:
        if task not in self._evaluations:
            self._evaluations[task] = _read(self.evaluation_file(task))
        return self._evaluations[task]


def outside_task(category: str) -> str:
    """Return the task of the trainings on a category that answer outside benchmarks."""
    return f"{OUTSIDE}_{category}"


def read_programme(path: Path = PROGRAMME) -> Programme:
    """Read programme.yaml.

    Args:
        path: The file. Evaluation files are in the folder evaluation/ beside it.

    Returns:
        The programme.

    Raises:
        ConfigError: The file cannot be read, or has an unknown or missing key.
    """
    raw = _read(path)
    try:
        models = {
            name: ModelPlan(
                name=name,
                **{**given, "seeds": tuple(given["seeds"]), "grid_seeds": tuple(given.get("grid_seeds", (1, 2)))},
            )
            for name, given in raw["models"].items()
        }
        programme = Programme(tuple(raw["categories"]), models, raw["default_model"], path.absolute().parent)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} has a missing or unknown key ({error}); see ModelPlan in {__name__}") from error
    if programme.default_model not in models:
        raise ConfigError(
            f"default_model in {path} is {programme.default_model!r}, which is none of its models; "
            f"{choose_from(programme.default_model, models)}"
        )
    return programme


def _from_root(path: Path) -> str:
    return str(path.relative_to(PROJECT_ROOT) if path.is_relative_to(PROJECT_ROOT) else path)


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
