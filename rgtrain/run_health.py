"""Rules that find runs which probably do not learn their task, from the metrics of their steps.

Training and reports share these rules. Each compares means over a window of steps with a threshold. Thresholds are
chosen so that the project's own runs, which learn, cause no severe warning.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

from rgtrain.checkpoints.metrics_file import DATASET_IN_METRIC, VALIDATION_ACCURACY
from rgtrain.problems.soundness import committed_audit

# Training steps over which means are taken.
WINDOW = 10
_LONG_WINDOW = 50
_TRAIN_ACCURACY = re.compile(rf"train/({DATASET_IN_METRIC})/acc")
_REWARD_FAILURES = re.compile(rf"train/{DATASET_IN_METRIC}/num_failed_(.++)")
_WATCHED = {
    *(f"all/{name}" for name in ("acc", "zero_signal", "identical", "reward_format", "not_judged", "reward_failed")),
    *(
        f"actor/{name}"
        for name in ("entropy", "grad_norm", "kl_loss", "ppo_kl", "reward_kl_penalty", "rollout_gap/mean")
    ),
    "response_length/clip_ratio",
    "rollout/sampled_entropy",
}
# A mixture that is nearly solved needs no warning about a missing signal or equal completions.
_NEARLY_SOLVED = 0.9
# Means of accuracies that differ by less are equal in practice.
_NOTICEABLE = 0.15
# A validation is worse if it is so many standard errors below the best one, which is the best of many.
_ERRORS = 3
_NO_ENTRIES: Mapping[str, Any] = {}


@dataclass(frozen=True)
class HealthWarning:
    """A warning.

    Attributes:
        name: The rule, which is also the end of the metric `health/NAME`.
        is_severe: Whether the run probably does not learn its task.
        step: The step at which the condition was first met.
        finding: The metric, its value and the threshold.
        advice: A sentence about common remedies.
    """

    name: str
    is_severe: bool
    step: int
    finding: str
    advice: str

    def __str__(self) -> str:
        return f"{'warning' if self.is_severe else 'notice'}: {self.finding}. {self.advice}"


class HealthMonitor:
    """Watches the metrics of a run, step by step.

    A rule warns when its condition begins to hold, and again only after the condition did not hold for 50 steps.

    Args:
        num_validation_problems: The number of problems of a validation, for the error of its accuracies.
        mixture: The configuration's `data.mixture`, whose entries may name other generators than their own names.
    """

    def __init__(self, *, num_validation_problems: int, mixture: Mapping[str, Any] = _NO_ENTRIES):
        self._history = _History(num_validation_problems, mixture)
        # By rule, the last step at which its condition held, now and before the present step.
        self._held: dict[str, int] = {}
        self._held_before: dict[str, int] = {}

    def observe(self, metrics: Mapping[str, Any], *, step: int) -> list[HealthWarning]:
        """Add the metrics of a step, in order of steps, and return the warnings that begin with it.

        Args:
            metrics: The metrics by name. Step 0 is the validation before training. If the step was observed
                before, they replace its earlier ones.
            step: The step.

        Returns:
            The warnings.
        """
        if self._history.begin(step):
            self._held_before = self._held
        self._history.add(metrics)
        warnings = [
            HealthWarning(name, rule.is_severe, step, finding, rule.advice)
            for name, rule in _RULES.items()
            if (finding := rule.check(self._history))
        ]
        self._held = self._held_before | {warning.name: step for warning in warnings}
        return [
            warning for warning in warnings if step - self._held_before.get(warning.name, -_LONG_WINDOW) >= _LONG_WINDOW
        ]


def health_warnings(
    records: Sequence[Mapping[str, Any]], *, num_validation_problems: int, mixture: Mapping[str, Any] = _NO_ENTRIES
) -> list[HealthWarning]:
    """Return the warnings of all steps of a run, whose records are in order of steps. See `HealthMonitor`."""
    monitor = HealthMonitor(num_validation_problems=num_validation_problems, mixture=mixture)
    return [warning for record in records for warning in monitor.observe(record, step=record["step"])]


class _History:
    """The numbers of all steps by metric, and means over windows of them."""

    def __init__(self, num_validation_problems: int, mixture: Mapping[str, Any]):
        self._num_validation_problems = num_validation_problems
        self.generators = {
            name: options["generator"]
            for name, options in mixture.items()
            if isinstance(options, Mapping) and "generator" in options
        }
        self._step: int | None = None
        self._series: dict[str, list[float]] = {}
        self._best_means: dict[str, float] = {}
        # The names that the present step added, and the best means before it.
        self._added: list[str] = []
        self._best_before: dict[str, float] = {}
        # The step, the mean accuracy over datasets and its standard error, of each validation.
        self.validations: list[tuple[int, float, float]] = []

    def begin(self, step: int) -> bool:
        """Begin a step, or forget its values if it has begun already. Return whether it is new."""
        if step == self._step:
            for name in self._added:
                self._series[name].pop()
            self._best_means = dict(self._best_before)
            if self.validations and self.validations[-1][0] == step:
                self.validations.pop()
        is_new = step != self._step
        self._step, self._added, self._best_before = step, [], dict(self._best_means)
        return is_new

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Add the metrics of the present step."""
        validated = []
        for name, value in {**metrics, **_derived(metrics)}.items():
            if name not in _WATCHED and not _TRAIN_ACCURACY.fullmatch(name) and not VALIDATION_ACCURACY.fullmatch(name):
                continue
            if not isinstance(value, int | float) or not math.isfinite(value):
                continue
            self._series.setdefault(name, []).append(float(value))
            self._added.append(name)
            if _TRAIN_ACCURACY.fullmatch(name) and (mean := self.mean(name, num_steps=2 * WINDOW)) is not None:
                self._best_means[name] = max(mean, self._best_means.get(name, mean))
            elif VALIDATION_ACCURACY.fullmatch(name):
                validated.append(float(value))
        if validated and self._step is not None:
            self.validations.append((self._step, fmean(validated), self._error(fmean(validated))))

    def values(self, name: str) -> Sequence[float]:
        """Return the values of all steps that have the metric."""
        return self._series.get(name, [])

    def mean(self, name: str, *, num_steps: int = WINDOW) -> float | None:
        """Return the mean over the last steps, or None if there are fewer."""
        values = self.values(name)
        return fmean(values[-num_steps:]) if len(values) >= num_steps else None

    def first_mean(self, name: str) -> float | None:
        """Return the mean over the first steps, or None before the run has twice as many."""
        values = self.values(name)
        return fmean(values[:WINDOW]) if len(values) >= 2 * WINDOW else None

    def best_mean(self, name: str) -> float | None:
        """Return the highest mean of a training accuracy over twice the window so far."""
        return self._best_means.get(name)

    def training_accuracies(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the dataset of each training accuracy."""
        for name in self._series:
            if match := _TRAIN_ACCURACY.fullmatch(name):
                yield name, match[1]

    def _error(self, share: float) -> float:
        # Near 0 and 1, the plug-in error would vanish (Agresti and Coull, 1998).
        size = max(1, self._num_validation_problems)
        within = (size * min(1.0, max(0.0, share)) + 2) / (size + 4)
        return math.sqrt(within * (1 - within) / size)


def _derived(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return means over datasets, weighted by completions."""
    weights = {
        name[len("train/") : -len("/num_scored")]: float(value)
        for name, value in metrics.items()
        if name.startswith("train/") and name.endswith("/num_scored") and isinstance(value, int | float)
    }
    total = sum(weights.values())
    derived = {}
    for detail in ("acc", "zero_signal", "identical", "reward_format"):
        values = {name: metrics.get(f"train/{name}/{detail}") for name in weights}
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if total and len(numbers) == len(weights):
            derived[f"all/{detail}"] = sum(weights[name] * value for name, value in numbers.items()) / total
    if total:
        failures = sum(
            float(metrics.get(f"train/{name}/num_{kind}") or 0)
            for name in weights
            for kind in ("timeout", "memory", "crash", "exception")
        )
        derived["all/not_judged"] = failures / total
        # The number for the reward function that fails most.
        by_function: dict[str, float] = defaultdict(float)
        for name, value in metrics.items():
            if (match := _REWARD_FAILURES.fullmatch(name)) and isinstance(value, int | float):
                by_function[match[1]] += value
        if by_function:
            derived["all/reward_failed"] = max(by_function.values()) / total
    return derived


def _fell_from_best(history: _History) -> str | None:
    """Return a clause about the dataset whose accuracy fell most from its best mean, if one fell noticeably."""
    falls = {}
    for name, _ in history.training_accuracies():
        now, best = history.mean(name, num_steps=2 * WINDOW), history.best_mean(name)
        if now is None or best is None or best - now <= _NOTICEABLE:
            continue
        # The best of many noisy means is too high.
        noise = stdev(history.values(name)[-2 * WINDOW :]) * math.sqrt(2 / (2 * WINDOW))
        if best - now > 4 * noise:
            falls[best - now] = f"{name} fell from {best:.2f} to {now:.2f}"
    return falls[max(falls)] if falls else None


def _entropy(history: _History) -> tuple[float, float] | None:
    """Return the mean entropy of the first and of the last steps, in nats per token."""
    for name in ("actor/entropy", "rollout/sampled_entropy"):
        first, now = history.first_mean(name), history.mean(name)
        if first is not None and now is not None:
            return first, now
    return None


def _entropy_collapse(history: _History) -> str | None:
    means = _entropy(history)
    if means is None or means[1] >= 0.05 or means[1] >= 0.2 * means[0]:
        return None
    # A run that collapses within its first steps has no good training accuracy to fall from.
    if fell := _fell_from_best(history) or _held_out_fell(history):
        return f"the entropy fell from {means[0]:.2g} to {means[1]:.2g} nats per token (limit 0.05), and {fell}"
    return None


def _constant_answer(history: _History) -> str | None:
    means = _entropy(history)
    if means is None or means[1] >= 0.5 * means[0]:
        return None
    for name, dataset in history.training_accuracies():
        found = committed_audit().datasets.get(history.generators.get(dataset, dataset))
        now, best = history.mean(name), history.best_mean(name)
        if found is None or now is None or best is None or len(history.values(name)) < 2 * WINDOW:
            continue
        pays = found.best_constant_score
        if pays >= 0.1 and abs(now - pays) <= 0.05 and best - now > 0.05:
            return (
                f"{name} is {now:.2f}, and the constant answer {found.best_constant!r:.40} earns {pays:.2f}, while the "
                f"entropy fell from {means[0]:.2g} to {means[1]:.2g} nats per token"
            )
    return None


def _held_out_fell(history: _History) -> str | None:
    """Return a clause about the held-out accuracy if the last two validations are below the best one."""
    validations = history.validations
    if len(validations) < 3:
        return None
    best = max(validations[:-2], key=lambda one: one[1])
    recent = validations[-2:]
    if all(best[1] - mean > _ERRORS * math.hypot(error, best[2]) for _, mean, error in recent):
        return (
            f"the held-out accuracy fell from {best[1]:.3f} (step {best[0]}) to {recent[-1][1]:.3f}, by more than "
            f"three times its error"
        )
    return None


def _held_out_falls(history: _History) -> str | None:
    """Return a finding if the training accuracy stands or rises while the held-out accuracy falls."""
    now, recent_values = history.mean("all/acc"), history.values("all/acc")[-_LONG_WINDOW:]
    if now is None or now <= fmean(recent_values) - 0.02:
        return None
    fell = _held_out_fell(history)
    return f"{fell}, while the training accuracy did not fall" if fell else None


def _validation_regress(history: _History) -> str | None:
    validations = history.validations
    if len(validations) < 2:
        return None
    best, last = max(validations[:-1], key=lambda one: one[1]), validations[-1]
    if best[1] - last[1] > _ERRORS * math.hypot(best[2], last[2]):
        return f"the held-out accuracy {last[1]:.3f} is three times its error below {best[1]:.3f} of step {best[0]}"
    return None


def _cut_off(history: _History) -> str | None:
    share = history.mean("response_length/clip_ratio")
    return (
        f"response_length/clip_ratio is {share:.2f} over {WINDOW} steps (limit 0.5)" if share and share > 0.5 else None
    )


def _no_signal(history: _History) -> str | None:
    share, accuracy = history.mean("all/zero_signal", num_steps=2 * WINDOW), history.mean("all/acc")
    if share is None or share <= 0.8 or accuracy is None or accuracy >= _NEARLY_SOLVED:
        return None
    return f"zero_signal is {share:.2f} over {2 * WINDOW} steps (limit 0.8) at a mean accuracy of {accuracy:.2f}"


def _growing_gap(history: _History) -> str | None:
    name = "actor/rollout_gap/mean"
    first, now = history.first_mean(name), history.mean(name)
    if first is None or now is None or now < 2 * first or now < 0.02:
        return None
    return f"{name} grew from {first:.3g} to {now:.3g} nats (limit twice its start)"


def _gradient_spike(history: _History) -> str | None:
    norms = history.values("actor/grad_norm")
    if len(norms) < 2 * WINDOW:
        return None
    usual = median(norms[-_LONG_WINDOW - 1 : -1])
    return (
        f"actor/grad_norm is {norms[-1]:.3g}, over 20 times its median {usual:.3g}"
        if norms[-1] > 20 * usual > 0
        else None
    )


def _kl_runaway(history: _History) -> str | None:
    for name, limit in (("actor/ppo_kl", 0.3), ("actor/kl_loss", 2.0), ("actor/reward_kl_penalty", 2.0)):
        mean = history.mean(name)
        if mean is not None and abs(mean) > limit:
            return f"{name} is {mean:.3g} nats per token over {WINDOW} steps (limit {limit})"
    return None


def _identical(history: _History) -> str | None:
    share, accuracy = history.mean("all/identical"), history.mean("all/acc")
    if share is None or share <= 0.5 or accuracy is None or accuracy >= _NEARLY_SOLVED:
        return None
    return (
        f"the completions of {share:.0%} of the groups are identical (limit 50%) at a mean accuracy of {accuracy:.2f}"
    )


def _format_only(history: _History) -> str | None:
    accuracies = history.values("all/acc")
    form, now = history.mean("all/reward_format", num_steps=_LONG_WINDOW), history.mean("all/acc")
    if form is None or form < 0.95 or now is None or now >= 0.5 or len(accuracies) < _LONG_WINDOW:
        return None
    before = fmean(accuracies[-_LONG_WINDOW : -_LONG_WINDOW + WINDOW])
    if now - before > 0.02:
        return None
    return (
        f"reward_format is {form:.2f} over {_LONG_WINDOW} steps, while the accuracy went from {before:.2f} to {now:.2f}"
    )


def _not_judged(history: _History) -> str | None:
    share = history.mean("all/not_judged", num_steps=5)
    return f"{share:.1%} of the answers were not judged over 5 steps (limit 1%)" if share and share > 0.01 else None


def _reward_failed(history: _History) -> str | None:
    share = history.mean("all/reward_failed", num_steps=5)
    if share is None or share <= 0.01:
        return None
    return f"a reward function failed for {share:.1%} of the completions over 5 steps (limit 1%)"


@dataclass(frozen=True)
class _Rule:
    check: Callable[[_History], str | None]
    is_severe: bool
    advice: str


_RULES: Mapping[str, _Rule] = {
    "entropy_collapse": _Rule(
        _entropy_collapse,
        True,
        "Go back to the best checkpoint with a lower actor.optim.lr or a KL loss (algorithm=grpo).",
    ),
    "constant_answer": _Rule(
        _constant_answer,
        True,
        "The model probably learned that answer: lower actor.optim.lr, add a KL loss, or train on a harder level.",
    ),
    "held_out_falls": _Rule(
        _held_out_falls,
        True,
        "Look at the rollouts for answers that please the verifier only, and keep the best checkpoint.",
    ),
    "cut_off": _Rule(
        _cut_off, True, "Raise data.max_response_length, or add the reward part length for shorter responses."
    ),
    "no_signal": _Rule(
        _no_signal, False, "Use easier or harder problems, a curriculum, more responses per prompt, or algorithm=dapo."
    ),
    "growing_gap": _Rule(_growing_gap, False, "See docs/troubleshooting.md on vLLM and the training engine."),
    "gradient_spike": _Rule(
        _gradient_spike, False, "One spike is clipped and harmless; if they repeat, lower actor.optim.lr."
    ),
    "kl_runaway": _Rule(_kl_runaway, True, "Lower actor.optim.lr, or raise the KL coefficient."),
    "identical": _Rule(
        _identical, False, "Such groups teach nothing: raise the sampling temperature, or lower actor.optim.lr."
    ),
    "format_only": _Rule(
        _format_only,
        False,
        "The format is learned: give it less weight, and use easier problems so that some are solved.",
    ),
    "not_judged": _Rule(
        _not_judged, False, "They score 0: raise reward.scorer.timeout_s or memory_mb, or look at these answers."
    ),
    "reward_failed": _Rule(
        _reward_failed, True, "These parts have the value on_failure; the log has the reason and a completion."
    ),
    "validation_regress": _Rule(
        _validation_regress,
        False,
        "If the next validation confirms it, keep the best checkpoint and lower actor.optim.lr.",
    ),
}
