"""Log-probabilities, entropies and gradients do not depend on the chunks in which logits are computed."""

import pytest
import torch

from rgtrain.training.update import log_prob_head
from rgtrain.training.update.log_prob_head import LogitTransform, Targets, token_log_probs

ROWS, VOCABULARY = 11, 50
# The kernels for GPUs go through it in three blocks.
LARGE_VOCABULARY = 9000
UNCHANGED = LogitTransform()


def run(
    temperature, *, with_entropy: bool, device: str, vocabulary: int = VOCABULARY, transform: LogitTransform = UNCHANGED
) -> tuple[torch.Tensor, ...]:
    """Return the results and the gradients of hidden states, weight and bias, after comparing them with torch's."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator).to(device) for n in (ROWS, vocabulary))
    bias = torch.randn(vocabulary, generator=generator).to(device)
    labels = torch.randint(vocabulary, (ROWS,), generator=generator).to(device)
    factors = torch.randn(ROWS, 1 + with_entropy, generator=generator).to(device)

    def ours(hidden, weight, bias):
        targets = Targets(labels, torch.arange(ROWS), temperature, with_entropy)
        return token_log_probs(hidden, weight, targets, bias=bias, transform=transform)[:, : 1 + with_entropy]

    def plain(hidden, weight, bias):
        logits = (hidden @ weight.T + bias) * transform.scale
        if transform.cap:
            logits = transform.cap * torch.tanh(logits / transform.cap)
        scale = temperature[:, None] if isinstance(temperature, torch.Tensor) else temperature
        distribution = torch.distributions.Categorical(logits=logits / scale)
        return torch.stack([distribution.log_prob(labels), distribution.entropy()], dim=-1)[:, : 1 + with_entropy]

    results = []
    for function in (ours, plain):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
        result = function(*leaves)
        (result * factors).sum().backward()
        results.append((result.detach(), *(leaf.grad for leaf in leaves)))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    return results[0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("temperature", [1.0, 0.7, torch.linspace(0.5, 2, ROWS)])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_chunks_do_not_change_the_results(monkeypatch, temperature, with_entropy, device):
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.to(device)
    whole = run(temperature, with_entropy=with_entropy, device=device)
    monkeypatch.setattr(log_prob_head, "_max_logits_bytes", lambda _: 4 * VOCABULARY * 3)
    in_chunks = run(temperature, with_entropy=with_entropy, device=device)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, in_chunks, strict=True))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("vocabulary", [VOCABULARY, LARGE_VOCABULARY])
@pytest.mark.parametrize("transform", [UNCHANGED, LogitTransform(scale=0.25), LogitTransform(scale=2.0, cap=3.0)])
def test_scales_and_soft_caps_of_logits_give_the_results_and_gradients_of_plain_torch(transform, vocabulary, device):
    run(0.7, with_entropy=True, device=device, vocabulary=vocabulary, transform=transform)
