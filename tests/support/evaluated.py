"""Make judged answers and finished evaluations without a model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rgtrain.evaluation.engine_interface import Completion
from rgtrain.evaluation.evaluation_config import EvaluationConfig
from rgtrain.evaluation.evaluation_plan import EvaluationPlan
from rgtrain.evaluation.evaluation_prompts import prompt_problems
from rgtrain.evaluation.judged_answers import Answer, judged
from rgtrain.evaluation.results import ResultsFolder
from rgtrain.evaluation.summary import identity_of, summarise
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import Score
from rgtrain.problems.evaluation_set import EvaluationDataset
from rgtrain.reporting.evaluation_reader import Evaluation, read_evaluation

COMPARE = PROJECT_ROOT / "evaluation" / "compare_models.py"
SUMS = EvaluationDataset("arithmetic", "chain_sum", size=4)
WORDS = EvaluationDataset("words", "spell_backward", size=2)
# Scores of answers to these six problems.
SCORES = [1, 0.5, 0, 1, 1, 0.25]


def small_config(folder: Path, **changes) -> EvaluationConfig:
    """Return the configuration of an evaluation of four sums and two words."""
    config = EvaluationConfig(
        name="quick",
        model_path="models/m",
        datasets=(SUMS, WORDS),
        max_tokens=16,
        temperature=0,
        dtype="float32",
        output_dir=folder,
    )
    return dataclasses.replace(config, **changes)


def plan_of(config: EvaluationConfig) -> EvaluationPlan:
    """Return the plan of an evaluation, with a model that does not exist."""
    prompted = prompt_problems(config.datasets, config.prompt_style, limit=config.limit)
    return EvaluationPlan(prompted, [None] * len(prompted), {"digest": "0" * 32}, start=None)


def answers_of(config: EvaluationConfig, scores: Sequence[float], *, repeat: int = 0, **changes) -> list[Answer]:
    """Return one answer to each problem of `config`, with these scores. Different scores have different texts."""
    return [
        dataclasses.replace(
            judged(
                item,
                repeat=repeat,
                completion=Completion(f"<answer>{score}</answer>", 5, "stop"),
                answer=str(score),
                score=Score(score),
                with_text=config.save_full_results,
                with_entry=config.save_metadata,
            ),
            **changes,
        )
        for item, score in zip(plan_of(config).prompted, scores, strict=True)
    ]


def write_results(
    config: EvaluationConfig, answers: Sequence[Answer], *, command: Sequence[str] = ("python", "x.py")
) -> ResultsFolder:
    """Write a complete results folder as an evaluation does, and return it."""
    plan, folder = plan_of(config), ResultsFolder(config.results_folder)
    with folder.writing(identity_of(config, plan)) as writer:
        for answer in answers:
            writer.add(answer)
        writer.finish(summarise(config, plan, writer.answers, command=command, seconds={}))
    return folder


def finished_evaluation(folder: Path, name: str, scores: Sequence[float], **changes) -> Evaluation:
    """Write an evaluation of the model `name` whose answers have these scores, and read it again."""
    config = small_config(folder, model_path=f"models/{name}", **changes)
    return read_evaluation(write_results(config, answers_of(config, scores)).path)
