"""Show an audit of datasets as a text table."""

from rgtrain.problems.audit import Audit, DatasetAudit
from rgtrain.problems.soundness import describe_best_constant, is_unsound, minor_problems
from rgtrain.tables import percent, printed_table

_HEADER = (
    *("dataset", "items", "right %", "junk %", "best constant", "earns", "is right %", "errors", "other hash %"),
    *("make ms", "p99", "score ms", "p99", "tokens", "p90", "max", "levels"),
)
_CONSTANT_WIDTH = 20


def audit_table(audit: Audit) -> str:
    """Return a table with a row for each dataset, and the reason for each refusal or warning below it.

    In the column "errors" are answers, hostile ones included, on which the verifier raised or did not finish. In the
    column "other hash %" are items that differ under another PYTHONHASHSEED.

    Args:
        audit: The audit.

    Returns:
        The table and the reasons, as lines of text.
    """
    datasets = audit.datasets.values()
    lines = [printed_table(_HEADER, [_row(found) for found in datasets]), ""]
    lines += [f"refused: {found.dataset}: {describe_best_constant(found)}" for found in datasets if is_unsound(found)]
    for found in datasets:
        if not is_unsound(found) and (problems := minor_problems(found)):
            lines.append(f"warned about: {found.dataset}: {'; '.join(problems)}")
    return "\n".join(lines)


def _row(found: DatasetAudit) -> tuple[str, ...]:
    return (
        found.dataset,
        str(found.num_items),
        percent(found.num_oracles_right / found.num_oracles) if found.num_oracles else "-",
        percent(found.num_junk_paid / found.num_items) if found.num_items else "-",
        repr(found.best_constant)[:_CONSTANT_WIDTH],
        f"{found.best_constant_score:.2f}",
        "-" if found.best_constant_share_right is None else percent(found.best_constant_share_right),
        str(sum(found.errors.values()) + sum(found.hostile_errors.values())),
        percent(found.num_other_under_other_hash_seed / found.num_made_again) if found.num_made_again else "-",
        *map(_milliseconds, (found.seconds_to_make_median, found.seconds_to_make_p99)),
        *map(_milliseconds, (found.seconds_to_score_median, found.seconds_to_score_p99)),
        *map(_count, (found.prompt_tokens_median, found.prompt_tokens_p90, found.prompt_tokens_max)),
        "yes" if found.has_curriculum else "no",
    )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.2f}"


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)
