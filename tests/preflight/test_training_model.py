"""A run's model must be complete, and its context and heads must fit the run."""

import pytest
from support.experiments import composed, small_with_model
from support.preflights import check_plain

from rgtrain.config.run_config import plain_config
from rgtrain.errors import ConfigError


def test_a_missing_model_is_checked_by_its_shape(tmp_path):
    words = ["model=qwen2.5_1.5b", "hardware=cpu", f"run_dir={tmp_path}", "data.max_response_length=40000"]
    config = plain_config(composed(*words))
    with pytest.raises(ConfigError, match="Qwen/Qwen2.5-1.5B-Instruct has a context of 32768"):
        check_plain(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.max_response_length=2000", r"= 2256 tokens, but .* has a context of 2048; lower one .* to at most 1792"),
        ("actor_rollout_ref.model.path=models/nothing/here", "model.path=models/nothing/here does not exist"),
    ],
)
def test_a_mistake_is_reported_with_its_fix(tiny_model, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        check_plain(small_with_model(tiny_model, tmp_path / "run", override))


def test_tensor_parallel_that_does_not_divide_the_heads_is_refused(tiny_model, tmp_path):
    parallel = ["actor_rollout_ref.rollout.tensor_model_parallel_size=8", "trainer.n_gpus_per_node=8"]
    with pytest.raises(
        ConfigError, match=r"size=8 does not divide the 4 attention heads of .*; set it to one of 1, 2, 4"
    ):
        check_plain(small_with_model(tiny_model, tmp_path / "run", *parallel))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "is not a complete model, because config.json is missing"),
        ("tokenizer_config.json", "is not a complete model, because tokenizer_config.json is missing"),
        ("tokenizer.json", "has no tokenizer; add tokenizer.json or tokenizer.model or vocab.json"),
        ("chat_template.jinja", "has no chat template, so it is a base model; use its Instruct version"),
    ],
)
def test_an_incomplete_model_folder_is_refused(tiny_model, tmp_path, missing, message):
    folder = tmp_path / "model"
    folder.mkdir()
    assert (tiny_model / missing).is_file()
    for file in tiny_model.iterdir():
        if file.name != missing:
            (folder / file.name).symlink_to(file)
    with pytest.raises(ConfigError, match=message):
        check_plain(small_with_model(tiny_model, tmp_path / "run", f"actor_rollout_ref.model.path={folder}"))
