"""A sweep runs every job in its own process and folder, and one table shows them all."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from rgtrain.commands import sweeper
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT

# Takes the place of a training: it writes one step's metrics, and fails or waits as its seed says.
STUB = """
import json, pathlib, signal, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word and not word.startswith("-"))
seed, folder = int(words["seed"]), pathlib.Path(words["run_dir"])
print("words", *sys.argv[1:], flush=True)
folder.mkdir(parents=True, exist_ok=True)
if seed == 13:
    sys.exit(1)
if seed == 99:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    print("waiting", flush=True)
    time.sleep(60)
lines = [{"step": 0, "val-core/gcd/acc/mean@1": 0.25}]
lines += [{"step": 1, "timing_s/step": 2.0, "critic/rewards/mean": seed / 10, "train/gcd/acc": 0.5}]
lines += [{"step": 2, "timing_s/step": 4.0, "critic/rewards/mean": seed / 5, "val-core/gcd/acc/mean@1": 0.75}]
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""
PROGRAM = """
import sys
from rgtrain import preflight
from rgtrain.commands import sweeper, train_command
stub = sys.argv.pop(1)
sweeper.own_command = lambda *words: [sys.executable, stub, *words]
if {quick}:
    preflight.check = lambda config: []
train_command.main(sys.argv[1:], program="rgtrain train")
"""


def start(folder: Path, *words: str, quick: bool = True) -> subprocess.Popen[str]:
    """Start a sweep of stubs in an empty folder."""
    stub = folder / "stub.py"
    stub.write_text(STUB)
    command = [sys.executable, "-c", PROGRAM.format(quick=quick), str(stub), "--config-name", "quickstart", *words]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "PYTHONHASHSEED": "0"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_every_job_runs_although_one_fails_and_the_table_has_means_over_seeds(tmp_path):
    sweep = start(tmp_path, "-m", "seed=choice(1,13,2)")
    output, errors = sweep.communicate(timeout=120)
    assert sweep.returncode == 1, errors
    assert "== job 1 of 3: seed=1, in runs/quickstart/seed_1" in output
    assert "== job 2 of 3 failed with exit code 1: seed=13" in output
    assert (
        "words train --config-name quickstart hydra.mode=RUN hydra.job.num=0 seed=1 "
        "trainer.experiment_name=quickstart/seed_1 run_dir=runs/quickstart/seed_1\n"
    ) in output
    table = json.loads((tmp_path / "runs" / "quickstart" / "sweep.json").read_text())
    assert [job["state"] for job in table["jobs"]] == ["finished", "failed", "finished"]
    assert table["jobs"][0]["metrics"] == {
        "steps": 2,
        "reward": 0.2,
        "s/step": 3.0,
        "validation before": 0.25,
        "validation after": 0.75,
    }
    assert table["seed_groups"][0]["mean"]["reward"] == pytest.approx(0.3)
    assert "0.300 ± 0.141" in (tmp_path / "runs" / "quickstart" / "sweep.md").read_text()
    assert "0.300 ± 0.141" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "stub.py"]


def test_a_signal_stops_the_job_and_the_sweep(tmp_path):
    sweep = start(tmp_path, "--multirun", "seed=1,99,2", "run_dir=mine")
    while "waiting" not in (line := sweep.stdout.readline()):
        assert line or sweep.poll() is None
    sweep.send_signal(signal.SIGINT)
    output, errors = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, errors
    assert "job 3 of 3" not in output
    assert "1 finished, 1 stopped, 1 not started" in output
    assert "the sweep was stopped; the same command continues it" in output


def test_a_killed_sweep_leaves_no_job_behind(tmp_path):
    sweep = start(tmp_path, "-m", "seed=99")
    while "waiting" not in sweep.stdout.readline():
        assert sweep.poll() is None
    sweep.kill()
    # The pipes close when the job, which inherited them, has ended.
    sweep.communicate(timeout=30)


def test_a_sweep_with_a_wrong_job_is_refused_before_any_starts(tmp_path):
    sweep = start(tmp_path, "-m", "seed=1", "data.train_batch_size=8,12", "hardware=cpu", quick=False)
    output, errors = sweep.communicate(timeout=120)
    assert sweep.returncode == 2
    assert errors.startswith("error: 1 of 2 jobs cannot start, so none was started; train_batch_size=12: ")
    assert "job 1" not in output
    assert not (tmp_path / "runs").exists()


def test_an_experiment_file_may_sweep_and_preflights_are_run_for_each_job(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "defaults: [quickstart, _self_]\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,13'}}}\n"
    )
    sweep = start(tmp_path, "--config-path", str(tmp_path), "--config-name", "mine", "preflight=only")
    output, errors = sweep.communicate(timeout=120)
    assert sweep.returncode == 2, errors
    assert f"words train --config-name mine --config-path {tmp_path} hydra.mode=RUN" in output
    assert "== preflight: 1 of 2 jobs cannot start; seed=13" in output


def combinations(*words: str) -> list[list[str]]:
    return sweeper._combinations(OverridesParser.create().parse_overrides(list(words)))


def test_overrides_are_combined_and_the_last_of_one_key_counts():
    assert combinations("seed=1,2", "seed=range(3,5)", "a=b", "~c") == [
        ["seed=3", "a=b", "~c"],
        ["seed=4", "a=b", "~c"],
    ]
    with pytest.raises(ConfigError, match=r"interval\(0,1\) has no list of values"):
        combinations("lr=interval(0,1)")


def names(*words: str) -> list[str]:
    jobs = combinations(*words)
    found = [
        sweeper._Job(job, values, OmegaConf.create())
        for job, values in zip(jobs, sweeper._varied_values(jobs), strict=True)
    ]
    sweeper._name_jobs(found)
    return [job.name for job in found]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["seed=1,2", "hardware=cpu"], ["seed_1", "seed_2"]),
        (["a.lr=1,2", "b.lr=3"], ["lr_1", "lr_2"]),
        (["a.lr=1", "b.lr=3"], [""]),
        (["model=[qwen2.5_3b,lora],smollm2_135m"], ["model_qwen2.5_3b-lora", "model_smollm2_135m"]),
        (["model.path=/data/a b,../c"], ["path_data-a-b", "path_c"]),
    ],
)
def test_a_job_is_named_after_its_values(words, expected):
    assert names(*words) == expected


def test_keys_with_the_same_end_keep_more_of_their_names():
    assert names("a.lr=1,2", "+b.lr=3,4")[0] == "a.lr_1__b.lr_3"


def test_names_that_would_be_equal_or_too_long_get_a_digest():
    equal = names("reward=[a],a/")
    assert len(set(equal)) == 2
    assert all(name.startswith("reward_a-") for name in equal)
    assert max(map(len, names(f"x={'a' * 300},{'b' * 300}"))) < 120


def test_a_secret_is_not_in_a_name():
    assert not any("hunter" in name for name in names("x.api_key=hunter1,hunter2"))
