from pathlib import Path

import pytest

from rgtrain.errors import ConfigError
from rgtrain.models.random_models import make_random_model


def test_a_random_model_loads_with_a_tokenizer_that_fits_it(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = make_random_model(tmp_path / "model", like="smollm2-135m", num_layers=1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (model.dtype, model.config.hidden_size, model.config.num_hidden_layers) == (torch.bfloat16, 576, 1)
    assert max(tokenizer.get_vocab().values()) < model.config.vocab_size
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert 0 < model.lm_head.weight.float().std() < 0.05
    again = AutoModelForCausalLM.from_pretrained(
        make_random_model(tmp_path / "again", like="smollm2-135m", num_layers=1)
    )
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)


def test_the_error_for_an_unknown_shape_names_the_nearest_one(tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean 'qwen2.5-1.5b'"):
        make_random_model(tmp_path / "model", like="qwen2.5-15b")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_layers_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="the number of layers is 0; give 1 or more"):
        make_random_model(tmp_path / "model", like="smollm2-135m", num_layers=0)


def test_a_folder_that_is_not_empty_is_refused_and_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("kept", encoding="utf-8")
    with pytest.raises(ConfigError, match="exists and is not an empty folder; give a new or empty folder"):
        make_random_model(tmp_path, like="smollm2-135m")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
