"""Log-probabilities and entropies in pieces are those of all logits at once, and so are their gradients."""

import pytest
import torch

from rgtrain.training.update import log_prob_head
from rgtrain.training.update.log_prob_head import Targets, token_log_probs

ROWS, VOCABULARY = 11, 50


def run(temperature, *, with_entropy: bool, device: str) -> tuple[torch.Tensor, ...]:
    """The results and the gradients of hidden states and weight, which are compared with plain torch's."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator).to(device) for n in (ROWS, VOCABULARY))
    labels = torch.randint(VOCABULARY, (ROWS,), generator=generator).to(device)
    factors = torch.randn(ROWS, 1 + with_entropy, generator=generator).to(device)

    def ours(hidden, weight):
        return token_log_probs(hidden, weight, Targets(labels, temperature, with_entropy))[:, : 1 + with_entropy]

    def plain(hidden, weight):
        scale = temperature[:, None] if isinstance(temperature, torch.Tensor) else temperature
        distribution = torch.distributions.Categorical(logits=hidden @ weight.T / scale)
        return torch.stack([distribution.log_prob(labels), distribution.entropy()], dim=-1)[:, : 1 + with_entropy]

    results = []
    for function in (ours, plain):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        result = function(*leaves)
        (result * factors).sum().backward()
        results.append((result.detach(), *(leaf.grad for leaf in leaves)))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    return results[0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("temperature", [1.0, 0.7, torch.linspace(0.5, 2, ROWS)])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_pieces_change_nothing(monkeypatch, temperature, with_entropy, device):
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.to(device)
    whole = run(temperature, with_entropy=with_entropy, device=device)
    monkeypatch.setattr(log_prob_head, "_held_bytes", lambda _: 4 * VOCABULARY * 3)
    pieces = run(temperature, with_entropy=with_entropy, device=device)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, pieces, strict=True))
