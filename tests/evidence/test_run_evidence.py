"""The command lists the missing trainings with their cost, and refuses mistakes."""

import json
import subprocess
import sys
from argparse import Namespace

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT))
import evidence.run
import evidence.training_plan
from evidence.parts import boundary, outside
from evidence.records import planned_settings, write_record
from evidence.run import Plan, mean_answer_tokens
from evidence.side_by_side import SideBySide
from evidence.training_plan import EVIDENCE, PARTS, read_programme

PROGRAMME = read_programme()
MODEL = next(iter(PROGRAMME.models.values()))


def run(*words):
    command = [sys.executable, "evidence/run.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT)


def recorded(training, **settings):
    """Return a record of a trial of 120 s, two of which shared a GPU."""
    return {
        "seconds": {"total": 120.0, "per_gpu": 2},
        "config": planned_settings(training) | settings,
        "command": "python train_grpo.py",
        "evaluation": {"gcd": {"samples": 4, "solved": [0] * 128}},
    }


def test_a_finished_training_keeps_no_weights(tmp_path):
    training = boundary.trainings(PROGRAMME, MODEL)[-1]
    given = {"model": MODEL.folder, "runs": tmp_path / "runs", "results": tmp_path / "results"}
    plan = Plan(PROGRAMME, MODEL, Namespace(**given, gpus=None, per_gpu=1), [training])
    write_record(training.record_path(tmp_path / "results"), recorded(training))
    for folder in ("rl/checkpoints/global_step_60", "rl/rollouts", "sft/huggingface"):
        (plan.run_dir(training) / folder).mkdir(parents=True)
    plan.finish(training, seconds=60, num_on_gpu=1)
    left = {str(path.relative_to(plan.run_dir(training))) for path in plan.run_dir(training).rglob("*")}
    assert left == {"rl", "rl/rollouts", "sft"}
    assert plan.is_finished(training)


def test_outside_benchmarks_without_their_files_are_refused_before_anything_starts(tmp_path, monkeypatch):
    (tmp_path / "config.json").touch()
    given = {"model": tmp_path, "runs": tmp_path / "runs", "results": tmp_path / "results"}
    plan = Plan(PROGRAMME, MODEL, Namespace(**given, gpus=None, per_gpu=1), outside.trainings(PROGRAMME, MODEL))
    monkeypatch.setattr(evidence.training_plan, "PROJECT_ROOT", tmp_path)
    with pytest.raises(ConfigError, match=r"gsm8k\.jsonl is missing; write it by evidence/outside_data\.py"):
        plan.check()


def test_all_parts_leave_out_outside_benchmarks_without_their_files(tmp_path, monkeypatch, capsys):
    words = ["all", "--model", MODEL.folder, "--tasks", "outside", "--results", str(tmp_path), "--runs", str(tmp_path)]
    monkeypatch.setattr(evidence.training_plan, "PROJECT_ROOT", tmp_path)
    # Nothing else is left.
    (tmp_path / "config.json").touch()
    words[2] = str(tmp_path)
    with pytest.raises(ConfigError, match=r"gsm8k\.jsonl is missing"):
        evidence.run._run(evidence.run._parser().parse_args(words))
    monkeypatch.setattr(SideBySide, "run", lambda scheduler: True)
    evidence.run._run(evidence.run._parser().parse_args([*words, "--tasks", "outside", "warm_start"]))
    printed = capsys.readouterr().out
    assert "leaving out the part outside" in printed and "warm_start" in printed


def test_finished_outside_benchmarks_need_no_files(tmp_path, monkeypatch):
    trainings = outside.trainings(PROGRAMME, MODEL)
    monkeypatch.setattr(evidence.training_plan, "PROJECT_ROOT", tmp_path)
    assert len(evidence.run.missing_files(PROGRAMME, trainings, results=tmp_path)) == 3
    for training in trainings:
        write_record(training.record_path(tmp_path), recorded(training))
    assert not evidence.run.missing_files(PROGRAMME, trainings, results=tmp_path)


def test_every_module_of_parts_is_a_part():
    assert set(PARTS) == {path.stem for path in (EVIDENCE / "parts").glob("*.py")}


def test_the_list_counts_missing_trainings_and_gpu_minutes(tmp_path):
    trials = PROGRAMME.learning_rate_trials(MODEL, "rl")
    for trial in trials[:3]:
        write_record(trial.record_path(tmp_path), recorded(trial, **{"data.max_prompt_length": 7}))
    listed = run(
        "learning_rate", "--model", f"models/{MODEL.folder}", "--arms", trials[0].arm, "--results", tmp_path, "--list"
    )
    assert listed.returncode == 0, listed.stderr
    assert "learning_rate          2     2                            0                 0" in listed.stdout
    assert f"warning: in the record of {trials[0].name}, data.max_prompt_length is 7 instead of" in listed.stdout
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


def test_a_model_that_the_programme_does_not_name_runs_with_the_default_settings(tmp_path):
    folder = tmp_path / "Qwen2.5-3B-Instruct"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    words = ["--model", folder, "--results", tmp_path, "--runs", tmp_path / "runs"]
    listed = run("all", *words, "--list")
    assert listed.returncode == 0, listed.stderr
    default = PROGRAMME.models[PROGRAMME.default_model]
    assert f"qwen2.5-3b-instruct is not in programme.yaml and has the settings of {default.name}" in listed.stdout
    missing = [line.split() for line in listed.stdout.splitlines() if line.startswith(PARTS)]
    assert [row[0] for row in missing] == list(PARTS)
    # Each part with rewards waits for the trials that choose its learning rate.
    trials = sum(len(PROGRAMME.learning_rate_trials(default, kind)) for kind in ("rl", "sft"))
    [controls] = [row for row in missing if row[0] == "controls"]
    assert int(controls[3]) == int(controls[1]) + trials
    printed = run("learning_rate", *words, "--commands", "--arms", "rl_1e-06", "--seeds", 1).stdout
    assert f"run_dir={tmp_path}/runs/qwen2.5-3b-instruct/learning_rate/rl_1e-06/seed_1/rl" in printed
    assert "data.prompt.system_prompt=DeepSeekZero" in printed
    assert "lacks 8 of the trainings" in run("categories", *words, "--commands").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["controlls", "--model", MODEL.folder], "unknown part 'controlls'; did you mean 'controls'?"),
        (
            ["controls", "--model", "models/SmolLM2-135-Instruct"],
            "models/SmolLM2-135-Instruct is no folder of a model in Hugging Face format, and programme.yaml does not "
            "name it; did you mean 'SmolLM2-135M-Instruct'?",
        ),
        (["controls", "--model", "my model"], "the folder 'my model' cannot name a model in records; rename it"),
        (["controls", "--model", MODEL.folder, "--arms", "acuracy"], "no training has the given --seeds, --tasks and"),
        (["controls", "--model", MODEL.folder, "--per-gpu", 0], "--per-gpu is 0; give 1 or more"),
        (["controls", "--model", f"/nowhere/{MODEL.folder}"], "is not a folder of a model in Hugging Face format"),
    ],
)
def test_mistakes_are_refused(words, message, tmp_path):
    (tmp_path / "my model").mkdir()
    (tmp_path / "my model" / "config.json").write_text("{}")
    words = [tmp_path / word if word == "my model" else word for word in words]
    refused = run(*words, "--results", tmp_path, "--runs", tmp_path)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_the_mean_length_of_right_answers_is_counted_in_tokens(tmp_path):
    digits = {text: number for number, text in enumerate(("<", "answer", ">", "/", *"0123456789", "?"))}
    tokenizer = Tokenizer(WordLevel(digits, unk_token="?"))
    tokenizer.pre_tokenizer = Split(Regex(r"answer|."), "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    mixture = json.dumps({"products": {"weight": 1, "config": {"min_digits": 3, "max_digits": 3}}})
    # 7 tokens for the tags, 5 or 6 for the product, and the end of the turn.
    assert 13 < mean_answer_tokens(str(tmp_path), mixture) < 14
