"""Code in a model's folder runs only if the user trusts it, and no command asks at the terminal."""

import ast
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.checkpoint_files import tiny_model, tiny_tokenizer, write_checkpoint
from support.experiments import small_run

from rgtrain.checkpoints.export import export
from rgtrain.errors import ConfigError
from rgtrain.evaluation.evaluation_prompts import load_tokenizer
from rgtrain.paths import PROJECT_ROOT
from rgtrain.preflight.training_model import find_model

CLI = PROJECT_ROOT / "utils" / "load_fsdp_to_hf.py"
LOADING = ("from_pretrained", "from_config", "hf_tokenizer", "hf_processor")
# These classes are fixed before any file is read, so a folder can't choose another.
KNOWN = ("model_class", "PeftModel")
OWN_CONFIG = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
OWN_TOKENIZER = {"AutoTokenizer": ["own.Own", None]}


def loading_calls(path: Path) -> list[ast.Call]:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).split(".")[-1] in LOADING]


@pytest.mark.parametrize("folder", ["rgtrain", "utils", "evaluation", "benchmarks"])
def test_every_call_that_could_load_custom_code_sets_trust_remote_code(folder):
    undecided = [
        f"{path.relative_to(PROJECT_ROOT)}:{call.lineno}"
        for path in (PROJECT_ROOT / folder).rglob("*.py")
        for call in loading_calls(path)
        if "trust_remote_code" not in [keyword.arg for keyword in call.keywords]
        and not any(name in ast.unparse(call.func) for name in KNOWN)
    ]
    assert undecided == []


def add_code(folder: Path, *, to: str) -> Path:
    """Make the config or tokenizer in `folder` need a module there, and return the file that the module creates."""
    ran = folder / "ran"
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    path = folder / f"{to}.json"
    changes = {"auto_map": OWN_CONFIG, "model_type": "own"}
    if to == "tokenizer_config":
        changes = {"auto_map": OWN_TOKENIZER, "tokenizer_class": "Own"}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return ran


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return the folder of a tiny model."""
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("to", ["config", "tokenizer_config"])
def test_an_export_refuses_custom_code_and_leaves_nothing_behind(tmp_path, monkeypatch, to):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    ran = add_code(actor / "huggingface", to=to)
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail(f"asked {text}"))
    with pytest.raises(ConfigError, match="--trust-checkpoint lets the folder's own code run"):
        export(actor, tmp_path / "out")
    assert not ran.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["global_step_1"]


def test_a_command_at_a_terminal_refuses_custom_code_in_one_line_without_asking(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    ran = add_code(actor / "huggingface", to="config")
    terminal, end = pty.openpty()
    # transformers would ask on this terminal, and this answer would allow the code.
    os.write(terminal, b"y\ny\n")
    done = subprocess.run(
        [sys.executable, CLI, actor, "out"], cwd=tmp_path, stdin=end, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "--trust-checkpoint lets the folder's own code run" in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert not ran.exists()


@pytest.mark.parametrize("to", ["config", "tokenizer_config"])
def test_evaluation_and_preflight_refuse_custom_code_without_asking(folder, monkeypatch, to):
    ran = add_code(folder, to=to)
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail(f"asked {text}"))
    with pytest.raises(ConfigError, match="custom code|own code|can't be loaded|cannot load"):
        load_tokenizer(folder)
    with pytest.raises(ConfigError, match="actor_rollout_ref.model.trust_remote_code=true") as refused:
        find_model(small_run(folder, f"actor_rollout_ref.model.path={folder}"))
    assert "\n" not in str(refused.value)
    assert not ran.exists()


def test_code_that_transformers_does_not_need_is_not_exported(tmp_path, caplog):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    path = actor / "huggingface" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": OWN_CONFIG}))
    (actor / "huggingface" / "own.py").write_text("raise SystemExit('ran')")
    output = export(actor, tmp_path / "out")
    assert "auto_map" not in json.loads((output / "config.json").read_text())
    assert not (output / "own.py").exists()
    assert "config.json refers to the model's own code, which is not exported" in caplog.text


def test_trusted_code_creates_the_model_and_is_exported(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    path = actor / "huggingface" / "config.json"
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": own, "model_type": "own"}))
    (actor / "huggingface" / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    output = export(actor, tmp_path / "out", trust_checkpoint=True)
    assert json.loads((output / "config.json").read_text())["auto_map"] == own
    assert (output / "own.py").is_file()
    assert load_file(output / "model.safetensors").keys() == tiny_model().state_dict().keys()
