"""Log-probabilities and entropies in pieces are those of all logits at once, and so are their gradients."""

import pytest
import torch

from rgtrain.verl_plugin import log_prob_head
from rgtrain.verl_plugin.log_prob_head import Targets, token_log_probs


def run(temperature, *, with_entropy: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 8, generator=generator, requires_grad=True)
    weight = torch.randn(50, 8, generator=generator, requires_grad=True)
    labels = torch.randint(50, (11,), generator=generator)
    result = token_log_probs(hidden, weight, Targets(labels, temperature, with_entropy))
    (result * torch.randn(11, 2, generator=generator)).sum().backward()
    logits = (hidden @ weight.T).detach() / (
        temperature[:, None] if isinstance(temperature, torch.Tensor) else temperature
    )
    reference = torch.distributions.Categorical(logits=logits)
    expected = torch.stack([reference.log_prob(labels), reference.entropy() * with_entropy], dim=-1)
    assert torch.allclose(result, expected, atol=1e-5)
    return result, hidden.grad, weight.grad


@pytest.mark.parametrize("temperature", [1.0, 0.7, torch.linspace(0.5, 2, 11)])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_pieces_change_nothing(monkeypatch, temperature, with_entropy):
    whole = run(temperature, with_entropy=with_entropy)
    monkeypatch.setattr(log_prob_head, "_CHUNK_BYTES", 4 * 50 * 3)
    pieces = run(temperature, with_entropy=with_entropy)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, pieces, strict=True))
