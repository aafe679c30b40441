"""Triton kernels for log-probabilities and entropy, with one pass over the logits each for results and gradients.

Plain torch needs a dozen passes each over logits in fp32, which is a quarter of a training step with a vocabulary of
150,000 tokens. The kernels need CUDA.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


class LinearLogProbs(torch.autograd.Function):
    """The output layer, log-softmax and entropy as one differentiable function.

    Logits are kept in the dtype of `hidden`. In the backward pass, their gradient overwrites them.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, inverse_temperatures: Tensor) -> Tensor:
        """Compute log-probabilities and entropies.

        Args:
            ctx: torch's context for the backward pass.
            hidden: [rows, size].
            weight: [vocabulary, size].
            labels: [rows].
            inverse_temperatures: [rows], fp32.

        Returns:
            [rows, 2] in fp32, the log-probability of each label and the entropy.
        """
        logits = hidden @ weight.t()
        results = torch.empty(len(hidden), 2, dtype=torch.float32, device=hidden.device)
        normalisers = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        num_tokens = logits.shape[1]
        arguments = logits, labels, inverse_temperatures, normalisers, results
        _log_probs[(len(hidden),)](*arguments, num_tokens, BLOCK=_BLOCK, num_warps=8)
        ctx.save_for_backward(hidden, weight, *arguments)
        return results

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Compute the gradients of `hidden` and `weight` from the `gradient` of the results, [rows, 2]."""
        hidden, weight, logits, labels, inverse_temperatures, normalisers, results = ctx.saved_tensors
        rows, num_tokens = logits.shape
        grid = rows, triton.cdiv(num_tokens, _BLOCK)
        arguments = logits, labels, inverse_temperatures, normalisers, results, gradient.contiguous()
        _gradient_in_place[grid](*arguments, num_tokens, BLOCK=_BLOCK, num_warps=8)
        return logits @ weight, logits.t() @ hidden, None, None


@triton.jit
def _log_probs(logits, labels, inverse_temperatures, normalisers, results, num_tokens, BLOCK: tl.constexpr):
    """Compute log Z, x[label] - log Z and log Z - sum p x for one row of logits x, which is read once."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * num_tokens
    inverse_temperature = tl.load(inverse_temperatures + row)
    # total is the sum of e^(x - largest), and weighted is the same sum weighted with x.
    largest = -float("inf")
    total = 0.0
    weighted = 0.0
    for start in range(0, num_tokens, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < num_tokens
        x = tl.load(logits + columns, mask=inside, other=0.0).to(tl.float32) * inverse_temperature
        new_largest = tl.maximum(largest, tl.max(tl.where(inside, x, -float("inf"))))
        e = tl.where(inside, tl.exp(x - new_largest), 0.0)
        scale = tl.exp(largest - new_largest)
        total = total * scale + tl.sum(e)
        weighted = weighted * scale + tl.sum(e * x)
        largest = new_largest
    normaliser = largest + tl.log(total)
    chosen = tl.load(logits + tl.load(labels + row)).to(tl.float32) * inverse_temperature
    tl.store(normalisers + row, normaliser)
    tl.store(results + 2 * row, chosen - normaliser)
    tl.store(results + 2 * row + 1, normaliser - weighted / total)


@triton.jit
def _gradient_in_place(
    logits, labels, inverse_temperatures, normalisers, results, gradient, num_tokens, BLOCK: tl.constexpr
):
    """Overwrite one block of logits with its gradient.

    The gradient of x[label] - log Z is 1[label] - p. The gradient of the entropy H is -p (log p + H).
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * num_tokens
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_tokens
    inverse_temperature = tl.load(inverse_temperatures + row)
    x = tl.load(logits + columns, mask=inside, other=0.0).to(tl.float32) * inverse_temperature
    log_p = x - tl.load(normalisers + row)
    p = tl.exp(log_p)
    is_label = (columns == tl.load(labels + row)).to(tl.float32)
    of_log_prob = tl.load(gradient + 2 * row) * (is_label - p)
    of_entropy = tl.load(gradient + 2 * row + 1) * p * (log_p + tl.load(results + 2 * row + 1))
    dx = (of_log_prob - of_entropy) * inverse_temperature
    tl.store(logits + columns, dx.to(logits.dtype.element_ty), mask=inside)
