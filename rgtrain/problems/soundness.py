"""Whether datasets are fit to train on, by the committed audit of the pinned Reasoning Gym."""

import importlib.metadata
from collections import Counter
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

from reasoning_gym.factory import DATASETS

from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.audit.audit_result import Audit, DatasetAudit, counted, read_audit

AUDITED = Path(__file__).parent / "audit" / "data"
# A constant answer that earns this much on average is learned instead of the task.
UNSOUND = 0.5
_DUBIOUS = 0.25
_SLOW_SECONDS = 1.0
_AUDIT_AGAIN = "audit it: python utils/audit_datasets.py"


def check_sound(dataset_names: Collection[str], *, allowed: Collection[str], audit: Audit | None = None) -> list[str]:
    """Refuse datasets that pay for a constant answer; warnings about the others' lesser failures, a line each.

    `allowed` are the datasets to be used all the same; they are warned about. `audit` is the committed one unless
    given; it knows the default parameters only. Raises ConfigError where a constant answer earns `UNSOUND` or more on
    average, and for an unknown name in `allowed`.
    """
    for name in allowed:
        if name not in DATASETS:
            raise ConfigError(f"data.allow_unsound_verifiers names no dataset: {name!r}; {choose_from(name, DATASETS)}")
    audit = audit or committed_audit()
    warnings = list(_other_version(audit))
    refused = []
    for name in dict.fromkeys(dataset_names):
        found = audit.datasets.get(name)
        if found is None:
            warnings.append(f"dataset {name!r} was not audited: a constant answer may pay; {_AUDIT_AGAIN}")
        elif is_unsound(found) and name not in allowed:
            refused.append(found)
        elif failures := lesser_failures(found):
            warnings.append(f"dataset {name!r}: {'; '.join(failures)}")
    if refused:
        names = ",".join(found.dataset for found in refused)
        raise ConfigError(
            f"{'; '.join(f'dataset {found.dataset!r} pays for not solving it: {paid(found)}' for found in refused)}. "
            f"Leave out what is not worth that, or accept it with data.allow_unsound_verifiers=[{names}]"
        )
    return warnings


@cache
def committed_audit() -> Audit:
    """The audit in the package."""
    return read_audit(AUDITED)


def is_unsound(found: DatasetAudit) -> bool:
    """Whether a constant answer earns `UNSOUND` or more."""
    return found.best_constant_score >= UNSOUND


def paid(found: DatasetAudit) -> str:
    """What the best constant answer earns, and how often it is right.

    A frequent right answer is an honest dataset's doing; pay for what is hardly ever right is a verifier's.
    """
    answer = repr(found.best_constant)
    shown = answer if len(answer) <= 40 else f"{answer[:36]}...{answer[-1]}"
    share = found.best_constant_share_right
    right = "no problem names its right answer" if share is None else f"it is right on {share:.0%} of the problems"
    return f"the constant answer {shown} earns {found.best_constant_score:.2f} on average ({right})"


def lesser_failures(found: DatasetAudit) -> list[str]:
    """What else is wrong with a dataset, and that of its constant answers; empty if nothing is."""
    failures = [*_wrong_scores(found), *_wrong_items(found), *_slowness(found)]
    return [paid(found), *failures] if found.best_constant_score >= _DUBIOUS else failures


def _wrong_scores(found: DatasetAudit) -> Iterator[str]:
    if found.num_oracles < found.num_items:
        yield f"{found.num_items - found.num_oracles} of {found.num_items} problems name no right answer"
    if found.num_oracles_right < found.num_oracles:
        wrong = found.num_oracles - found.num_oracles_right
        yield f"{wrong} of {found.num_oracles} right answers don't score 1"
    if found.num_junk_paid:
        yield f"{found.num_junk_paid} of {found.num_items} problems pay 0.5 or more for junk"
    if errors := Counter(found.errors) + Counter(found.hostile_errors):
        yield f"its verifier raises or doesn't end on some wrong answers, which score 0 then ({counted(errors)})"


def _wrong_items(found: DatasetAudit) -> Iterator[str]:
    if found.making_error:
        yield f"making its problems failed after {found.num_items}: {found.making_error}"
    if found.num_other_under_same_hash_seed:
        changed = f"{found.num_other_under_same_hash_seed} of {found.num_made_again}"
        yield f"{changed} problems differ when made again in another process"


def _slowness(found: DatasetAudit) -> Iterator[str]:
    for what, seconds in (("make", found.seconds_to_make_p99), ("judge", found.seconds_to_score_p99)):
        if seconds is not None and seconds > _SLOW_SECONDS:
            yield f"1 in 100 of its problems takes {seconds:.1f} s or more to {what}"


def _other_version(audit: Audit) -> Iterator[str]:
    installed = importlib.metadata.version("reasoning_gym")
    audited = audit.versions["reasoning_gym"]
    if installed != audited:
        yield f"the datasets were audited with Reasoning Gym {audited}, not {installed} as installed; {_AUDIT_AGAIN}"
