"""Check by the committed audit whether datasets are fit for training."""

import dataclasses
import importlib.metadata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

from reasoning_gym.factory import DATASETS

from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.audit.audit_result import Audit, DatasetAudit, format_counts, read_audit
from rgtrain.problems.plugins import imported_plugins
from rgtrain.problems.sound_datasets import SOUND_PREFIX

AUDIT_FOLDER = Path(__file__).parent / "audit" / "data"
# Audits of the corrected datasets and of reasoning-core, in subfolders.
_FURTHER_AUDITS = ("sound", "reasoning_core")
# If a constant answer earns this much on average, training learns the answer instead of the task.
UNSOUND = 0.5
# The limit if the constant earns no more than it is right. The verifier is sound then, but most problems have one
# answer. Of two answers, one is right on at least half of the problems. 0.6 is two standard errors of 95 problems above
# 0.5, and was chosen after the audit.
UNSOUND_IF_RIGHT = 0.6
_DUBIOUS = 0.25
_SLOW_SECONDS = 1.0
_AUDIT_COMMAND = "python utils/audit_datasets.py"
_AUDIT_AGAIN = f"run `{_AUDIT_COMMAND}`"


def check_sound(
    datasets: Collection[str] | Mapping[str, str], *, allowed: Collection[str], audit: Audit | None = None
) -> list[str]:
    """Refuse datasets that pay for a constant answer, and return warnings about minor problems.

    The audit covers the default parameters of each dataset only.

    Args:
        datasets: The datasets of a run, or their generators by name.
        allowed: Unsound datasets to accept with a warning.
        audit: The findings; by default the committed audit.

    Returns:
        Warnings of one line each.

    Raises:
        ConfigError: A constant answer earns too much (see `is_unsound`), or a name in `allowed` is unknown.
    """
    for name in allowed:
        if name not in DATASETS and name not in datasets:
            raise ConfigError(
                f"data.allow_unsound_verifiers has unknown dataset {name!r}; {choose_from(name, DATASETS)}"
            )
    audit = audit or committed_audit()
    warnings = list(_version_warning(audit))
    refused: list[tuple[str, DatasetAudit]] = []
    generators = datasets if isinstance(datasets, Mapping) else dict(zip(datasets, datasets, strict=True))
    for name, generator in generators.items():
        found = audit.datasets.get(generator)
        if found is None:
            command = f"{_AUDIT_COMMAND} --plugins {' '.join(imported_plugins()) or 'PACKAGE'} --datasets {generator}"
            warnings.append(
                f"dataset {name!r} was not audited, so a constant answer may pay; run `{command} --out FOLDER`"
            )
        elif is_unsound(found) and name not in allowed:
            refused.append((name, found))
        elif problems := minor_problems(found):
            warnings.append(f"dataset {name!r}: {'; '.join(problems)}")
    if refused:
        names = ",".join(name for name, _ in refused)
        reasons = [
            f"dataset {name!r} pays without a solution: {describe_best_constant(found)}{_correction(found.dataset)}"
            for name, found in refused
        ]
        raise ConfigError(
            f"{'; '.join(reasons)}. Remove these datasets, or accept them with data.allow_unsound_verifiers=[{names}]"
        )
    return warnings


@cache
def committed_audit() -> Audit:
    """Return the audit that is part of the package, with the findings of all its parts."""
    audit = read_audit(AUDIT_FOLDER)
    parts = [read_audit(AUDIT_FOLDER / name) for name in _FURTHER_AUDITS]
    datasets = {name: found for part in (audit, *parts) for name, found in part.datasets.items()}
    return dataclasses.replace(audit, datasets=datasets)


def is_unsound(found: DatasetAudit) -> bool:
    """Return whether a constant answer earns too much on average.

    Args:
        found: The audit of one dataset.

    Returns:
        Whether it earns `UNSOUND` or more. The limit is `UNSOUND_IF_RIGHT` if the verifier pays for no wrong answer:
        the constant earns no more than it is right, and junk earns less than 0.5 on every problem.
    """
    share_right = found.best_constant_share_right or 0.0
    pays_wrong_answers = found.best_constant_score > share_right or found.num_junk_paid > 0
    return found.best_constant_score >= (UNSOUND if pays_wrong_answers else UNSOUND_IF_RIGHT)


def hash_dependent(dataset_names: Collection[str]) -> list[str]:
    """Return the datasets that the audit found to make other problems in a process with another PYTHONHASHSEED."""
    audited = committed_audit().datasets
    return [name for name in dataset_names if name in audited and audited[name].num_other_under_other_hash_seed]


def describe_best_constant(found: DatasetAudit) -> str:
    """Describe how much the best constant answer earns and how often it is right.

    If it is often right, the dataset has few distinct answers. If it earns much but is rarely right, the verifier is
    faulty.

    Args:
        found: The audit of one dataset.

    Returns:
        A clause for a message.
    """
    answer = repr(found.best_constant)
    shown = answer if len(answer) <= 40 else f"{answer[:36]}...{answer[-1]}"
    share = found.best_constant_share_right
    right = "no problem has a known answer" if share is None else f"it is right on {share:.0%} of the problems"
    return f"the constant answer {shown} earns {found.best_constant_score:.2f} on average ({right})"


def _correction(generator: str) -> str:
    """Return a clause that names the corrected dataset, or an empty string if there is none."""
    corrected = SOUND_PREFIX + generator
    return f"; use {corrected}, which has a corrected verifier" if corrected in DATASETS else ""


def minor_problems(found: DatasetAudit) -> list[str]:
    """Return descriptions of the minor problems of a dataset, including a constant answer that earns too much."""
    problems = [*_wrong_scores(found), *_wrong_items(found), *_slowness(found)]
    return [describe_best_constant(found), *problems] if found.best_constant_score >= _DUBIOUS else problems


def _wrong_scores(found: DatasetAudit) -> Iterator[str]:
    if found.num_oracles < found.num_items:
        yield f"{found.num_items - found.num_oracles} of {found.num_items} problems have no known answer"
    if found.num_oracles_right < found.num_oracles:
        wrong = found.num_oracles - found.num_oracles_right
        yield f"{wrong} of {found.num_oracles} right answers don't score 1"
    if found.num_junk_paid:
        yield f"{found.num_junk_paid} of {found.num_items} problems pay 0.5 or more for junk"
    if errors := Counter(found.errors) + Counter(found.hostile_errors):
        yield f"its verifier fails or hangs on some wrong answers, which then score 0 ({format_counts(errors)})"


def _wrong_items(found: DatasetAudit) -> Iterator[str]:
    if found.making_error:
        yield f"its generator failed after {found.num_items} problems: {found.making_error}"
    if found.num_other_under_same_hash_seed:
        changed = f"{found.num_other_under_same_hash_seed} of {found.num_made_again}"
        yield f"{changed} problems differ in another process"


def _slowness(found: DatasetAudit) -> Iterator[str]:
    for action, seconds in (("make", found.seconds_to_make_p99), ("judge", found.seconds_to_score_p99)):
        if seconds is not None and seconds > _SLOW_SECONDS:
            yield f"1 in 100 of its problems takes {seconds:.1f} s or more to {action}"


def _version_warning(audit: Audit) -> Iterator[str]:
    installed = importlib.metadata.version("reasoning_gym")
    audited = audit.versions["reasoning_gym"]
    if installed != audited:
        yield f"the datasets were audited with Reasoning Gym {audited}, but {installed} is installed; {_AUDIT_AGAIN}"
