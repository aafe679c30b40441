"""The values of the lines that a start prints."""

from dataclasses import replace

import pytest
from support.experiments import small_run

from rgtrain.models.model_shapes import SHAPES
from rgtrain.preflight.sizes import ModelSize
from rgtrain.preflight.start_summary import algorithm_text, datasets_text, model_text
from rgtrain.preflight.training_model import TrainingModel
from rgtrain.problems import DatasetSpec

ACTOR = "actor_rollout_ref.actor"


def test_the_first_datasets_are_named_with_their_shares():
    specs = [DatasetSpec(f"dataset_{number}", 2.0 if number == 0 else 1.0, {}) for number in range(9)]
    text = datasets_text(specs, curriculum=["dataset_1"])
    assert text.startswith("dataset_0 20%, dataset_1 10% with a curriculum, dataset_2 10%, ")
    assert text.endswith("dataset_7 10% and 1 more")


def test_a_small_share_is_not_shown_as_zero():
    specs = [DatasetSpec("large", 997.0, {}), DatasetSpec("small", 3.0, {})]
    assert datasets_text(specs, curriculum=()) == "large 100%, small 0.3%"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((f"{ACTOR}.use_kl_loss=true",), "grpo, vanilla loss, clip 0.2, KL loss 0.001 (low_var_kl)"),
        (
            (f"{ACTOR}.use_kl_loss=false", f"{ACTOR}.clip_ratio_high=0.28", "algorithm.filter_groups.enable=true"),
            "grpo, vanilla loss, clip 0.2 below and 0.28 above, no KL, dynamic sampling",
        ),
        (
            (f"{ACTOR}.use_kl_loss=false", "algorithm.use_kl_in_reward=true", f"{ACTOR}.policy_loss.loss_mode=sapo"),
            "grpo, sapo loss, KL in the reward 0.001 (kl)",
        ),
        (("algorithm.adv_estimator=gae", "critic.enable=true"), ", a critic"),
    ],
)
def test_the_algorithm_is_described_by_its_loss_clipping_and_kl(tmp_path, changes, expected):
    text = algorithm_text(small_run(tmp_path, *changes))
    assert text == expected or (expected.startswith(", ") and text.endswith(expected))


def test_a_model_is_described_by_its_parameters_their_type_and_the_adapters(tmp_path):
    config = small_run(tmp_path)
    model = TrainingModel("Qwen/Qwen2.5-1.5B", None, None, ModelSize.of(SHAPES["qwen2.5-1.5b"]), "")
    assert (
        model_text(config, model) == "Qwen/Qwen2.5-1.5B, 1.54 billion parameters, fp32 computed in bf16, full training"
    )
    config = replace(config, model=replace(config.model, lora_rank=16))
    assert model_text(config, model).endswith(", LoRA of rank 16 (18.5 million trained)")
    assert model_text(config, replace(model, size=None)).endswith(", LoRA of rank 16")
