"""The context length follows scaled positions as vLLM does, and vLLM accepts it."""

import json

import pytest

from rgtrain.models.context_length import context_length, vllm_overrides

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def scaled(kind: str, **values) -> dict:
    return {"rope_parameters": {"rope_type": kind, **values}}


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({}, None),
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
        ({"max_position_embeddings": 4096, "seq_length": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        # Published configurations state the length before YaRN (Qwen2.5), after it (DeepSeek), or another one (Qwen3).
        ({"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 40960, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": YARN}, 131072),
        (
            {
                "max_position_embeddings": 1000,
                **scaled("deepseek_yarn", factor=40, original_max_position_embeddings=4096),
            },
            163840,
        ),
        ({"max_position_embeddings": 32768, **scaled("yarn", factor=4.0)}, 32768),
        ({"max_position_embeddings": 4096, **scaled("linear", factor=2.0)}, 8192),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 8}}, 32768),
        ({"max_position_embeddings": 4096, **scaled("linear", factor=None)}, 4096),
        ({"max_position_embeddings": 131072, **scaled("llama3", factor=8.0)}, 131072),
        ({"max_position_embeddings": 131072, **scaled("longrope", long_factor=[1.0])}, 131072),
        ({"max_position_embeddings": 4096, **scaled("default")}, 4096),
        ({"max_position_embeddings": 131072, "model_type": "gemma3_text", **scaled("linear", factor=8.0)}, 131072),
        (
            {
                "max_position_embeddings": 512,
                "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2}},
            },
            1024,
        ),
        ({"max_position_embeddings": "many", "rope_scaling": "yarn"}, None),
    ],
)
def test_the_context_length_follows_the_scaling_of_positions(config, length):
    assert context_length(config) == length


def test_vllm_gets_a_length_that_the_configuration_does_not_state(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 32768, "rope_scaling": YARN}))
    assert vllm_overrides(tmp_path, max_model_len=40000) == {"max_position_embeddings": 131072}
    assert vllm_overrides(tmp_path, max_model_len=32768) == {}
    assert vllm_overrides(tmp_path, max_model_len=200000) == {}


@pytest.mark.slow
def test_vllm_accepts_exactly_the_length_of_yarn(tiny_model, tmp_path):
    from vllm.config import ModelConfig

    folder = tmp_path / "yarn"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((tiny_model / "config.json").read_text())
    config |= {"max_position_embeddings": 512, "rope_scaling": YARN | {"original_max_position_embeddings": 512}}
    config.pop("rope_parameters", None)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    overrides = vllm_overrides(folder, max_model_len=2048)
    assert ModelConfig(model=str(folder), max_model_len=2048, hf_overrides=overrides).max_model_len == 2048
    with pytest.raises(ValueError, match="greater than the derived max_model_len"):
        ModelConfig(model=str(folder), max_model_len=2049, hf_overrides=overrides)
