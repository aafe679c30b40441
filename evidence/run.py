"""Run the missing trainings of parts of the evidence programme: python evidence/run.py --help."""

import argparse
import importlib
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

# The script works from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence.commands import SFT_MODEL, sft_batch_size, stages
from evidence.durations import Durations
from evidence.parts.learning_rate import learning_rate
from evidence.records import RL_RUN, SFT_RUN, deviations, read_record, record_of_run, write_record
from evidence.side_by_side import Place, SideBySide, Work, in_order, interrupt_on_signals, print_failures
from evidence.training_plan import PARTS, PROGRAMME, RESULTS, RL, SFT, ModelPlan, Programme, Training, read_programme
from rgtrain.errors import ConfigError, choose_from, exit_on_config_error
from rgtrain.machine.devices import num_cpus, usable_gpus, visible_gpus
from rgtrain.machine.environment import fix_hash_seed, require_stack, unless_set
from rgtrain.paths import PROJECT_ROOT
from rgtrain.tables import duration_text, text_table

_KV_CACHE_BYTES = "++actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes"
_SHARED_GPU = {
    # Several trainings share a GPU if vLLM gets a fixed amount of memory instead of measuring the free memory.
    "actor_rollout_ref.rollout.gpu_memory_utilization": 0.05,
    # Preflight would choose micro-batches for a whole GPU.
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 3072,
    # Ray would start an idle worker for each of the machine's cores in every training. verl's placement takes three.
    "ray_kwargs.ray_init.num_cpus": 4,
}
_ANSWERS_MEASURED = 200


def main() -> None:
    """Run the command."""
    require_stack()
    fix_hash_seed()
    arguments = _parser().parse_args()
    with exit_on_config_error():
        code = _run(arguments)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python evidence/run.py", description=__doc__)
    parser.add_argument("parts", nargs="+", metavar="PART", help=f"{', '.join(PARTS)}, or all")
    parser.add_argument("--model", required=True, metavar="PATH", help="the folder of the model")
    parser.add_argument("--programme", type=Path, default=PROGRAMME, metavar="FILE", help="(default: %(default)s)")
    parser.add_argument("--gpus", metavar="0,1,...", help="the GPUs (default: all visible ones)")
    parser.add_argument(
        "--per-gpu", type=int, default=1, metavar="N", help="trainings side by side on each GPU, or CPU"
    )
    parser.add_argument("--runs", type=Path, default=PROJECT_ROOT / "runs" / "evidence", help="the folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the records")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="only these seeds")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks, such as categories")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms")
    parser.add_argument("--limit-s", type=float, metavar="S", help="start no training that would end later than this")
    parser.add_argument("--training-limit-s", type=float, default=1800, metavar="S", help="the longest training (1800)")
    parser.add_argument("--list", action="store_true", help="only list the parts, with the trainings and GPU minutes")
    parser.add_argument("--commands", action="store_true", help="only print the commands of the missing trainings")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    programme = read_programme(arguments.programme)
    model = programme.model_of(arguments.model)
    if model.name not in programme.models:
        print(f"{model.name} is not in programme.yaml and has the settings of {programme.default_model}\n")
    if arguments.per_gpu < 1:
        raise ConfigError(f"--per-gpu is {arguments.per_gpu}; give 1 or more")
    by_part = {name: _selected(programme, model, name, arguments) for name in _part_names(arguments.parts)}
    if not any(by_part.values()):
        raise ConfigError("no training has the given --seeds, --tasks and --arms; --list without them counts all")
    if "all" in arguments.parts and not (arguments.list or arguments.commands):
        for name, trainings in list(by_part.items()):
            missing = missing_files(programme, trainings, results=arguments.results)
            others = [training for other, found in by_part.items() if other != name for training in found]
            if missing and others:
                print(f"leaving out the part {name}: {missing[0]} is missing, see evidence/outside_data.py --help\n")
                del by_part[name]
    plan = Plan(programme, model, arguments, in_order([training for part in by_part.values() for training in part]))
    print(_table(plan, by_part))
    for line in plan.deviations:
        print(f"warning: {line}; delete the record to train again")
    if arguments.list:
        return 0
    if arguments.commands:
        for training in plan.trainings:
            if not plan.is_finished(training):
                print(f"# {training.name}")
                try:
                    print("\n".join(map(shlex.join, plan.stages(training))))
                except ConfigError as error:
                    print(f"# not known yet, because {error}")
        return 0
    plan.check()
    interrupt_on_signals()
    scheduler = SideBySide(
        plan.trainings,
        Work(plan.stages, plan.finish, plan.is_finished, plan.run_dir, plan.seconds),
        places=plan.places,
        limit_s=arguments.limit_s,
        training_limit_s=arguments.training_limit_s,
    )
    try:
        succeeded = scheduler.run()
    except KeyboardInterrupt:
        return 130
    finally:
        print(_table(plan, by_part))
        print_failures(scheduler.failed, scheduler.not_started)
    return 0 if succeeded else 1


def _part_names(given: Sequence[str]) -> list[str]:
    for name in given:
        if name not in (*PARTS, "all"):
            raise ConfigError(f"unknown part {name!r}; {choose_from(name, [*PARTS, 'all'])}")
    return list(PARTS if "all" in given else given)


def _selected(programme: Programme, model: ModelPlan, part: str, arguments: argparse.Namespace) -> list[Training]:
    trainings = importlib.import_module(f"evidence.parts.{part}").trainings(programme, model)
    wanted = (("seed", arguments.seeds), ("task", arguments.tasks), ("arm", arguments.arms))
    return [
        training
        for training in trainings
        if all(values is None or getattr(training, name) in values for name, values in wanted)
    ]


class Plan:
    """The trainings of one call of this program, and their places.

    Args:
        programme: The programme.
        model: The settings of the model.
        arguments: The command line.
        trainings: The trainings in order, with their prerequisites.

    Attributes:
        deviations: A line for each setting in which a record differs from the plan.
    """

    def __init__(
        self, programme: Programme, model: ModelPlan, arguments: argparse.Namespace, trainings: Sequence[Training]
    ):
        self.trainings = list(trainings)
        self._programme, self._model = programme, model
        self._path = Path(arguments.model).absolute()
        self._runs, self._results = arguments.runs.absolute(), arguments.results.absolute()
        self._gpus = arguments.gpus.split(",") if arguments.gpus else visible_gpus()
        self._per_gpu = arguments.per_gpu
        self._device = _device_name()
        # Estimates use the records of all parts.
        records = {path: read_record(path) for path in (self._results / model.name).glob("*/*/seed_*.json")}
        self._durations = Durations(programme, model, records.values())
        self.deviations = [
            f"in the record of {training.name}, {text}"
            for training in self.trainings
            if (record := records.get(training.record_path(self._results)))
            for text in deviations(training, record)
        ]

    @property
    def places(self) -> list[Place]:
        """The places, one for each training that runs at the same time."""
        num_places = max(1, len(self._gpus)) * self._per_gpu
        shared = {
            # The trainings share the cores; each process would otherwise start a thread on every core.
            **unless_set({"OMP_NUM_THREADS": str(max(1, num_cpus() // num_places))}),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH")])),
        }
        if not self._gpus:
            return [Place(shared)] * num_places
        # The first trainings start on different GPUs.
        return [Place({**shared, "CUDA_VISIBLE_DEVICES": gpu}) for _ in range(self._per_gpu) for gpu in self._gpus]

    def check(self) -> None:
        """Raise ConfigError if the model is missing, or the problems of outside benchmarks."""
        if not (self._path / "config.json").is_file():
            raise ConfigError(f"{self._path} is not a folder of a model in Hugging Face format; correct --model")
        if missing := missing_files(self._programme, self.trainings, results=self._results):
            raise ConfigError(f"{missing[0]} is missing; write it by evidence/outside_data.py, see its --help")

    def run_dir(self, training: Training) -> Path:
        """Return the folder of a training's run."""
        return self._runs / training.model / training.name

    def is_finished(self, training: Training) -> bool:
        """Return whether its record exists."""
        return training.record_path(self._results).is_file()

    def rates(self, training: Training) -> dict[str, float]:
        """Return the learning rates of its stages. Raises ConfigError if one is not chosen yet."""
        given = {RL: training.rl_learning_rate, SFT: training.sft_learning_rate}
        kinds = [kind for kind, steps in ((RL, training.rl_steps), (SFT, training.sft_steps)) if steps]
        return {
            kind: given[kind] or learning_rate(self._programme, self._model, kind, results=self._results)
            for kind in kinds
        }

    def sft_batch(self, training: Training) -> int | None:
        """Return the samples per step of its stage on right answers. Raises ConfigError if a record is missing."""
        if not training.sft_steps:
            return None
        tokens = mean_answer_tokens(str(self._path), json.dumps(training.settings["data.mixture"], sort_keys=True))
        return sft_batch_size(training, answer_tokens=tokens, results=self._results)

    def stages(self, training: Training) -> list[list[str]]:
        """Return its commands. Raises ConfigError if a record that they depend on is missing."""
        machine: dict[str, Any] = {}
        if self._gpus:
            machine = {**_SHARED_GPU, _KV_CACHE_BYTES: int(self._model.kv_cache_gb * 1e9)}
        return stages(
            training,
            self.run_dir(training),
            start=str(self._path),
            rates=self.rates(training),
            sft_batch=self.sft_batch(training),
            machine=machine,
        )

    def finish(self, training: Training, seconds: float, num_on_gpu: int) -> None:
        """Write the record of a training that has ended, unless there is one.

        Args:
            training: The training.
            seconds: The duration of all its processes.
            num_on_gpu: The largest number of trainings on its GPU at a time.

        Raises:
            ConfigError: The folder of its run lacks steps or the evaluation.
        """
        if not training.record_path(self._results).is_file():
            self._durations.add(self._write_record(training, seconds, num_on_gpu))
        # Weights would fill the disk: 1 GB per training of 0.5 billion parameters.
        for weights in (Path(RL_RUN, "checkpoints"), Path(SFT_RUN, SFT_MODEL)):
            shutil.rmtree(self.run_dir(training) / weights, ignore_errors=True)

    def _write_record(self, training: Training, seconds: float, num_on_gpu: int) -> dict[str, Any]:
        commands = "\n".join(map(shlex.join, self.stages(training))).replace(sys.executable, "python")
        for folder, name in ((self.run_dir(training), "RUN"), (self._path, self._path.name), (PROJECT_ROOT, ".")):
            commands = commands.replace(str(folder), name)
        record = record_of_run(
            training,
            self.run_dir(training),
            rates=self.rates(training),
            seconds=seconds,
            per_gpu=num_on_gpu,
            device=self._device,
            sft_batch=self.sft_batch(training),
            commands=commands.split("\n"),
        )
        write_record(training.record_path(self._results), record)
        return record

    def seconds(self, training: Training) -> float:
        """Return the estimated seconds of a training beside as many others as may share its GPU."""
        return self._durations.seconds(training, per_gpu=self._per_gpu)

    def gpu_minutes(self, training: Training) -> float:
        """Return the estimated duration in minutes of a GPU, which several trainings share."""
        return self.seconds(training) / 60 / self._per_gpu


def missing_files(programme: Programme, trainings: Iterable[Training], *, results: Path) -> list[Path]:
    """Return the files of questions that are not there although trainings without a record evaluate them."""
    missing = [training for training in trainings if not training.record_path(results).is_file()]
    return programme.missing_question_files({task for training in missing for task in training.evaluated_tasks})


@cache
def mean_answer_tokens(model: str, mixture: str) -> float:
    """Return the mean number of tokens of a right answer with its tags and end of turn.

    Args:
        model: The folder of the model.
        mixture: The value of `data.mixture` as JSON.

    Returns:
        The mean over problems of the mixture.
    """
    from tokenizers import Tokenizer

    from rgtrain.problems.mixture import Mixture, Split, parse_mixture
    from rgtrain.problems.prompts import worked_answer

    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    problems = Mixture(parse_mixture(json.loads(mixture)), seed=1, size=_ANSWERS_MEASURED, split=Split.TRAIN)
    answers = [worked_answer(problems.draw(index).entry) for index in range(_ANSWERS_MEASURED)]
    # The end of the turn is one more token.
    return 1 + fmean(len(tokenizer.encode(answer, add_special_tokens=False).ids) for answer in answers)


def _device_name() -> str:
    gpus = usable_gpus()
    return gpus[0].name if gpus else f"CPU ({platform.machine()})"


def _table(plan: Plan, by_part: dict[str, list[Training]]) -> str:
    rows = []
    for name, trainings in by_part.items():
        missing = [training for training in in_order(trainings) if not plan.is_finished(training)]
        minutes = sum(map(plan.gpu_minutes, missing))
        done = len(in_order(trainings)) - len(missing)
        rows.append([name, str(len(trainings)), str(done), str(len(missing)), f"{minutes:.0f}"])
    missing = [training for training in plan.trainings if not plan.is_finished(training)]
    seconds = sum(map(plan.seconds, missing)) / len(plan.places)
    header = ["part", "trainings", "done", "missing, with prerequisites", "GPU minutes left"]
    return f"{text_table(header, rows)}\n\n{len(missing)} different trainings left, about {duration_text(seconds)}\n"


if __name__ == "__main__":
    main()
