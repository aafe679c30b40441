"""The tokenizer follows the rule that the file names, and its special tokens keep their roles."""

from pathlib import Path

import pytest
from support.gguf_models import byte_level_metadata, sentencepiece_metadata

from rgtrain.checkpoints.gguf.gguf_file import GgufFile
from rgtrain.checkpoints.gguf.gguf_tokenizer import PRE_TOKENIZERS, build_tokenizer, end_token_ids
from rgtrain.errors import ConfigError


def tokenizer_of(metadata, *, architecture="llama"):
    file = GgufFile((Path("model.gguf"),), {"general.architecture": architecture} | metadata, {})
    return build_tokenizer(file, vocab_size=400), file


def pieces(pre: str, text: str) -> list[str]:
    split = PRE_TOKENIZERS[pre]().pre_tokenize_str(text)
    return [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in split]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("llama-bpe", ["It", "'S", " ", "123", "45", " x", "\n\n", "y", "  ", " z"]),
        ("qwen2", ["It", "'S", " ", "1", "2", "3", "4", "5", " x", "\n\n", "y", "  ", " z"]),
        ("gpt-2", ["It", "'", "S", " 12345", " x", "\n", "\n", "y", "  ", " z"]),
        ("smollm", ["It", "'", "S", " ", "1", "2", "3", "4", "5", " x", "\n", "\n", "y", "  ", " z"]),
        ("tekken", ["It", "'S", " ", "1", "2", "3", "4", "5", " x", "\n\n", "y", "  ", " z"]),
    ],
)
def test_text_is_split_by_the_named_rule(pre, expected):
    assert pieces(pre, "It'S 12345 x\n\ny   z") == expected


def test_an_unknown_rule_is_refused_with_the_list():
    with pytest.raises(ConfigError, match="pre-tokenizer 'new-bpe', whose rule is unknown here.*known are .*qwen2"):
        tokenizer_of(byte_level_metadata("new-bpe"))
    with pytest.raises(ConfigError, match="pre-tokenizer 'default'"):
        tokenizer_of(byte_level_metadata("default"))
    # Old files of this family don't name it.
    tokenizer_of(byte_level_metadata("default"), architecture="qwen2")


def test_an_early_conversion_of_llama_3_is_recognised():
    metadata = byte_level_metadata("default")
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens += [f"<{number}>" for number in range(len(tokens), 128_000)] + ["<|begin_of_text|>"]
    metadata["tokenizer.ggml.token_type"] = [1] * 128_000 + [3]
    file = GgufFile((Path("model.gguf"),), {"general.architecture": "llama"} | metadata, {})
    tokenizer = build_tokenizer(file, vocab_size=128_001)
    assert [len(piece) for piece in tokenizer.tokenize("12345")] == [3, 1, 1]


def test_special_tokens_are_split_off_and_plain_text_is_not():
    tokenizer, _ = tokenizer_of(byte_level_metadata())
    assert tokenizer.tokenize("<|im_start|>the 12") == ["<|im_start|>", "the", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer("<|im_end|>the")["input_ids"], skip_special_tokens=True) == "the"


def test_the_beginning_is_added_if_the_file_or_its_rule_says_so():
    assert tokenizer_of(byte_level_metadata("qwen2"))[0]("a")["input_ids"][0] != 3
    assert tokenizer_of(byte_level_metadata("llama-bpe"))[0]("a")["input_ids"][0] == 3
    metadata = byte_level_metadata("llama-bpe") | {"tokenizer.ggml.add_bos_token": False}
    assert tokenizer_of(metadata)[0]("a")["input_ids"][0] != 3
    metadata = byte_level_metadata() | {"tokenizer.ggml.add_eos_token": True}
    assert tokenizer_of(metadata)[0]("a")["input_ids"][-1] == 0


def test_sentencepiece_joins_by_score_and_falls_back_to_bytes():
    tokenizer, _ = tokenizer_of(sentencepiece_metadata())
    assert tokenizer.tokenize("the 12é<tool>") == ["▁the", "▁1", "2", "<0xC3>", "<0xA9>", "<tool>"]
    gemma, _ = tokenizer_of(sentencepiece_metadata(**{"tokenizer.ggml.add_space_prefix": False}))
    assert gemma.tokenize("the") == ["t", "he"]
    assert gemma.decode(gemma(" the é")["input_ids"], skip_special_tokens=True) == " the é"


GEMMA_TEMPLATE = "{{ bos_token }}{% for m in messages %}<start>{{ m['content'] }}<end_of_turn>\n{% endfor %}"


@pytest.mark.parametrize(
    ("changes", "end", "ids"),
    [
        ({"tokenizer.chat_template": GEMMA_TEMPLATE}, "<end_of_turn>", [3, 2]),
        ({}, "</s>", [2, 3]),
        ({"tokenizer.ggml.eot_token_id": 3}, "<end_of_turn>", [3, 2]),
        # A template that fails, or refuses roles, decides nothing.
        ({"tokenizer.chat_template": "{{ raise_exception('no') }}"}, "</s>", [2, 3]),
        ({"tokenizer.chat_template": "{% for"}, "</s>", [2, 3]),
    ],
)
def test_the_end_of_a_turn_is_found_in_the_template_or_the_metadata(changes, end, ids):
    tokenizer, file = tokenizer_of(sentencepiece_metadata(**changes))
    assert tokenizer.eos_token == end
    assert end_token_ids(file, tokenizer) == ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer of the kind 'rwkv'"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "has the eos token 9999, but only"),
        ({"tokenizer.ggml.eos_token_id": "2"}, "not an integer"),
        ({"tokenizer.ggml.scores": [0.0]}, "1 scores"),
        ({"tokenizer.ggml.token_type": [1]}, "1 types of tokens"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "not a list of str"),
        ({"tokenizer.ggml.tokens": ["a"] * 500}, "has 500 tokens for 400 rows"),
        ({"tokenizer.ggml.add_bos_token": 1}, "not a boolean"),
        ({"tokenizer.chat_template": "x" * 1_000_001}, "more than 1000000 characters"),
    ],
)
def test_metadata_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tokenizer_of(sentencepiece_metadata(**changes))


def test_merges_that_do_not_fit_the_tokens_are_refused():
    for merges in ([], ["t"], ["t h", "zz zz"], ["t q"]):
        with pytest.raises(ConfigError, match="list of merges"):
            tokenizer_of(byte_level_metadata() | {"tokenizer.ggml.merges": merges})


def test_several_chat_templates_keep_their_names():
    tokenizer, _ = tokenizer_of(byte_level_metadata() | {"tokenizer.chat_template.tool_use": "tools"})
    assert set(tokenizer.chat_template) == {"default", "tool_use"}
    assert tokenizer.eos_token == "<|im_end|>"


def test_repeated_tokens_keep_their_own_ids():
    metadata = sentencepiece_metadata()
    metadata["tokenizer.ggml.tokens"][-1] = "a"
    tokenizer, _ = tokenizer_of(metadata)
    assert len(tokenizer) == len(metadata["tokenizer.ggml.tokens"])
