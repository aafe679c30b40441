"""Measure whether the rewards of a verifiers environment pay for a constant reply, as the audit does for datasets."""

from collections import Counter
from collections.abc import Collection, Sequence
from statistics import fmean

from rgtrain.errors import ConfigError
from rgtrain.problems.mixture import DatasetSpec
from rgtrain.problems.soundness import UNSOUND
from rgtrain.problems.verifiers_tasks import VerifiersTasks

_NUM_TASKS = 16
_FIXED = ("0", "1", "2", "-1", "yes", "no", "True", "A", "[]", "I don't know.")
_FORMS = ("{}", "\\boxed{{{}}}", "<answer>{}</answer>", "#### {}")
_NUM_KNOWN = 3


def check_constant_replies(specs: Sequence[DatasetSpec], *, allowed: Collection[str]) -> list[str]:
    """Refuse environments that pay for a constant reply.

    Args:
        specs: Entries of a mixture with a verifiers environment.
        allowed: The names of unsound entries to accept with a warning.

    Returns:
        One line per entry that a constant reply earns much of and that is allowed.

    Raises:
        ConfigError: A constant reply earns `UNSOUND` or more on average.
    """
    warnings = []
    for spec in specs:
        reply, score = best_constant_reply(spec)
        if score < UNSOUND:
            continue
        found = f"dataset {spec.name!r} pays without a solution: the reply {reply!r} earns {score:.2f} on average"
        if spec.name not in allowed:
            raise ConfigError(f"{found}. Remove it, or accept it with data.allow_unsound_verifiers=[{spec.name}]")
        warnings.append(found)
    return warnings


def best_constant_reply(spec: DatasetSpec) -> tuple[str, float]:
    """Return the reply, of about 50 constant ones, that earns most on average over some tasks, and its mean score.

    The replies are this project's own text, so the rewards run in this process.
    """
    source = VerifiersTasks(VerifiersTasks.params_of_split(spec.params, is_training=True), seed=0)
    known = Counter(row.answer for row in source.rows if row.answer).most_common(_NUM_KNOWN)
    values = [*_FIXED, *(answer for answer, _ in known)]
    entries = [source[index] for index in range(min(_NUM_TASKS, len(source.rows)))]
    means = {
        reply: fmean(source.score_or_zero(reply, entry) for entry in entries)
        for reply in dict.fromkeys(form.format(value) for value in values for form in _FORMS)
    }
    best = max(means, key=lambda reply: means[reply])
    return best, means[best]
