"""The exported folder: it appears whole or not at all, is never overwritten unasked, and tells what it holds."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from safetensors.torch import load_file
from support.checkpoint_files import assert_same_tensors, tiny_model, write_checkpoint
from transformers import AutoModelForCausalLM

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.export.output_folder import complete_folder
from rgtrain.checkpoints.shards import megatron
from rgtrain.checkpoints.shards.mapped_file import MappedFile
from rgtrain.errors import ConfigError
from rgtrain.evaluation.evaluation_model import find_model, opened_model
from rgtrain.paths import PROJECT_ROOT

CLI = PROJECT_ROOT / "utils" / "load_fsdp_to_hf.py"


@pytest.fixture
def step(tmp_path) -> Path:
    write_checkpoint(tmp_path / "run" / "checkpoints" / "global_step_20", tiny_model(), world_size=2)
    return tmp_path / "run" / "checkpoints" / "global_step_20"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_force_replaces_a_model_and_nothing_else(step, tmp_path):
    output = export(step, tmp_path / "exported")
    with pytest.raises(ConfigError, match="is not empty: name a new folder, or replace it with --force"):
        export(step, output)
    (output / "older.txt").write_text("")
    export(step, output, force=True)
    assert "older.txt" not in names(output)
    assert names(tmp_path) == ["exported", "run"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="is no model's folder, and --force replaces nothing else"):
        export(step, tmp_path / "notes", force=True)
    assert names(tmp_path / "notes") == ["mine"]


def test_force_never_replaces_what_the_export_reads(step):
    with pytest.raises(ConfigError, match=r"holds '.*huggingface', which the export reads"):
        export(step, step / "actor" / "huggingface", force=True)
    assert (step / "actor" / "huggingface" / "config.json").is_file()


def test_a_failed_replacement_leaves_the_old_model(step, tmp_path):
    output = export(step, tmp_path / "exported")
    before = (output / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="unknown dtype"):
        export(step, output, force=True, dtype="fp12")
    with pytest.raises(ConfigError, match="no LoRA adapter"):
        export(step, output, force=True, lora="adapter")
    assert (output / "model.safetensors").read_bytes() == before


def test_a_killed_export_leaves_no_output_and_starts_again_cleanly(step, tmp_path):
    killed = "exporting._write_others = lambda *a: os.kill(os.getpid(), signal.SIGKILL)"
    call = f"exporting.export({str(step)!r}, 'out')"
    code = f"import os, signal; from rgtrain.checkpoints.export import exporting; {killed}; {call}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    )
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".out.partial", "run"]
    assert_same_tensors(load_file(export(step, tmp_path / "out") / "model.safetensors"), tiny_model())
    assert names(tmp_path) == ["out", "run"]


def test_a_replacement_killed_between_its_renames_is_undone(step, tmp_path):
    export(step, tmp_path / "out").rename(tmp_path / ".out.replaced")
    with pytest.raises(ConfigError, match="is not empty"):
        export(step, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert names(tmp_path) == ["out", "run"]


def test_two_exports_to_one_output_do_not_meet(step, tmp_path):
    with complete_folder(tmp_path / "out") as folder:
        (folder / "config.json").write_text("{}")
        with pytest.raises(ConfigError, match=r"another export to this output is under way in '.*\.out\.partial'"):
            export(step, tmp_path / "out")
    assert names(tmp_path / "out") == ["config.json"]


def test_too_little_space_is_told_before_anything_is_written(step, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(ConfigError, match=r"no space left for the output: it takes 0.00 GB, and '.*' has 0.00 GB"):
        export(step, tmp_path / "out")
    assert names(tmp_path) == ["run"]


def test_a_disk_that_fills_up_leaves_nothing_behind(step, tmp_path):
    # A limit on the size of files, in KB: to the writer it is a disk that takes no more.
    command = f"ulimit -f 8; exec {sys.executable} {CLI} {step} out"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: can't write to ")
    assert "File too large" in done.stderr
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("size", ["", "0", "5 apples", "-1GB"])
def test_a_shard_size_that_is_none_is_refused(step, tmp_path, size):
    with pytest.raises(ConfigError, match="max_shard_size .* is no size"):
        export(step, tmp_path / "out", max_shard_size=size)


def test_the_model_card_tells_what_the_run_did(step, tmp_path):
    config = {
        "seed": 7,
        "trainer": {"total_training_steps": 40},
        "data": {"mixture": {"gcd": {"weight": 1}, "chain_sum": {"weight": 2}}},
        "reward": {"parts": {"accuracy": {}}},
        "algorithm": {"adv_estimator": "grpo"},
        "actor_rollout_ref": {"model": {"path": "Qwen/Qwen2.5-1.5B-Instruct"}, "actor": {"optim": {"lr": 1e-6}}},
    }
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(config))
    metrics = [{"step": 10, "val-core/gcd/acc/mean@1": 0.1}, {"step": 20, "val-core/gcd/acc/mean@1": 0.25}]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    card = (export(step, tmp_path / "out", dtype="bf16") / "README.md").read_text()
    assert "base_model: Qwen/Qwen2.5-1.5B-Instruct" in card
    for row in ("| step | 20 of 40 |", "| datasets | gcd, chain_sum |", "| validation | gcd 0.250 |", "| seed | 7 |"):
        assert row in card
    assert "| weights | all of the language model, bfloat16 |" in card


def test_nothing_in_the_runs_folder_changes_the_cards_form(step, tmp_path, caplog):
    markup = "x|y<script>alert(1)</script>[here](http://evil)`*_$\n---\n# title"
    model = {"path": "someone/model\n---\nlicense: evil"}
    config = {
        "trainer": {},
        "seed": "7" * 300 + markup,
        "data": {"mixture": {markup: 1}},
        "actor_rollout_ref": {"model": model},
    }
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(config))
    metrics = json.dumps(
        {"step": 20, f"val-core/{markup.replace('/', '')}/acc/mean@1": 0.5, "val-core/a/acc/mean@1": 1}
    )
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"\x00\x00\nnull\n{}\n\xff\n[1]\n" + metrics.encode() + b"\n{")
    card = (export(step, tmp_path / "out") / "README.md").read_text()
    assert card.count("\n---\n") == 1
    assert "license" not in card.split("\n---\n")[0]
    assert [line for line in card.splitlines() if line.startswith("#")] == ["# run, step 20"]
    assert all(line.count("|") == 3 for line in card.splitlines() if line.startswith("|") and "---" not in line)
    for raw in ("<script", "[here]", "http://evil", "`", "$"):
        assert raw not in card
    assert "a 1.000" in card
    assert "leaves out 5 damaged lines of metrics.jsonl" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x]\ntrainer: {b: *a}",
        "trainer: " + "[" * 5000,
        "trainer: {}\nseed: 2020-99-99",
        "trainer: {}\n? [a]\n: b",
        "trainer: !!bool x",
        'trainer: !!int ""',
        "trainer: !!timestamp x",
        "trainer: 1" + ":1" * 300 + ".5",
        b"\xff\xfe\x00",
    ],
)
def test_a_damaged_config_of_the_run_costs_the_card_its_facts_and_a_warning(step, tmp_path, caplog, content):
    path = tmp_path / "run" / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    card = (export(step, tmp_path / "out") / "README.md").read_text()
    assert "| step | 20 |" in card
    assert "the model card says less about the run: its config.yaml can't be read" in caplog.text


def test_odd_values_in_the_config_of_the_run_are_left_out_of_the_card(step, tmp_path):
    odd = (
        "trainer: {total_training_steps: [1]}\nseed: 0x" + "f" * 9000 + "\ndata: {mixture: [1], train_batch_size: .nan}"
    )
    (tmp_path / "run" / "config.yaml").write_text(odd + "\nactor_rollout_ref: {model: {path: [x]}}\nreward: 5")
    card = (export(step, tmp_path / "out") / "README.md").read_text()
    assert "| step | 20 |" in card
    assert not any(f"| {name} |" in card for name in ("seed", "datasets", "prompts per step", "base model", "reward"))


def test_a_linked_file_outside_of_the_checkpoint_is_neither_copied_nor_loaded(step, tmp_path, caplog):
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    folder = step / "actor" / "huggingface"
    (folder / "id_rsa.txt").symlink_to(tmp_path / "id_rsa")
    output = export(step, tmp_path / "out")
    assert "id_rsa.txt" not in names(output)
    assert "left out of the export, as no part of a model that is trusted: id_rsa.txt" in caplog.text
    (folder / "vocab.txt").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(ConfigError, match=r"vocab.txt' is a link to '.*id_rsa', outside of '.*huggingface'"):
        export(step, tmp_path / "again")


def test_a_step_that_was_moved_to_another_disk_and_linked_back_is_exported_with_its_runs_facts(step, tmp_path):
    (tmp_path / "run" / "config.yaml").write_text("trainer: {}\nseed: 7")
    step.rename(tmp_path / "moved")
    step.symlink_to(tmp_path / "moved")
    card = (export(tmp_path / "run", tmp_path / "out") / "README.md").read_text()
    assert "| step | 20 |" in card
    assert "| seed | 7 |" in card


def test_a_snapshot_in_the_hubs_cache_gives_config_and_tokenizer_through_its_links(step, tmp_path):
    snapshot = tmp_path / "models--someone--model" / "snapshots" / "abc"
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((step / "actor" / "huggingface").iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert "tokenizer.json" in names(export(step, tmp_path / "out", hf_config_dir=snapshot))


def test_a_link_in_the_place_of_the_unfinished_output_is_not_followed(step, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").touch()
    (tmp_path / ".out.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match="can't write to"):
        export(step, tmp_path / "out")
    assert names(tmp_path / "mine") == ["kept"]


def test_an_export_whose_file_system_does_not_answer_says_where_it_waits(step, tmp_path, monkeypatch, caplog):
    answered = threading.Event()
    read = MappedFile.rows

    @contextmanager
    def slow(self, name, *where):
        # The disk answers once the export has reported that it waits.
        if name == "lm_head.weight":
            while "no progress for" not in caplog.text and not answered.wait(0.05):
                pass
            answered.set()
        with read(self, name, *where) as rows:
            yield rows

    monkeypatch.setattr(MappedFile, "rows", slow)
    monkeypatch.setattr("rgtrain.checkpoints.standstill.REPORT_AFTER_S", 0.1)
    export(step, tmp_path / "out")
    assert "s at tensor 'lm_head.weight': does its file system answer?" in caplog.text


class Hub:
    """What takes the place of huggingface_hub.HfApi: it notes how it was called."""

    calls: ClassVar[list[tuple[str, dict]]]

    def whoami(self):
        self.calls.append(("whoami", {}))

    def create_repo(self, **arguments):
        self.calls.append(("create_repo", arguments))

    def upload_folder(self, **arguments):
        assert "model.safetensors" in names(Path(arguments["folder_path"]))
        self.calls.append(("upload_folder", arguments))


def test_a_complete_export_is_pushed_to_a_private_repository(step, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [], raising=False)
    output = export(step, tmp_path / "out", push_to="me/reasoner")
    assert Hub.calls == [
        ("whoami", {}),
        ("create_repo", {"repo_id": "me/reasoner", "repo_type": "model", "private": True, "exist_ok": True}),
        (
            "upload_folder",
            {
                "folder_path": str(output),
                "repo_id": "me/reasoner",
                "repo_type": "model",
                "commit_message": "Export of global_step_20/actor",
            },
        ),
    ]


def test_a_push_that_cannot_work_is_refused_before_the_export(step, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="'not a name' is no repository of the hub: give OWNER/NAME"):
        export(step, tmp_path / "out", push_to="not a name")
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: (_ for _ in ()).throw(OSError("no token")))
    with pytest.raises(ConfigError, match="can't push to 'me/reasoner': no token. Log in with `hf auth login`"):
        export(step, tmp_path / "out", push_to="me/reasoner")
    assert not (tmp_path / "out").exists()


def test_a_failed_push_keeps_the_export_and_tells_how_to_repeat_it(step, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [], raising=False)
    monkeypatch.setattr(Hub, "upload_folder", lambda self, **arguments: (_ for _ in ()).throw(OSError("reset")))
    with pytest.raises(ConfigError, match=r"failed \(reset\): repeat with `hf upload me/reasoner .*out`"):
        export(step, tmp_path / "out", push_to="me/reasoner")
    assert (tmp_path / "out" / "config.json").is_file()


def test_progress_is_shown_in_bytes_on_a_terminal(step, tmp_path):
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 100))
    done = subprocess.run([sys.executable, CLI, step, "out"], cwd=tmp_path, stderr=end, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert b"global_step_20/actor: 100%" in (shown := os.read(terminal, 10_000))
    assert b"kB/s" in shown or b"MB/s" in shown


def test_an_evaluation_takes_a_run_one_of_its_steps_or_that_steps_actor(step, tmp_path):
    for path in (tmp_path / "run", step, step / "actor"):
        with opened_model(find_model(str(path))) as model:
            AutoModelForCausalLM.from_pretrained(model.folder)
        assert not model.folder.exists()


def write_megatron(folder: Path) -> Path:
    (folder / "model" / "dist_ckpt").mkdir(parents=True)
    (folder / "ckpt_contents.json").write_text(json.dumps({"framework": "megatron"}))
    tiny_model().config.save_pretrained(folder / "model" / "huggingface")
    return folder


def test_a_megatron_checkpoint_asks_for_megatron(tmp_path):
    write_megatron(tmp_path / "global_step_3" / "actor")
    with pytest.raises(ConfigError, match=r"is a Megatron checkpoint, .* or install megatron-core"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_megatron_checkpoint_goes_through_verls_merger(tmp_path, monkeypatch):
    folder = write_megatron(tmp_path / "global_step_3" / "actor")
    commands = []

    # Megatron needs a GPU, and has no wheel for a CPU.
    def run(command, **options):
        commands.append(command)
        tiny_model().save_pretrained(command[-1])
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(megatron.importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(megatron.subprocess, "run", run)
    with pytest.raises(ConfigError, match="runs code that its files bring"):
        export(tmp_path, tmp_path / "out")
    output = export(tmp_path, tmp_path / "out", dtype="bf16", trust_checkpoint=True)
    assert commands[0][1:-1] == [
        *("-m", "verl.model_merger", "merge", "--backend", "megatron", "--local_dir", str(folder), "--target_dir")
    ]
    assert_same_tensors(load_file(output / "model.safetensors"), tiny_model().bfloat16())
    assert names(tmp_path) == ["global_step_3", "out"]
