"""One copy of a prompt for all its completions changes no log-probability and no gradient."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rgtrain.verl_plugin.shared_prompt import MAX_ROW_TOKENS, pack_groups


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64, attn_implementation="sdpa")


def tokens(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(5, 1000, (length,), generator=generator) for length in lengths]


def groups() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    first, second, third = tokens(20, 31, 7)
    return [first, second, first, third, second, first], tokens(3, 9, 1, 5, 4, 7)


def log_probs_packed(model, prompts, responses) -> torch.Tensor:
    packed = pack_groups(prompts, responses, pad_token_id=2)
    logits = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=packed.attention_mask,
        logits_to_keep=torch.arange(packed.first_column, packed.input_ids.shape[1]),
        use_cache=False,
    ).logits[packed.rows, packed.columns - packed.first_column]
    return torch.log_softmax(logits, -1).gather(-1, packed.labels[:, None]).squeeze(-1)


def log_probs_one_by_one(model, prompts, responses) -> torch.Tensor:
    parts = []
    for prompt, response in zip(prompts, responses, strict=True):
        logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        parts.append(torch.log_softmax(logits, -1).gather(-1, response[:, None]).squeeze(-1))
    return torch.cat(parts)


def test_log_probs_are_those_of_separate_sequences(model):
    with torch.no_grad():
        packed, separate = (run(model, *groups()) for run in (log_probs_packed, log_probs_one_by_one))
    assert torch.allclose(packed, separate, atol=1e-10)


def test_gradients_are_those_of_separate_sequences(model):
    gradients = []
    for run in (log_probs_packed, log_probs_one_by_one):
        log_probs = run(model, *groups())
        (log_probs * torch.linspace(-1, 1, len(log_probs))).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.zero_grad()
    # The model's norms compute in fp32.
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_equal_prompts_share_a_row():
    prompts, responses = groups()
    assert pack_groups(prompts, responses, pad_token_id=2).input_ids.shape[0] == 3


def test_a_long_group_takes_several_rows_and_keeps_its_log_probs(model):
    [prompt] = tokens(600)
    prompts, responses = [prompt] * 5, tokens(200, 150, 300, 90, 40)
    packed = pack_groups(prompts, responses, pad_token_id=2)
    assert packed.input_ids.shape[0] > 1
    assert packed.input_ids.shape[1] <= MAX_ROW_TOKENS
    with torch.no_grad():
        assert torch.allclose(
            log_probs_packed(model, prompts, responses), log_probs_one_by_one(model, prompts, responses), atol=1e-10
        )


def test_places_count_through_the_concatenated_sequences():
    prompts, responses = tokens(4, 6), tokens(2, 3)
    # The token before each completion token: 3, 4 in the first sequence; 6 + 5, 6 + 6, 6 + 7 in the second.
    assert pack_groups(prompts, responses, pad_token_id=2).places.tolist() == [3, 4, 11, 12, 13]
