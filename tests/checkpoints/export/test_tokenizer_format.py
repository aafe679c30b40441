"""The exported tokenizer files are in the form that all versions of transformers and other loaders read."""

import json

import pytest
from support.checkpoint_files import CHAT_TEMPLATE, tiny_model, tiny_tokenizer, write_plain
from transformers import AutoTokenizer

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.export.tokenizer_format import rewrite_tokenizer
from rgtrain.checkpoints.hugging_face import copy_model_files

# Classes and keys that transformers 4 does not know.
NEW_CLASSES = ("TokenizersBackend", "PythonBackend", "SentencePieceBackend")


@pytest.fixture
def actor(tmp_path):
    return write_plain(tmp_path / "global_step_1", tiny_model())


def saved_config(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())


def rewritten(actor, tmp_path, **changes):
    """Return the rewritten tokenizer_config.json after changes to the saved one."""
    path = actor / "huggingface" / "tokenizer_config.json"
    path.write_text(json.dumps(saved_config(path.parent) | changes))
    (tmp_path / "copies").mkdir()
    rewrite_tokenizer(copy_model_files(path.parent, tmp_path / "copies", trust=False))
    return saved_config(tmp_path / "copies")


def test_a_generic_tokenizer_has_the_class_name_that_all_versions_know(actor, tmp_path):
    assert saved_config(actor / "huggingface")["tokenizer_class"] in NEW_CLASSES
    assert saved_config(export(actor, tmp_path / "out"))["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("name", ["LlamaTokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
def test_other_class_names_are_kept(name, actor, tmp_path):
    assert rewritten(actor, tmp_path, tokenizer_class=name)["tokenizer_class"] == name


@pytest.mark.parametrize(
    ("name", "tokens", "expected"),
    [
        ("LlamaTokenizer", "<s> A", {"add_bos_token": True, "add_eos_token": False}),
        ("LlamaTokenizer", "A", {"add_bos_token": False, "add_eos_token": False}),
        ("GemmaTokenizer", "<s> A </s>", {"add_bos_token": True, "add_eos_token": True}),
        # Rules that the two switches can't express, and classes that use the rule in tokenizer.json.
        ("LlamaTokenizer", "<unk> A", {}),
        ("LlamaTokenizer", None, {}),
        ("PreTrainedTokenizerFast", "A", {}),
    ],
)
def test_the_rule_that_adds_a_beginning_and_an_end_is_in_the_config(name, tokens, expected, actor, tmp_path):
    path = actor / "huggingface" / "tokenizer.json"
    parts = [
        {"Sequence": {"id": "A"}} if part == "A" else {"SpecialToken": {"id": part}} for part in (tokens or "").split()
    ]
    rule = {"type": "TemplateProcessing", "single": parts} if tokens else {"type": "ByteLevel"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": rule}))
    config = rewritten(actor, tmp_path, tokenizer_class=name, bos_token={"content": "<s>"}, eos_token="</s>")
    assert {key: value for key, value in config.items() if key.startswith("add_")} == expected


def test_a_list_of_special_tokens_is_under_the_key_that_took_lists_before(actor, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<think>", "</think>"], "pad_token": "<pad>"})
    tokenizer.save_pretrained(actor / "huggingface")
    assert saved_config(actor / "huggingface")["extra_special_tokens"] == ["<think>", "</think>"]
    output = export(actor, tmp_path / "out")
    config = saved_config(output)
    # transformers 4 asks the value of this key for its keys.
    assert "extra_special_tokens" not in config
    assert config["additional_special_tokens"] == ["<think>", "</think>"]
    loaded = AutoTokenizer.from_pretrained(output)
    assert loaded.extra_special_tokens == tokenizer.extra_special_tokens
    text = "1 <think> 2 </think> <pad>"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == "1 2"


def test_named_special_tokens_keep_their_mapping(actor, tmp_path):
    path = actor / "huggingface" / "tokenizer_config.json"
    path.write_text(json.dumps(saved_config(path.parent) | {"extra_special_tokens": {"image_token": "7"}}))
    output = export(actor, tmp_path / "out")
    assert saved_config(output)["extra_special_tokens"] == {"image_token": "7"}
    assert AutoTokenizer.from_pretrained(output).image_token == "7"


def test_the_chat_template_is_in_its_file_and_in_the_config(actor, tmp_path):
    output = export(actor, tmp_path / "out")
    assert (output / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert saved_config(output)["chat_template"] == CHAT_TEMPLATE
    assert AutoTokenizer.from_pretrained(output).chat_template == CHAT_TEMPLATE


def test_several_chat_templates_keep_their_names(actor, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tools": "{{ tools }}"}
    tokenizer.save_pretrained(actor / "huggingface")
    output = export(actor, tmp_path / "out")
    named = [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "tools", "template": "{{ tools }}"}]
    assert saved_config(output)["chat_template"] == named
    assert AutoTokenizer.from_pretrained(output).chat_template == tokenizer.chat_template


def test_arguments_of_the_call_that_loaded_the_tokenizer_are_left_out(actor, tmp_path):
    path = actor / "huggingface" / "tokenizer_config.json"
    private = {"is_local": True, "local_files_only": False, "name_or_path": "/home/someone/model"}
    path.write_text(json.dumps(saved_config(path.parent) | private))
    assert not saved_config(export(actor, tmp_path / "out")).keys() & private.keys()
