"""A whole supervised run on the command line, with a tiny random model on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.documented_metrics import undocumented
from transformers import AutoModelForCausalLM, AutoTokenizer

from rgtrain.checkpoints.trained_problems import read_trained_problems
from rgtrain.paths import PROJECT_ROOT


def train_sft(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROJECT_ROOT / "train_sft.py"), "--config-name", "quickstart_sft", *words]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CUDA stack is installed")
def test_a_run_learns_and_leaves_a_model_that_loads(tiny_model, tmp_path):
    run = tmp_path / "run"
    words = [f"actor_rollout_ref.model.path={tiny_model}", f"run_dir={run}", "trainer.total_training_steps=2"]
    words += ["data.train_batch_size=8", "actor_rollout_ref.actor.optim.lr=1e-2"]
    done = train_sft(*words, cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    first, second = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert (first["step"], second["step"]) == (1, 2)
    # A random model finds all 49,152 tokens about equally likely.
    assert 10 < first["train/loss"] < 12 and second["train/loss"] < first["train/loss"] - 0.1
    assert first["train/lr"] == 1e-2 and first["train/grad_norm"] > 0 and first["train/global_tokens"] > 8 * 20
    assert not undocumented({*first, *second})
    assert yaml.safe_load((run / "config.yaml").read_text())["run_dir"] == str(run)
    assert "train_sft.py" in json.loads((run / "provenance.jsonl").read_text())["command"]

    weights = load_file(run / "huggingface" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(run / "huggingface")
    before = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert all(
        not torch.equal(tensor, before[name].to(tensor.dtype))
        for name, tensor in model.state_dict().items()
        if "weight" in name
    )
    tokenizer = AutoTokenizer.from_pretrained(run / "huggingface")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert not (run / "checkpoints").exists()
    # Evaluations count the problems that they share with training.
    assert len(read_trained_problems(run / "huggingface")) == 16
    assert "supervised fine-tuning on right answers" in (run / "huggingface" / "README.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_preflight_plans_for_a_machine_with_a_gpu(tiny_model, tmp_path):
    words = [f"actor_rollout_ref.model.path={tiny_model}", "run_dir=run", "hardware=1x80gb"]
    planned = train_sft(*words, "preflight=only", cwd=tmp_path)
    assert planned.returncode == 0 and "preflight: 0 errors" in planned.stdout, planned.stdout + planned.stderr
    started = train_sft(*words, cwd=tmp_path)
    assert started.returncode == 2 and "no GPU is available; set hardware=cpu" in started.stdout + started.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["data.prompt.num_exampels=1"], "num_exampels"), (["seed=1,2", "-m"], "runs no sweeps")],
)
def test_a_wrong_command_line_is_refused_before_anything_is_written(tmp_path, words, message):
    done = train_sft("run_dir=run", *words, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()
