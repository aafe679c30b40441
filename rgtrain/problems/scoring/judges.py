"""Find the function that judges the answers to an entry, by the entry's `source_dataset` and `source_params`."""

from collections.abc import Mapping
from typing import Any

from reasoning_gym.factory import DATASETS

from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.mixture import DatasetSpec, create_dataset
from rgtrain.problems.plugins import FUNCTION_FORM, PLUGIN_PREFIX, load_plugin
from rgtrain.problems.question_sources import SOURCES
from rgtrain.problems.scoring.verifiers import VERIFIER_PREFIX, VERIFIERS, Judge

# An entry may come from outside, so it can't name a function that no configuration of this process has named.
_allowed_functions: set[str] = set()


def allow_verifier(name: Any, *, where: str) -> str:
    """Check the verifier of a configuration, and allow entries to name it.

    Args:
        name: One of VERIFIERS, a registered Reasoning Gym dataset, or `pkg://package.module.function`.
        where: The owner of the verifier, for messages.

    Returns:
        The `source_dataset` of the entries that it judges.

    Raises:
        ConfigError: There is no such verifier.
    """
    if name in VERIFIERS:
        return f"{VERIFIER_PREFIX}{name}"
    if name in DATASETS and name != "composite":
        return str(name)
    if not str(name).startswith(PLUGIN_PREFIX):
        raise ConfigError(
            f"{where} has verifier {name!r}; {choose_from(str(name), VERIFIERS)}, or the name of a Reasoning Gym "
            f"dataset, or {FUNCTION_FORM}"
        )
    _own_verifier(name)
    _allowed_functions.add(name)
    return str(name)


def is_known_judge(dataset: str) -> bool:
    """Return whether the `source_dataset` of an entry names a dataset, a verifier, or an allowed function."""
    names_verifier = dataset.removeprefix(VERIFIER_PREFIX) in VERIFIERS and dataset.startswith(VERIFIER_PREFIX)
    return names_verifier or dataset in DATASETS or dataset in SOURCES or dataset in _allowed_functions


def find_judge(dataset: str, params: Mapping[str, Any]) -> Judge:
    """Return the function that judges the answers to an entry.

    Args:
        dataset: `source_dataset` of the entry's metadata.
        params: `source_params` of the entry's metadata.

    Returns:
        A function of an answer and an entry.

    Raises:
        ConfigError: The dataset refuses the parameters, or the function cannot be imported.
    """
    if dataset.startswith(VERIFIER_PREFIX):
        return VERIFIERS[dataset.removeprefix(VERIFIER_PREFIX)].judge
    if dataset.startswith(PLUGIN_PREFIX):
        return _own_verifier(dataset)
    if dataset not in DATASETS and dataset not in SOURCES:
        raise ConfigError(
            f"the process that judges answers does not know dataset {dataset!r}; list its package in plugins"
        )
    judge: Judge = create_dataset(DatasetSpec(dataset, params=params), seed=0, size=1).score_answer
    return judge


def _own_verifier(name: str) -> Judge:
    judge: Judge = load_plugin(name, kind="verifier")
    if not callable(judge):
        raise ConfigError(f"verifier {name!r} is a {type(judge).__name__}; name a function of an answer and an entry")
    return judge
