"""Unusable checkpoints, configs and outputs are refused by name, and no partial output is written."""

import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from support.checkpoint_files import tiny_model, write_checkpoint, write_plain

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.shards.random_checkpoints import rank_file
from rgtrain.commands import export_command
from rgtrain.errors import ConfigError


def edit_rank_file(path: Path, change) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def test_missing_rank_files_are_listed(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=4)
    rank_file(actor, 4, 1).unlink()
    rank_file(actor, 4, 3).unlink()
    with pytest.raises(ConfigError, match=r"lacks 2 of 4 rank files: model_world_size_4_rank_1.pt, .*rank_3.pt"):
        export(actor, tmp_path / "exported")


def test_mixed_world_sizes_are_refused_with_the_recorded_one(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=2)
    shutil.copy(rank_file(actor, 2, 0), rank_file(actor, 4, 0))
    with pytest.raises(ConfigError, match=r"world sizes 2, 4: keep those of 2, as recorded in fsdp_config.json"):
        export(actor, tmp_path / "exported")


def test_a_world_size_other_than_the_recorded_one_is_refused(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=2)
    (actor / "fsdp_config.json").write_text('{"world_size": 8}')
    with pytest.raises(ConfigError, match=r"world size 2, but its fsdp_config.json says 8"):
        export(actor, tmp_path / "exported")


def test_a_truncated_rank_file_is_reported(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=2)
    path = rank_file(actor, 2, 1)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ConfigError, match=r"are truncated or .*: model_world_size_2_rank_1.pt"):
        export(actor, tmp_path / "exported")


class Payload:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "run")


def test_code_in_a_rank_file_does_not_run(tmp_path):
    actor = write_plain(tmp_path / "global_step_1", tiny_model())
    payload = Payload(tmp_path / "ran")
    pickle.loads(pickle.dumps(payload))
    assert payload.path.exists()
    payload.path.unlink()
    torch.save({"weight": payload}, rank_file(actor, 1, 0))
    with pytest.raises(ConfigError, match=r"model_world_size_1_rank_0.pt' needs \S+ to be read, but only"):
        export(actor, tmp_path / "exported")
    assert not payload.path.exists()


def test_ranks_with_different_tensors_are_refused_with_the_name_of_the_tensor(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=2)
    edit_rank_file(rank_file(actor, 2, 1), lambda state: state.pop("model.norm.weight"))
    with pytest.raises(ConfigError, match=r"rank_0.pt has tensor 'model.norm.weight', but \S+rank_1.pt does not"):
        export(actor, tmp_path / "exported")


def test_a_rank_file_copied_under_another_name_is_refused(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=2)
    shutil.copy(rank_file(actor, 2, 0), rank_file(actor, 2, 1))
    with pytest.raises(ConfigError, match=r"tensor 'model.embed_tokens.weight'"):
        export(actor, tmp_path / "exported")


def test_different_replicas_are_refused_with_the_name_of_the_tensor(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=4, num_replicas=2)
    edit_rank_file(rank_file(actor, 4, 3), lambda state: state["model.norm.weight"].to_local().add_(1))
    with pytest.raises(ConfigError, match=r"rank_1.pt and \S+rank_3.pt have different copies of .*'model.norm.weight'"):
        export(actor, tmp_path / "exported")


def test_a_config_of_another_size_is_refused_with_the_tensor_and_its_two_shapes(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=2)
    tiny_model(vocab_size=40).config.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ConfigError, match=r"'model.embed_tokens.weight' has shape \[33, 24\] in the checkpoint but \[40, 24\] in"
    ):
        export(actor, tmp_path / "exported", hf_config_dir=tmp_path / "other")


@pytest.mark.parametrize(
    ("num_layers", "message"),
    [(3, r"lacks tensor 'model.layers.2.\S+' \(and 8 more\)"), (1, r"has tensor 'model.layers.1.\S+' \(and 8 more\)")],
)
def test_a_config_of_another_depth_is_refused_with_the_name_of_a_tensor(tmp_path, num_layers, message):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=2)
    tiny_model(num_hidden_layers=num_layers).config.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match=message):
        export(actor, tmp_path / "exported", hf_config_dir=tmp_path / "other")


def test_a_checkpoint_without_a_config_is_refused(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    shutil.rmtree(actor / "huggingface")
    with pytest.raises(ConfigError, match="give HF_CONFIG_DIR"):
        export(actor, tmp_path / "exported")


def test_a_folder_without_a_config_is_refused(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    with pytest.raises(ConfigError, match=r"no config.json in '.*nowhere'"):
        export(actor, tmp_path / "exported", hf_config_dir=tmp_path / "nowhere")


def test_an_unknown_dtype_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown dtype 'bf61'; did you mean 'bf16'.*fp32"):
        export(tmp_path, tmp_path / "exported", dtype="bf61")


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "mine").write_text("kept")
    with pytest.raises(ConfigError, match=r"'.*exported' is not empty: give a new folder"):
        export(tmp_path / "global_step_1", tmp_path / "exported")
    assert [path.name for path in (tmp_path / "exported").iterdir()] == ["mine"]


def test_an_output_inside_a_file_is_refused(tmp_path):
    write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"can't write to '.*file'"):
        export(tmp_path / "global_step_1", tmp_path / "file" / "exported")


def test_the_command_reports_bad_input_in_one_line_with_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # In this process, which has already loaded torch.
    with pytest.raises(SystemExit) as exited:
        export_command.main(["nowhere", "exported"], program="export")
    assert exited.value.code == 2
    assert re.fullmatch(r"error: there is no checkpoint folder 'nowhere': .*\n", capsys.readouterr().err)
    assert not any(tmp_path.iterdir())


def test_plain_tensors_that_are_neither_copies_nor_parts_are_refused_by_name(tmp_path):
    actor = write_plain(tmp_path / "global_step_1", tiny_model(), world_size=2, split_dim=0)
    edit_rank_file(rank_file(actor, 2, 1), lambda state: state.update({"lm_head.weight": torch.zeros(3, 24)}))
    with pytest.raises(ConfigError, match=r"have shapes \[17, 24\] and \[3, 24\] of tensor 'lm_head.weight'"):
        export(actor, tmp_path / "exported")
