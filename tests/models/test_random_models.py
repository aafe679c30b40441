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


def test_responses_of_a_random_model_end_after_a_mean_number_of_tokens(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_random_model(tmp_path / "model", like="smollm2-135m", num_layers=1, mean_response_tokens=50)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.randint(2000, 40_000, (4, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        probabilities = torch.softmax(model(tokens).logits, dim=-1)
    # A mean length of 50 means that a response ends at each token with a probability of 1 in 50.
    assert 40 < 1 / float(probabilities[..., model.config.eos_token_id].mean()) < 62
    # The other responses go on with one of 49 tokens, as likely as each other.
    assert float(probabilities.max()) < 0.25


@pytest.mark.parametrize("number", [1, 40_001])
def test_a_mean_length_out_of_range_is_refused(tmp_path, number):
    with pytest.raises(ConfigError, match=f"the mean length of responses is {number}; give 2 to 40000"):
        make_random_model(tmp_path / "model", like="smollm2-135m", mean_response_tokens=number)


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
