"""PPO's critic is loaded from a model folder, has one value per token and uses the configured attention."""

from pathlib import Path

import pytest
import torch
from support.checkpoint_files import tiny_config, tiny_model
from transformers import LlamaForTokenClassification

from rgtrain.upstream.critic_attention import load_value_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("critic")
    tiny_model().save_pretrained(folder)
    return folder


def load(folder: Path, *, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> LlamaForTokenClassification:
    # verl sets this configuration for a critic.
    config = tiny_config(num_labels=1, attn_implementation=attention)
    return load_value_model(str(folder), dtype, config, False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_critic_uses_the_configured_attention(folder, attention):
    assert load(folder, attention=attention).config._attn_implementation == attention


def test_the_critic_gives_one_value_per_token(folder):
    values = load(folder)(torch.arange(10).reshape(2, 5)).logits
    assert values.shape == (2, 5, 1)
    assert values.isfinite().all()


def test_the_critic_starts_from_the_weights_of_the_model(folder):
    loaded, expected = load(folder).model.state_dict(), tiny_model().model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_critic_has_the_requested_dtype(folder, dtype):
    assert {parameter.dtype for parameter in load(folder, dtype=dtype).parameters()} == {dtype}
