"""Every family of models is trained as by the plain model, which gets one sequence at a time, or is refused."""

import pytest
import torch
from support.families import (
    largest_difference,
    make_model,
    make_sequences,
    outputs_of_layout,
    plain_outputs,
    values_of_padded_and_separate,
)
from transformers import AutoConfig, AutoModelForTokenClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from rgtrain.errors import ConfigError
from rgtrain.models.family_layouts import CRITICS, PADDED_ROWS, REFUSED, SHARED_PROMPTS, TRAINED_BY_VERL
from rgtrain.preflight.model_families import check_content
from rgtrain.training.update import layouts, log_prob_head
from rgtrain.training.update.layouts import ONE_ROW, NoRightLayout, PolicyModel, remove_noise

LAYOUT_NAMES = dict.fromkeys(SHARED_PROMPTS, "shared prompts") | dict.fromkeys(PADDED_ROWS, "padded rows")
# One family of each kind, and those that are in use. The others are tried with --slow.
USUAL = [
    "apertus",
    "arcee",
    "bamba",
    "cohere",
    "cohere2",
    "deepseek_v3",
    "ernie4_5",
    "exaone4",
    "falcon_h1",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_oss",
    "granite",
    "granitemoehybrid",
    "helium",
    "hunyuan_v1_dense",
    "jamba",
    "lfm2",
    "llama",
    "llama4_text",
    "ministral3",
    "mistral",
    "mixtral",
    "nanochat",
    "nemotron",
    "olmo2",
    "olmo3",
    "olmoe",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_5",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_vl",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
]
FAMILIES = [*USUAL, *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(set(LAYOUT_NAMES) - set(USUAL)))]
GPU_FAMILIES = [
    "cohere",
    "gemma2",
    "gemma3_text",
    "gpt_oss",
    "granite",
    "lfm2",
    "llama",
    "llama4_text",
    "mistral",
    "nanochat",
    "olmo3",
    "phi",
    "qwen3",
    "qwen3_5_text",
    "qwen3_moe",
    "qwen3_next",
]


def choose(policy: PolicyModel, model) -> layouts.LayoutChoice:
    model.eval()
    choice = policy.choose_layout(model, device=model.device, dtype=model.dtype)
    model.train()
    return choice


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_entropies_and_gradients_equal_those_of_the_plain_model(family):
    model, sequences = make_model(family), make_sequences()
    plain = plain_outputs(model, *sequences)
    policy = PolicyModel(model)
    choice = choose(policy, model)
    assert choice.layout.name == LAYOUT_NAMES[family]
    # Log-probabilities are about -5. The layouts sum in other orders, and mixtures of experts are sensitive to it.
    assert largest_difference(plain, outputs_of_layout(policy, model, choice.layout, *sequences)) < 3e-4


def test_a_family_that_needs_padding_gets_it_even_if_its_weights_hardly_act():
    model = make_model("lfm2").eval()
    for name, weight in model.named_parameters():
        if "conv" in name:
            weight.data.mul_(1e-6)
    policy = PolicyModel(model)
    arguments = {"device": model.device, "dtype": model.dtype}
    assert policy.choose_layout(model, **arguments).layout.name == "shared prompts"
    assert policy.family in PADDED_ROWS
    choice = policy.choose_layout(model, **arguments, needs_padding=True)
    assert str(choice) == "layout in training: padded rows (the family needs it)"


def test_the_self_test_refuses_a_wrong_output_layer(monkeypatch):
    model = make_model("llama").eval()
    monkeypatch.setattr(log_prob_head, "_chunk_on_cpu", wrong_by_a_part_of_the_vocabulary)
    with pytest.raises(NoRightLayout, match="the output layer's log-probabilities differ from torch's by"):
        PolicyModel(model).choose_layout(model, device="cpu", dtype=torch.bfloat16)


def wrong_by_a_part_of_the_vocabulary(hidden, weight, bias, labels, *_):
    logits = hidden @ weight.T
    normaliser = torch.logsumexp(logits[:, : len(weight) * 9 // 10], dim=-1)
    return torch.stack([logits.gather(-1, labels[:, None])[:, 0] - normaliser, normaliser], dim=-1)


@pytest.mark.parametrize("family", sorted(name for name, reason in REFUSED.items() if "three dimensions" in reason))
def test_the_self_test_refuses_a_model_that_fails_without_images(family):
    model = make_model(family)
    with pytest.raises(NoRightLayout, match="ndim"):
        choose(PolicyModel(model), model)


@pytest.mark.parametrize("family", ["nemotron_h", pytest.param("zamba2", marks=pytest.mark.slow), "doge"])
def test_the_self_test_refuses_a_model_that_no_layout_trains_right(family):
    model = make_model(family)
    with pytest.raises(NoRightLayout, match="no layout gives its log-probabilities"):
        choose(PolicyModel(model), model)


def test_dropout_and_the_like_are_turned_off():
    config = AutoConfig.for_model("gemma3", text_config={"attention_dropout": 0.1}, router_jitter_noise=0.1)
    remove_noise(config)
    assert (config.router_jitter_noise, config.text_config.attention_dropout) == (0.0, 0.0)


def test_one_row_of_separate_sequences_is_right_for_attention():
    model, sequences = make_model("mistral"), make_sequences()
    plain = plain_outputs(model, *sequences)
    assert largest_difference(plain, outputs_of_layout(PolicyModel(model), model, ONE_ROW, *sequences)) < 1e-4


def test_every_rank_takes_the_layout_that_is_right_on_all_ranks():
    model = make_model("llama")
    model.eval()
    # The error of the output layer, and two numbers per layout. Padded rows come first.
    of_another_rank = iter([0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0])
    choice = PolicyModel(model).choose_layout(
        model, device="cpu", dtype=model.dtype, max_over_ranks=lambda own: max(own, next(of_another_rank))
    )
    assert choice.layout is ONE_ROW
    assert str(choice).startswith("layout in training: one row, because faster ones are wrong for this model (shared")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[] if name in ("gemma2", "gpt_oss", "mistral", "qwen3_5") else pytest.mark.slow)
        for name in sorted(CRITICS)
    ],
)
def test_values_of_a_critic_equal_those_of_one_sequence_at_a_time(family):
    model = make_model(family, auto_class=AutoModelForTokenClassification, num_labels=1)
    padded, separate = values_of_padded_and_separate(model.eval(), *make_sequences())
    assert torch.allclose(padded, separate, atol=1e-4)


def test_families_without_a_value_model_are_no_critics():
    known = set(MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES)
    # The value model of DeepSeek V3 fails in transformers.
    assert (SHARED_PROMPTS | PADDED_ROWS) & known - {"deepseek_v3"} == CRITICS


@pytest.mark.parametrize("family", sorted(name for name, reason in REFUSED.items() if "num_key_value_heads" in reason))
def test_verl_does_not_load_the_families_that_are_refused_for_it(family):
    # verl reads it from every configuration that it loads, or else from the configuration of the text model.
    assert not hasattr(AutoConfig.for_model(family), "num_key_value_heads")


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "lfm2", "qwen3_next", "olmo3"])
def test_the_self_test_takes_the_same_layout_in_half_precision(family, dtype):
    model = make_model(family, dtype=dtype)
    assert choose(PolicyModel(model), model).layout.name == LAYOUT_NAMES[family]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "qwen3",
        "qwen3_moe",
        "mistral",
        "gemma3_text",
        "olmo3",
        "granite",
        "cohere",
        "nanochat",
        "phi",
        "gemma2",
        "gpt_oss",
        "lfm2",
        "qwen3_next",
        "qwen3_5_text",
        "llama4_text",
    ],
)
def test_on_a_gpu_in_half_precision_results_equal_those_of_the_plain_model(family):
    model, sequences = make_model(family, device="cuda", dtype=torch.bfloat16), make_sequences()
    plain = plain_outputs(model, *sequences)
    policy = PolicyModel(model)
    choice = choose(policy, model)
    assert choice.layout.name == LAYOUT_NAMES[family], choice
    outputs = outputs_of_layout(policy, model, choice.layout, *sequences)
    assert (outputs.log_probs - plain.log_probs).abs().mean() < 0.05
    assert (outputs.entropy - plain.entropy).abs().mean() < 0.05
    gradients = [torch.cat([gradient.flatten() for gradient in each.gradients.values()]) for each in (plain, outputs)]
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[0].norm()


@pytest.mark.gpu
def test_on_a_gpu_in_full_precision_results_equal_those_of_the_plain_model():
    model, sequences = make_model("gemma2", device="cuda"), make_sequences()
    plain = plain_outputs(model, *sequences)
    policy = PolicyModel(model)
    choice = choose(policy, model)
    # The kernels of padding-free attention have no fp32.
    assert choice.layout.name == "padded rows"
    assert largest_difference(plain, outputs_of_layout(policy, model, choice.layout, *sequences)) < 1e-3


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_refused_family_is_named_with_the_way_out(family):
    way_out = "or set engine=verl" if family in TRAINED_BY_VERL else "use another model$"
    with pytest.raises(ConfigError, match=rf"of the family {family}, .*{way_out}"):
        check_content("models/mine", {"model_type": family})
