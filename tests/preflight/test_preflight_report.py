"""`preflight=only` prints all tables, returns an exit code and writes no file."""

import subprocess
import sys

import pytest
from support.experiments import plain_project_experiment
from support.preflights import preflight_only

from rgtrain.config.run_config import RunConfig
from rgtrain.paths import PROJECT_ROOT
from rgtrain.preflight.preflight_report import brief_report


def test_the_report_has_every_section(tiny_model, tmp_path):
    words = [f"actor_rollout_ref.model.path={tiny_model}", "hardware=1x80gb", "model=[smollm2_135m,lora]"]
    code, text = preflight_only(plain_project_experiment("quickstart", tmp_path / "run", *words))
    assert code == 0, text
    for expected in (
        "24 with 8 prompts each",
        "to 1 x A100",
        "64 completions, at most 1,536 new tokens",
        f"{tmp_path}/run/checkpoints, every 12 steps",
        "LoRA of rank 32",
        "must be a multiple of",
        "gradients",
        "KV cache",
        "peak while training",
        "sequences of full length",
        "word_sequence_reversal  50.0%      200",
        "to score correct answers",
        "checkpoints of",
        "preflight: 0 error(s)",
    ):
        assert expected in text
    assert not list(tmp_path.iterdir())


def test_memory_of_a_missing_model_is_estimated_by_its_shape_and_changes_are_suggested(tmp_path, quick):
    words = ["hardware=1x24gb", "model=qwen2.5_7b", "trainer.save_freq=-1"]
    code, text = preflight_only(plain_project_experiment("quickstart", tmp_path / "run", *words))
    assert code == 2
    assert "the known shape qwen2.5-7b, because the model is not on this machine" in text
    assert "Qwen/Qwen2.5-7B-Instruct is not on this machine" in text
    assert "error: the run will not fit into GPU memory (" in text
    assert "offload_policy=true" in text


def test_prompts_and_answers_that_are_too_long_get_a_warning(tiny_model, tmp_path):
    words = [f"actor_rollout_ref.model.path={tiny_model}", "data.max_prompt_length=215", "data.max_response_length=12"]
    code, text = preflight_only(plain_project_experiment("quickstart", tmp_path / "run", "hardware=cpu", *words))
    assert code == 0, text
    assert "of the prompts exceed data.max_prompt_length=215 and will be replaced" in text
    assert "tokens and can't be given within data.max_response_length=12" in text


def test_a_dataset_without_a_prompt_that_fits_is_an_error(tiny_model, tmp_path, quick):
    words = [f"actor_rollout_ref.model.path={tiny_model}", "data.max_prompt_length=100", "hardware=cpu"]
    code, text = preflight_only(plain_project_experiment("quickstart", tmp_path / "run", *words))
    assert code == 2
    assert "prompts exceed data.max_prompt_length=100; raise it to" in text


def test_all_errors_are_reported_at_once(tiny_model, tmp_path):
    words = ["data.train_batch_size=12", "data.dataloader_num_workers=2", "data.held_out_files=[absent.yaml]"]
    code, text = preflight_only(plain_project_experiment("quickstart", tmp_path / "run", "hardware=cpu", *words))
    assert code == 2
    assert text.count("error: ") == 3


def test_datasets_that_fail_the_audit_are_named(tiny_model, tmp_path, quick):
    words = [f"actor_rollout_ref.model.path={tiny_model}", "data.max_prompt_length=1500", "mixture=math"]
    _, text = preflight_only(plain_project_experiment("quickstart", tmp_path / "run", "hardware=cpu", *words))
    assert "warning: dataset 'complex_arithmetic': the constant answer 'nan'" in text


def test_a_start_prints_a_brief_report(tmp_path):
    config = RunConfig.of(plain_project_experiment("llama3.1_1b_grpo", tmp_path / "run", "hardware=2x48gb"))
    *rows, warning = brief_report(config, [("tensorboard", "tensorboard --logdir x")])
    values = {row[:15].strip(): row[15:] for row in rows}
    assert values["run"] == f"{tmp_path}/run (seed 1)"
    assert values["model"] == (
        "meta-llama/Llama-3.2-1B-Instruct, 1.24 billion parameters, fp32 computed in bf16, full training"
    )
    assert values["algorithm"] == "grpo, vanilla loss, clip 0.2, KL loss 0.001 (low_var_kl)"
    assert values["datasets"] == "mini_sudoku 33%, futoshiki 33%, sudoku 34%"
    assert values["learning rate"] == "1e-06"
    assert values["devices"] == "on 2 GPUs of 48 GB, which this machine does not have"
    assert values["per step"] == "64 prompts x 8 responses of at most 1024 tokens"
    assert values["length"].startswith("1560 steps; about 2 min per step, 43.5 h in all (scaled from ")
    assert values["GPU memory"].startswith("estimated ")
    assert values["tensorboard"] == "tensorboard --logdir x"
    assert warning.startswith("warning: the run will take about 43.5 h")
    config = RunConfig.of(plain_project_experiment("llama3.1_1b_grpo", tmp_path / "run", "hardware=1x24gb"))
    assert "warning: the run will not fit into GPU memory (" in brief_report(config)[-1]


@pytest.mark.parametrize(("word", "code"), [("seed=1", 0), ("actor_rollout_ref.rollout.n=1", 2)])
def test_the_command_exits_with_the_code_and_starts_no_run(tiny_model, tmp_path, word, code):
    command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-name", "quickstart", "preflight=only"]
    command += ["hardware=cpu", f"actor_rollout_ref.model.path={tiny_model}", word]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert "nothing was started" in done.stdout
    assert not list(tmp_path.iterdir())
