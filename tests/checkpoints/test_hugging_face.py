"""An export copies the config, the tokenizer and similar files of the model, and no others."""

import json

import pytest
from support.checkpoint_files import file_names, tiny_model, write_checkpoint
from transformers import AutoTokenizer, GenerationConfig

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.hugging_face import copy_model_files, refer_to_copied_code
from rgtrain.errors import ConfigError


def test_tokenizer_chat_template_and_generation_config_are_copied(tmp_path):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=1)
    GenerationConfig(temperature=0.3, do_sample=True).save_pretrained(actor / "huggingface")
    output = export(actor, tmp_path / "exported")
    turns = [{"role": "user", "content": "7 8"}]
    assert AutoTokenizer.from_pretrained(output).apply_chat_template(turns, tokenize=False) == "<user> 7 8 "
    assert GenerationConfig.from_pretrained(output).temperature == 0.3


def test_weights_and_readme_of_the_config_folder_are_not_copied(tmp_path):
    model = tiny_model()
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=1)
    tiny_model(seed=1).save_pretrained(tmp_path / "base", max_shard_size="10KB")
    (tmp_path / "base" / "README.md").write_text("the base")
    output = export(actor, tmp_path / "exported", hf_config_dir=tmp_path / "base")
    weights_and_config = {"config.json", "generation_config.json", "model.safetensors"}
    assert {path.name for path in output.iterdir()} == weights_and_config | {"README.md"}
    assert "the base" not in (output / "README.md").read_text()


def test_a_linked_file_outside_of_the_checkpoint_is_neither_copied_nor_loaded(step, tmp_path, caplog):
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    folder = step / "actor" / "huggingface"
    (folder / "id_rsa.txt").symlink_to(tmp_path / "id_rsa")
    output = export(step, tmp_path / "out")
    assert "id_rsa.txt" not in file_names(output)
    assert "not exported, because they are untrusted code or don't belong to a model: id_rsa.txt" in caplog.text
    (folder / "vocab.txt").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(ConfigError, match=r"vocab.txt' is a link to '.*id_rsa', outside of '.*huggingface'"):
        export(step, tmp_path / "again")


def test_config_and_tokenizer_are_read_through_the_links_of_a_hub_snapshot(step, tmp_path):
    snapshot = tmp_path / "models--someone--model" / "snapshots" / "abc"
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((step / "actor" / "huggingface").iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert "tokenizer.json" in file_names(export(step, tmp_path / "out", hf_config_dir=snapshot))


def test_exported_code_is_loaded_from_the_folder_and_not_from_the_hub(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.py").write_text("")
    references = {"AutoConfig": "someone/model--own.Config", "AutoModelForCausalLM": "someone/model--other.Model"}
    tokenizer = {"auto_map": {"AutoTokenizer": ["someone/model--own.Slow", None]}}
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": references}))
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (tmp_path / "copies").mkdir()
    files = copy_model_files(tmp_path / "model", tmp_path / "copies", trust=True)
    refer_to_copied_code(files)
    assert files.config["auto_map"] == {**references, "AutoConfig": "own.Config"}
    written = json.loads((tmp_path / "copies" / "tokenizer_config.json").read_text())
    assert written["auto_map"] == {"AutoTokenizer": ["own.Slow", None]}
