"""Stop a run in which vLLM and the training engine disagree about the same weights, and warn if they drift apart."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rgtrain.config.run_config import RunConfig

ROLLOUT_GAP = "actor/rollout_gap/mean"
_LARGEST_GAP = "actor/rollout_gap/max"
# The largest mean gap of a sound run in nats, by the coarser number format of vLLM and the engine. Each is several
# times the measured gaps. In bf16, these are up to 0.032 for SmolLM2-135M on short answers, 0.051 for the same model
# without worked examples, and 0.018 for a random model of 1.5B parameters (benchmarks/results). In fp32, the gap is
# 2e-6 on a CPU, but GPUs may multiply in TF32, which rounds like fp16. fp16 is not measured. It rounds eight times
# finer than bf16.
LIMITS = {"float32": 0.02, "float16": 0.03, "bfloat16": 0.2}
# All spellings that verl and vLLM accept.
_FORMATS = {
    "float32": ("float32", "float", "fp32", "32"),
    "float16": ("float16", "half", "fp16", "16"),
    "bfloat16": ("bfloat16", "bf16"),
}


class RolloutMismatch(RuntimeError):
    """vLLM and the training engine give the same tokens different log-probabilities."""


@dataclass(frozen=True)
class GapLimit:
    """The limit on the first gap of a run.

    Attributes:
        model: The model's path or name.
        dtype: The coarser number format of vLLM and the engine.
        stop_above: The run stops if its first mean gap is larger. None means that it never stops.
    """

    model: str
    dtype: str
    stop_above: float | None

    @property
    def usual(self) -> float:
        """The largest gap that rounding explains, even if the run never stops."""
        return LIMITS[self.dtype] if self.stop_above is None else self.stop_above


def gap_limit(config: RunConfig) -> GapLimit:
    """Return the limit that a run's configuration sets, by default that of its number format."""
    # verl computes in bf16 unless mixed_precision names another format.
    mixed_precision = config.actor.fsdp_config.mixed_precision or {}
    formats = [mixed_precision.get("param_dtype") or "bf16", config.rollout.dtype]
    dtype = max(map(_number_format, formats), key=list(LIMITS).index)
    chosen = config.trainer.max_rollout_gap
    stop_above = None if chosen == "never" else float(LIMITS[dtype] if chosen is None else chosen)
    return GapLimit(config.model.path, dtype, stop_above)


def _number_format(name: Any) -> str:
    """Return the name in LIMITS. An unknown name, such as "auto", counts as the coarsest format."""
    spelling = str(name).removeprefix("torch.").lower()
    return next((known for known, spellings in _FORMATS.items() if spelling in spellings), "bfloat16")


def last_gap(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the last gap among the records of metrics.jsonl, or None if there is none."""
    return next((record[ROLLOUT_GAP] for record in reversed(records) if record.get(ROLLOUT_GAP) is not None), None)


class RolloutAlarm:
    """Compares the rollout gap of each update with the first one of this start.

    Args:
        limit: The limit on the first gap.
        previous: The last gap of the run before this start, if it is continued. A gap that grew during training raises
            the limit, because the growth was reported when it happened.
        say: Prints a line on the run's terminal.
    """

    def __init__(self, limit: GapLimit, *, previous: float | None = None, say: Callable[[str], None]):
        self._limit = limit
        self._previous = previous
        self._say = say
        # The first gap, then the gap of each warning.
        self._reported: float | None = None

    def observe(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Check the gap of an update. Call it before the updated weights are saved.

        Args:
            metrics: The metrics of the update. Without a gap among them, nothing happens.
            step: The training step.

        Raises:
            RolloutMismatch: The first gap exceeds the limit or is not a number.
        """
        if ROLLOUT_GAP not in metrics:
            return
        gap = float(metrics[ROLLOUT_GAP])
        # Comparisons with NaN would all be false.
        gap = math.inf if math.isnan(gap) else gap
        if self._reported is None:
            self._check_first(gap, largest=float(metrics.get(_LARGEST_GAP, math.nan)))
            self._reported = gap
        # Gaps far below the limit double by chance, for example if the answers get shorter.
        elif gap > max(2 * self._reported, self._limit.usual / 4):
            self._say(
                f"warning: vLLM and the training engine drift apart, because the rollout gap is {gap:.3g} in step "
                f"{step} and was {self._reported:.3g} before; docs/troubleshooting.md says what to try"
            )
            self._reported = gap

    def _check_first(self, gap: float, *, largest: float) -> None:
        limit, usual = self._limit, self._limit.usual
        if self._previous is not None:
            usual = max(usual, 2 * self._previous)
        if gap <= usual / 2:
            return
        measured = f"the rollout gap of the first update is {gap:.3g} nats (largest: {largest:.3g})"
        if gap <= usual or limit.stop_above is None:
            self._say(f"warning: {measured}, and {limit.dtype} explains about {LIMITS[limit.dtype] / 4:.3g}")
            return
        for line in (
            f"{measured}; the limit is {usual:.3g} for {limit.dtype} (trainer.max_rollout_gap)",
            f"vLLM and the training engine have the same weights of {limit.model}, but give its sampled tokens other "
            "log-probabilities. One of them computes this model wrongly, so training would push it in wrong "
            "directions. The update is not saved.",
            "try `engine=verl`; one number format on both sides (actor_rollout_ref.rollout.dtype and "
            "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype); another attention of vLLM "
            "(actor_rollout_ref.rollout.engine_kwargs.vllm.attention_backend). If none helps, please report the model "
            "with train.log. trainer.max_rollout_gap=never trains anyway.",
        ):
            self._say(line)
        raise RolloutMismatch(f"vLLM and the training engine disagree by {gap:.3g} nats per token, above {usual:.3g}")
