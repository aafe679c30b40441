from pathlib import Path

import pytest

from rgtrain.errors import ConfigError
from rgtrain.models.model_shapes import SHAPES
from rgtrain.models.random_models import make_random_model

# As the models' safetensors count them; tied weights once.
PUBLISHED_NUM_PARAMETERS = {
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}


def test_every_shape_has_the_published_number_of_parameters():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    found = {}
    for name, shape in SHAPES.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
        found[name] = model.num_parameters()
    assert found == PUBLISHED_NUM_PARAMETERS


def test_a_random_model_loads_with_a_tokenizer_that_fits(tmp_path):
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


def test_an_unknown_name_is_refused_naming_the_nearest(tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean 'qwen2.5-1.5b'"):
        make_random_model(tmp_path / "model", like="qwen2.5-15b")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_no_layers_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a model of 0 layers can't be made"):
        make_random_model(tmp_path / "model", like="smollm2-135m", num_layers=0)


def test_a_folder_that_holds_something_is_refused_and_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("kept", encoding="utf-8")
    with pytest.raises(ConfigError, match="is there already; name a new or empty folder"):
        make_random_model(tmp_path, like="smollm2-135m")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
