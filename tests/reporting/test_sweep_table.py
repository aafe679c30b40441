"""The table of a sweep groups jobs by everything but their seeds, and counts only those that finished."""

import json

import pytest

from rgtrain.reporting.sweep_table import FAILED, FINISHED, SweepJob, as_markdown, as_text, seed_groups


def job(seed: int, lr: str, reward: float, *, state: str = FINISHED, **others: float) -> SweepJob:
    done = SweepJob("name", {"seed": str(seed), "lr": lr}, None, state=state, exit_code=int(state == FAILED))
    done.metrics = {"steps": 24, "reward": reward, **others}
    return done


JOBS = [
    job(1, "1e-5", 0.2, length=10),
    job(2, "1e-5", 0.4, length=12),
    job(1, "2e-5", 0.9),
    job(2, "2e-5", 0.0, state=FAILED),
]


def test_jobs_that_differ_only_in_seeds_have_mean_and_standard_deviation():
    [group] = seed_groups(JOBS)
    assert (group.values, group.num_jobs) == ({"lr": "1e-5"}, 2)
    assert group.mean == pytest.approx({"steps": 24, "reward": 0.3, "length": 11})
    assert group.standard_deviation == pytest.approx({"steps": 0, "reward": 0.1 * 2**0.5, "length": 2**0.5})


def test_both_tables_show_every_job_and_only_columns_with_values():
    lines = as_text(JOBS).splitlines()
    assert lines[0].split() == ["seed", "lr", "state", "steps", "reward", "length"]
    assert lines[5].split() == ["2", "2e-5", "failed", "(1)", "24", "0.000"]
    assert " ".join(lines[6].split()) == "1e-5 mean ± sd of 2 24 ± 0 0.300 ± 0.141 11.0 ± 1.4"
    assert as_markdown(JOBS).splitlines()[2] == "| 1 | 1e-5 | finished | 24 | 0.200 | 10.0 |"


def test_metrics_are_read_from_the_run_and_a_missing_one_is_left_out(tmp_path):
    records = [{"step": 1, "timing_s/step": seconds, "critic/rewards/mean": None} for seconds in (9, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    read = SweepJob("name", {}, tmp_path)
    read.read()
    assert read.metrics == {"steps": 1, "s/step": 3}
    missing = SweepJob("name", {}, tmp_path / "none")
    missing.read()
    assert missing.metrics == {}
