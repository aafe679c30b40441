"""Sharing one copy of a prompt among its completions does not change log-probabilities or gradients."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rgtrain.training.update.packed_attention import NAME
from rgtrain.training.update.packing import MAX_GROUP_TOKENS, pack_groups


@pytest.fixture(scope="module")
def models(tiny_model):
    """Return the same model with packed attention and with torch's attention."""
    return {
        name: AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64, attn_implementation=name)
        for name in (NAME, "sdpa")
    }


def tokens(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(5, 1000, (length,), generator=generator) for length in lengths]


def groups() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    first, second, third = tokens(20, 31, 7)
    return [first, second, first, third, second, first], tokens(3, 9, 1, 5, 4, 7)


def packed_logits(models, packed) -> torch.Tensor:
    return models[NAME](**packed.model_inputs, use_cache=False).logits[0, packed.sources]


def log_probs_packed(models, prompts, responses) -> torch.Tensor:
    packed = pack_groups(prompts, responses)
    return torch.log_softmax(packed_logits(models, packed), -1).gather(-1, packed.labels[:, None]).squeeze(-1)


def log_probs_one_by_one(models, prompts, responses) -> torch.Tensor:
    parts = []
    for prompt, response in zip(prompts, responses, strict=True):
        logits = models["sdpa"](input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        parts.append(torch.log_softmax(logits, -1).gather(-1, response[:, None]).squeeze(-1))
    return torch.cat(parts)


def test_log_probs_equal_those_of_separate_sequences(models):
    with torch.no_grad():
        packed, separate = (run(models, *groups()) for run in (log_probs_packed, log_probs_one_by_one))
    assert torch.allclose(packed, separate, atol=1e-10)


def test_gradients_equal_those_of_separate_sequences(models):
    gradients = []
    for name, run in ((NAME, log_probs_packed), ("sdpa", log_probs_one_by_one)):
        log_probs = run(models, *groups())
        (log_probs * torch.linspace(-1, 1, len(log_probs))).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in models[name].parameters()])
        models[name].zero_grad()
    # The tolerance is larger because the model's norm layers compute in fp32.
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_a_packed_row_holds_each_prompt_once():
    prompts, responses = groups()
    packed = pack_groups(prompts, responses)
    assert packed.model_inputs["input_ids"].shape[1] == 20 + 31 + 7 + sum(map(len, responses))


def test_a_long_group_is_split_without_changing_its_log_probs(models):
    [prompt] = tokens(600)
    prompts, responses = [prompt] * 5, tokens(200, 150, 300, 90, 40)
    packed = pack_groups(prompts, responses)
    assert max(map(sum, packed.model_inputs["layout"].group_lengths)) <= MAX_GROUP_TOKENS
    with torch.no_grad():
        packed, separate = (run(models, prompts, responses) for run in (log_probs_packed, log_probs_one_by_one))
    assert torch.allclose(packed, separate, atol=1e-10)


@pytest.mark.gpu
def test_on_a_gpu_log_probs_and_gradients_equal_those_of_separate_sequences(tiny_model):
    prompts, responses = groups()
    results = []
    for name in (NAME, "sdpa"):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16, attn_implementation=name).cuda()
        if name == NAME:
            packed = pack_groups(prompts, responses, max_group_tokens=None).to("cuda")
            logits = model(**packed.model_inputs, use_cache=False).logits[0, packed.sources]
            rows = torch.log_softmax(logits.float(), -1).gather(-1, packed.labels[:, None]).squeeze(-1)
        else:
            parts = []
            for prompt, response in zip(prompts, responses, strict=True):
                whole = torch.cat([prompt, response])[None].cuda()
                logits = model(input_ids=whole).logits[0, len(prompt) - 1 : -1].float()
                parts.append(torch.log_softmax(logits, -1).gather(-1, response[:, None].cuda()).squeeze(-1))
            rows = torch.cat(parts)
        rows.sum().backward()
        gradient = torch.cat([parameter.grad.float().flatten() for parameter in model.parameters()])
        results.append((rows.detach(), gradient))
    (packed_rows, packed_gradient), (rows, gradient) = results
    assert (packed_rows - rows).norm() < 0.01 * rows.norm()
    assert (packed_gradient - gradient).norm() < 0.03 * gradient.norm()


def test_places_are_positions_in_the_concatenated_sequences():
    prompts, responses = tokens(4, 6), tokens(2, 3)
    # Each completion token is predicted by the token before it. The second sequence starts at position 6.
    assert pack_groups(prompts, responses).places.tolist() == [3, 4, 11, 12, 13]
