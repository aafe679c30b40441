"""Two evaluations of the same problems side by side: before and after training."""

from collections.abc import Mapping
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.tables import percent, text_table

_HEADER = ("dataset", "problems", "before %", "after %", "points")


def comparison_table(base_summary: Mapping[str, Any], trained_summary: Mapping[str, Any]) -> str:
    """Strict accuracy before and after with standard errors, per dataset and overall, as a text table.

    The summaries are those that an evaluation writes. Raises ConfigError unless both asked the same problems in the
    same way: the difference would not be the training's.
    """
    _check_comparable(base_summary, trained_summary)
    rows = [
        _row(base["dataset"], base, trained)
        for base, trained in zip(base_summary["datasets"], trained_summary["datasets"], strict=True)
    ]
    rows.append(_row("overall", base_summary["overall"], trained_summary["overall"]))
    return text_table(_HEADER, rows)


def _row(name: str, base: Mapping[str, Any], trained: Mapping[str, Any]) -> tuple[str, ...]:
    difference = 100 * (trained["strict_accuracy"] - base["strict_accuracy"])
    return (
        name,
        str(base["num_problems"]),
        percent(base["strict_accuracy"], base["strict_accuracy_error"]),
        percent(trained["strict_accuracy"], trained["strict_accuracy_error"]),
        f"{difference:+.1f}",
    )


def _check_comparable(base: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
    ignored = {"model_path", "dtype", "save_metadata", "save_full_results", "max_model_len"}
    changed = sorted(
        f"{key} ({base['config'].get(key)!r:.80} and {trained['config'].get(key)!r:.80})"
        for key in (base["config"].keys() | trained["config"].keys()) - ignored
        if base["config"].get(key) != trained["config"].get(key)
    )
    if changed:
        raise ConfigError(
            f"the two evaluations can't be compared: they differ in {', '.join(changed)}; "
            "evaluate both models with the same file"
        )
    for before, after in zip(base["datasets"], trained["datasets"], strict=True):
        if before["problems_digest"] != after["problems_digest"]:
            raise ConfigError(
                f"the two evaluations can't be compared: they asked other problems of dataset {before['dataset']!r} "
                "under the same seed, so Reasoning Gym or its parameters changed; evaluate both models again"
            )
