"""Curves keep the course of a metric in few points, and seeds make a band."""

import random
import re
from statistics import stdev

import pytest
from support import run_folders
from support.run_folders import write_run

from rgtrain.reporting.curves import SECTIONS, RunGroup, charts_by_section, smoothed
from rgtrain.reporting.run_reader import read_run


def charts(*groups: list) -> dict:
    by_section = charts_by_section([RunGroup(str(number), runs) for number, runs in enumerate(groups)])
    return {chart.title: chart for of_section in by_section.values() for chart in of_section}


def test_a_run_has_a_curve_per_dataset(tmp_path):
    found = charts([read_run(write_run(tmp_path / "run"))])
    accuracy = found["Training accuracy"]
    assert [curve.label for curve in accuracy.curves] == ["chain_sum", "spell_backward"]
    assert list(accuracy.curves[0].steps) == [1, 2, 3, 4, 5, 6]
    assert list(accuracy.curves[0].values) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert list(found["Held-out accuracy"].curves[0].steps) == [0, 3, 6]


def test_a_dataset_may_have_a_slash_in_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folders, "DATASETS", ("sound/coin_flip", "core/planning"))
    found = charts([read_run(write_run(tmp_path / "run"))])
    for title in ("Training accuracy", "Held-out accuracy"):
        assert [curve.label for curve in found[title].curves] == ["sound/coin_flip", "core/planning"]
    names = (
        "curriculum/core/planning/level",
        "curriculum/core/planning/success_at_level_2",
        "train/core/planning/solved",
    )
    kinds = [kind for of_section in SECTIONS.values() for kind in of_section]
    for name in names:
        [match] = [match for kind in kinds if (match := re.fullmatch(kind.pattern, name))]
        assert "core/planning" in match.groups()


def test_a_metric_without_numbers_has_no_chart(tmp_path):
    assert "Entropy" not in charts([read_run(write_run(tmp_path / "run"))])


def test_several_groups_have_a_chart_per_dataset(tmp_path):
    runs = [read_run(write_run(tmp_path / str(seed), seed=seed)) for seed in (1, 2)]
    found = charts([runs[0]], [runs[1]])
    assert [curve.label for curve in found["Training accuracy: chain_sum"].curves] == ["0", "1"]


def test_seeds_are_a_band_of_mean_and_standard_deviation(tmp_path):
    runs = [read_run(write_run(tmp_path / str(seed), seed=seed)) for seed in (1, 2, 6)]
    [curve] = charts(runs)["Reward"].curves
    deviation = stdev([0.01, 0.02, 0.06])
    assert curve.values[0] == pytest.approx(0.13)
    assert (curve.low[0], curve.high[0]) == pytest.approx((0.13 - deviation, 0.13 + deviation), abs=1e-5)


def test_many_steps_become_few_points_that_keep_the_extremes(tmp_path):
    run = read_run(write_run(tmp_path / "run", num_steps=6))
    values = [random.Random(1).random() for _ in range(5_000)]
    values[1234] = 7.0
    records = [{"step": step, "timing_s/step": 1.0, "critic/rewards/mean": value} for step, value in enumerate(values)]
    object.__setattr__(run, "records", records)
    [curve] = charts([run])["Reward"].curves
    assert len(curve.steps) == 400
    assert max(curve.high) == 7.0 and max(curve.values) < 1


def test_phases_that_a_step_lacks_count_as_0(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    records = [dict(record) for record in run.records]
    records[3]["timing_s/testing"] = 4.0
    object.__setattr__(run, "records", records)
    [testing] = [curve for curve in charts([run])["Seconds by phase"].curves if curve.label == "testing"]
    assert list(testing.values) == [0, 0, 4, 0, 0, 0]


def test_smoothing_keeps_a_constant_and_the_first_value():
    assert smoothed([2.0] * 1000) == pytest.approx([2.0] * 1000)
    assert smoothed([float(value) for value in range(1000)])[0] == 0.0
