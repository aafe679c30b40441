"""Each rule warns about the runs that it describes, once, and about no run that learns."""

import math
import random
from collections.abc import Callable, Mapping

import pytest

from rgtrain.run_health import _RULES, HealthMonitor, health_warnings

NUM_STEPS = 120


def run(num_steps: int = NUM_STEPS, *, seed: int = 1, **changed: Callable[[int], float]) -> list[dict[str, float]]:
    """Return the records of a run that learns gcd, with noise. `changed` has other values, as functions of the step."""
    chance = random.Random(seed)

    def noisy(value: float, deviation: float) -> float:
        return value + chance.gauss(0, deviation)

    records = []
    for step in range(num_steps + 1):
        progress = 1 / (1 + math.exp(-(step - num_steps / 3) / (num_steps / 10)))
        values = {
            "accuracy": min(1.0, max(0.0, noisy(0.05 + 0.6 * progress, 0.08))),
            "held_out": min(1.0, max(0.0, noisy(0.05 + 0.5 * progress, 0.03))),
            "entropy": abs(noisy(0.4 - 0.3 * progress, 0.03)),
            "cut_off": abs(noisy(0.1, 0.05)),
            "no_signal": min(1.0, noisy(0.5, 0.1)),
            "gap": abs(noisy(0.01, 0.001)),
            "grad_norm": abs(noisy(0.4, 0.15)),
            "kl": abs(noisy(0.01 * progress, 0.002)),
            "identical": abs(noisy(0.05, 0.02)),
            "form": 0.9,
            "timeouts": 0.0,
            "failures": 0.0,
        }
        values |= {name: value(step) for name, value in changed.items()}
        record = {"step": step}
        if step:
            record |= {
                "train/gcd/acc": values["accuracy"],
                "train/gcd/num_scored": 256,
                "train/gcd/zero_signal": values["no_signal"],
                "train/gcd/identical": values["identical"],
                "train/gcd/reward_format": values["form"],
                "train/gcd/num_timeout": values["timeouts"],
                "train/gcd/num_failed_brevity": values["failures"],
                "actor/entropy": values["entropy"],
                "actor/rollout_gap/mean": values["gap"],
                "actor/grad_norm": values["grad_norm"],
                "actor/kl_loss": values["kl"],
                "response_length/clip_ratio": values["cut_off"],
            }
        if step % 10 == 0:
            record["val-core/gcd/acc/mean@1"] = values["held_out"]
        records.append(record)
    return records


def found(records: list[dict[str, float]]) -> dict[str, int]:
    warnings = health_warnings(records, num_validation_problems=128)
    assert len({warning.name for warning in warnings}) == len(warnings), "a rule warned twice"
    return {warning.name: warning.step for warning in warnings}


def later(value: float, otherwise: float, *, since: int = 60) -> Callable[[int], float]:
    return lambda step: value if step >= since else otherwise


@pytest.mark.parametrize("num_steps", [24, 120, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_learns_has_no_severe_warning(seed, num_steps):
    warnings = health_warnings(run(num_steps, seed=seed), num_validation_problems=128)
    assert [str(warning) for warning in warnings if warning.is_severe] == []


SICK: Mapping[str, Mapping[str, Callable[[int], float]]] = {
    "entropy_collapse": {"entropy": later(0.005, 0.4), "accuracy": later(0.33, 0.57)},
    "constant_answer": {"entropy": later(0.1, 0.4), "accuracy": later(0.31, 0.45)},
    "held_out_falls": {"held_out": later(0.2, 0.5), "accuracy": lambda step: 0.3 + step / 400},
    "cut_off": {"cut_off": later(0.6, 0.1)},
    "no_signal": {"no_signal": later(0.9, 0.5)},
    "growing_gap": {"gap": lambda step: 0.01 * 1.02**step},
    "gradient_spike": {"grad_norm": lambda step: 50.0 if step == 80 else 0.4},
    "kl_runaway": {"kl": later(5.0, 0.01)},
    "identical": {"identical": later(0.7, 0.1)},
    "format_only": {"form": lambda step: 0.99, "accuracy": lambda step: 0.1},
    "not_judged": {"timeouts": later(20.0, 0.0)},
    "reward_failed": {"failures": later(20.0, 0.0)},
    "validation_regress": {"held_out": later(0.2, 0.5)},
}


@pytest.mark.parametrize("name", _RULES)
def test_a_sick_run_is_warned_about_soon_and_once(name):
    steps = found(run(**SICK[name]))
    assert name in steps
    assert steps[name] <= 90


def test_the_constant_answer_of_a_dataset_is_known_by_its_generator():
    records = [
        {key.replace("/gcd/", "/small/"): value for key, value in record.items()}
        for record in run(**SICK["constant_answer"])
    ]
    assert "constant_answer" not in found(records)
    warnings = health_warnings(records, num_validation_problems=128, mixture={"small": {"generator": "gcd"}})
    assert "constant_answer" in {warning.name for warning in warnings}


def test_the_warning_names_the_metric_the_limit_and_a_remedy():
    [warning] = health_warnings(run(**SICK["cut_off"]), num_validation_problems=128)
    assert str(warning) == (
        "warning: response_length/clip_ratio is 0.54 over 10 steps (limit 0.5). Raise data.max_response_length, or add "
        "the reward part length for shorter responses."
    ) or str(warning).startswith("warning: response_length/clip_ratio is 0.5")


def test_the_collapse_of_the_trial_is_found():
    """Entropy from 0.4 to 0.005 within 60 steps, accuracy from 0.57 back to the constant answer's 0.33."""
    steps = found(
        run(
            entropy=lambda step: 0.4 * math.exp(-step / 14),
            accuracy=lambda step: 0.57 * min(1, step / 20) if step < 40 else max(0.33, 0.57 - 0.012 * (step - 40)),
        )
    )
    assert steps["entropy_collapse"] <= 75
    assert "constant_answer" in steps


def test_a_collapse_within_the_first_steps_is_found():
    """As with ten times the learning rate: no training accuracy was ever good, but the held-out accuracy was."""
    steps = found(
        run(
            entropy=lambda step: 0.5 if step < 20 else 0.03,
            accuracy=lambda step: 0.12,
            held_out=lambda step: 0.37 if step == 0 else 0.17,
        )
    )
    assert steps["entropy_collapse"] <= 50


def test_a_step_that_is_observed_twice_counts_once():
    monitor, again = (HealthMonitor(num_validation_problems=128) for _ in range(2))
    for record in run(**SICK["cut_off"]):
        expected = monitor.observe(record, step=record["step"])
        again.observe({name: 0.0 for name in record}, step=record["step"])
        assert again.observe(record, step=record["step"]) == expected


def test_metrics_that_are_no_numbers_are_skipped():
    records = [{**record, "actor/entropy": None, "actor/grad_norm": math.nan} for record in run()]
    assert found(records) == found(run(entropy=lambda _: math.nan, grad_norm=lambda _: math.nan))


def test_a_run_without_metrics_has_no_warnings():
    assert health_warnings([], num_validation_problems=0) == []
    assert health_warnings([{"step": 1}], num_validation_problems=0) == []
