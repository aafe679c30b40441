"""A run stops if vLLM and the engine disagree in the first update, and warns if they drift apart later."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.experiments import small_experiment, small_run
from transfer_queue import KVBatchMeta

from rgtrain.checkpoints.metrics_file import METRICS
from rgtrain.errors import ConfigError
from rgtrain.training.lifecycle.console import PLAIN_MARK
from rgtrain.training.rollout_alarm import LIMITS, ROLLOUT_GAP, GapLimit, RolloutAlarm, RolloutMismatch, gap_limit
from rgtrain.training.trainer import FastTrainer

ROOT = Path(__file__).parents[2]


def warnings_of(*gaps: float, dtype: str = "bfloat16", **arguments) -> list[int]:
    """Return the steps that warn, if each update has the next gap. The first step is 1."""
    lines: list[str] = []
    stop_above = arguments.pop("stop_above", LIMITS[dtype])
    alarm = RolloutAlarm(GapLimit("a-model", dtype, stop_above), say=lines.append, **arguments)
    steps = []
    for step, gap in enumerate(gaps, start=1):
        before = len(lines)
        alarm.observe({ROLLOUT_GAP: gap, "actor/rollout_gap/max": 10 * gap}, step=step)
        steps += [step] * (len(lines) > before)
    return steps


class UpdatingTrainer(FastTrainer):
    """A trainer whose worker only reports a rollout gap."""

    def __init__(self, run_dir: Path, *changes: str, gap: float, resumed_step: int = 0):
        # The widest format of a CPU would depend on the machine.
        formats = ["rollout.dtype=bfloat16", "actor.fsdp_config.mixed_precision.param_dtype=bf16"]
        formats = [f"actor_rollout_ref.{change}" for change in formats]
        self.config = small_experiment(run_dir, *formats, "actor_rollout_ref.model.path=the/model", *changes)
        metrics = {"rollout_gap/mean": [gap], "rollout_gap/max": [5.0], "mfu": [0.1]}
        self.actor_rollout_wg = SimpleNamespace(update_actor=lambda batch: {"metrics": dict(metrics)})
        self.distillation_config = None
        self.global_steps, self._resumed_step = resumed_step + 1, resumed_step

    def updated(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        self._update_actor(KVBatchMeta(partition_id="train"), metrics)
        return metrics


def test_a_first_gap_above_the_limit_stops_the_trainer_before_it_can_save(tmp_path, capsys):
    with pytest.raises(RolloutMismatch, match=r"disagree by 0.31 nats per token, above 0.2"):
        UpdatingTrainer(tmp_path, gap=0.31).updated()
    printed = capsys.readouterr().out
    assert all(line.startswith(PLAIN_MARK) for line in printed.splitlines())
    for part in ("is 0.31 nats (largest: 5)", "0.2 for bfloat16", "the/model", "engine=verl", "rollout.dtype", "never"):
        assert part in printed


def test_a_small_first_gap_is_only_logged(tmp_path, capsys):
    assert UpdatingTrainer(tmp_path, gap=0.05).updated()[ROLLOUT_GAP] == 0.05
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("setting", "gap"), [("never", 3.0), ("0.5", 0.4)])
def test_the_limit_can_be_raised_or_removed(tmp_path, setting, gap):
    UpdatingTrainer(tmp_path, f"trainer.max_rollout_gap={setting}", gap=gap).updated()


def test_a_continued_run_is_not_stopped_by_a_gap_that_had_grown_before(tmp_path, capsys):
    (tmp_path / METRICS).write_text(json.dumps({"step": 7, ROLLOUT_GAP: 0.25}) + "\n")
    UpdatingTrainer(tmp_path, gap=0.3, resumed_step=7).updated()
    assert "warning: the rollout gap of the first update is 0.3" in capsys.readouterr().out
    with pytest.raises(RolloutMismatch, match="above 0.5"):
        UpdatingTrainer(tmp_path, gap=0.6, resumed_step=7).updated()


@pytest.mark.parametrize("gap", [0.31, math.inf, math.nan])
def test_the_first_gap_must_be_a_number_below_the_limit(gap):
    with pytest.raises(RolloutMismatch):
        warnings_of(gap)


def test_growth_warns_once_per_doubling():
    assert warnings_of(0.03, 0.05, 0.07, 0.1, 0.13, 0.15, 0.3, math.nan, math.nan) == [3, 6, 8]


def test_small_gaps_may_double_without_a_warning():
    assert warnings_of(0.001, 0.01, 0.02, 0.045) == []


def test_a_first_gap_above_half_of_the_limit_warns():
    assert warnings_of(0.12, 0.12) == [1]


def test_updates_without_a_gap_are_skipped():
    RolloutAlarm(GapLimit("a-model", "float32", 0.02), say=pytest.fail).observe({"actor/loss": 1.0}, step=1)


@pytest.mark.parametrize(
    ("vllm", "engine", "dtype"),
    [
        ("float32", "fp32", "float32"),
        ("float32", "bf16", "bfloat16"),
        ("half", "fp32", "float16"),
        ("float16", "bfloat16", "bfloat16"),
        ("auto", "fp32", "bfloat16"),
    ],
)
def test_the_limit_is_that_of_the_coarser_format(tmp_path, vllm, engine, dtype):
    param_dtype = f"actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype={engine}"
    limit = gap_limit(small_run(tmp_path, f"actor_rollout_ref.rollout.dtype={vllm}", param_dtype))
    assert (limit.dtype, limit.stop_above) == (dtype, LIMITS[dtype])


def test_bf16_is_the_engines_default(tmp_path):
    mixed_precision = "actor_rollout_ref.actor.fsdp_config.mixed_precision=null"
    limit = gap_limit(small_run(tmp_path, "actor_rollout_ref.rollout.dtype=float32", mixed_precision))
    assert limit.dtype == "bfloat16"


@pytest.mark.parametrize("value", ["0", "-1", "always", "true"])
def test_other_limits_are_refused(tmp_path, value):
    with pytest.raises(ConfigError, match=r"trainer.max_rollout_gap is .*; give a number above 0, never or null"):
        small_run(tmp_path, f"trainer.max_rollout_gap={value}")


def test_every_measured_run_is_several_times_below_the_limit():
    measured = []
    for path in (ROOT / "benchmarks" / "results").rglob("*.json"):
        # The random model that ends its responses has one large part in all logits, which bf16 rounds (gap 0.08).
        if path.stem.endswith("_tailed"):
            continue
        result = json.loads(path.read_text())
        for node in result["raw"].values() if isinstance(result, dict) and isinstance(result.get("raw"), dict) else ():
            measured += (
                [gap for gap in node.get("rollout_gap", ()) if gap is not None] if isinstance(node, dict) else []
            )
    assert len(measured) > 100
    assert 3 * max(measured) < LIMITS["bfloat16"]
