"""The learning rates of all other parts, chosen once per model on a separate mixture."""

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from evidence.records import read_record, solved_share
from evidence.training_plan import RESULTS, RL, SFT, ModelPlan, Programme, Training
from rgtrain.errors import ConfigError


def trainings(programme: Programme, model: ModelPlan) -> list[Training]:
    """Return the trials of both kinds of training."""
    return [trial for kind in (RL, SFT) for trial in programme.learning_rate_trials(model, kind)]


def learning_rate(programme: Programme, model: ModelPlan, kind: str, *, results: Path = RESULTS) -> float:
    """Return the learning rate that all other parts use.

    Args:
        programme: The programme.
        model: The model.
        kind: `rl` or `sft`.
        results: The folder of the records.

    Returns:
        The rate in programme.yaml if it names one, otherwise the best one of the trials.

    Raises:
        ConfigError: The trials of a rate are missing.
    """
    return model.chosen[kind] if kind in model.chosen else best_rate(programme, model, kind, results=results)


def best_rate(programme: Programme, model: ModelPlan, kind: str, *, results: Path = RESULTS) -> float:
    """Return the learning rate with the best mean of the solved share over datasets and seeds, the lower one in a tie.

    Args:
        programme: The programme.
        model: The model.
        kind: `rl` or `sft`.
        results: The folder of the records.

    Returns:
        One of the rates of the model's grid.

    Raises:
        ConfigError: The trials of a rate are missing.
    """
    trials = programme.learning_rate_trials(model, kind)
    missing = [trial.name for trial in trials if not trial.record_path(results).is_file()]
    if missing:
        raise ConfigError(
            f"{results} lacks {len(missing)} of the trainings that choose the learning rate of {kind}, such as "
            f"{missing[0]}; run `python evidence/run.py learning_rate --model PATH`, or set `chosen` in programme.yaml"
        )
    shares: dict[float, list[float]] = {}
    for trial in trials:
        rate = trial.rl_learning_rate if kind == RL else trial.sft_learning_rate
        shares.setdefault(rate or 0.0, []).append(_mean_solved(trial.record_path(results)))
    return max(sorted(shares), key=lambda rate: fmean(shares[rate]))


def _mean_solved(path: Path) -> float:
    evaluation = read_record(path)["evaluation"]
    shares: Iterable[float] = (solved_share(dataset) for dataset in evaluation.values())
    return fmean(shares)
