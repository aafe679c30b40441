"""The command lists the missing trainings with their cost, and refuses mistakes."""

import subprocess
import sys

import pytest

from rgtrain.paths import PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT))
from evidence.records import write_record
from evidence.run import PARTS
from evidence.training_plan import EVIDENCE, read_programme

MODEL = next(iter(read_programme().models.values()))


def run(*words):
    command = [sys.executable, "evidence/run.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT)


def test_every_module_of_parts_is_a_part():
    assert set(PARTS) == {path.stem for path in (EVIDENCE / "parts").glob("*.py")}


def test_the_list_counts_missing_trainings_and_gpu_minutes(tmp_path):
    trials = read_programme().learning_rate_trials(MODEL, "rl")
    for trial in trials[:3]:
        write_record(trial.record_path(tmp_path), {"seconds": {"total": 120.0}})
    listed = run(
        "learning_rate", "--model", f"models/{MODEL.folder}", "--arms", trials[0].arm, "--results", tmp_path, "--list"
    )
    assert listed.returncode == 0, listed.stderr
    assert "learning_rate          2     2                            0                 0" in listed.stdout
    rest = run(
        "learning_rate",
        "--model",
        MODEL.folder,
        "--arms",
        trials[-1].arm,
        "--results",
        tmp_path,
        "--per-gpu",
        2,
        "--list",
    )
    # Two trainings of 120 s, and two places.
    assert "learning_rate          2     0                            2                 2" in rest.stdout
    assert "2 different trainings left, about 2 min" in rest.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["controlls", "--model", MODEL.folder], "unknown part 'controlls'; did you mean 'controls'?"),
        (["controls", "--model", "models/other"], "programme.yaml has no model with the folder 'other'"),
        (["controls", "--model", f"/nowhere/{MODEL.folder}"], "is not a folder of a model in Hugging Face format"),
    ],
)
def test_mistakes_are_refused(words, message, tmp_path):
    refused = run(*words, "--results", tmp_path, "--runs", tmp_path)
    assert refused.returncode == 2
    assert message in refused.stderr
