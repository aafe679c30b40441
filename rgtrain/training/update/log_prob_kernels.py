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
    """The output layer, the model's change of its logits, log-softmax and entropy as one differentiable function.

    Logits are kept in the dtype of `hidden`. In the backward pass, their gradient overwrites them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        inverse_temperatures: Tensor,
        scale: float,
        cap: float,
    ) -> Tensor:
        """Compute log-probabilities and entropies.

        Args:
            ctx: torch's context for the backward pass.
            hidden: [rows, size].
            weight: [vocabulary, size].
            bias: [vocabulary], or None.
            labels: [rows].
            inverse_temperatures: [rows], fp32.
            scale: The factor of the logits.
            cap: The soft cap of the scaled logits. 0 means none.

        Returns:
            [rows, 2] in fp32, the log-probability of each label and the entropy.
        """
        logits = hidden @ weight.t() if bias is None else torch.addmm(bias.to(hidden.dtype), hidden, weight.t())
        results = torch.empty(len(hidden), 2, dtype=torch.float32, device=hidden.device)
        normalisers = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        num_tokens = logits.shape[1]
        arguments = logits, labels, inverse_temperatures, normalisers, results
        ctx.options = {"scale": scale, "cap": cap, "CAPPED": cap != 0, "BLOCK": _BLOCK, "num_warps": 8}
        ctx.bias_dtype = None if bias is None else bias.dtype
        _log_probs[(len(hidden),)](*arguments, num_tokens, **ctx.options)
        ctx.save_for_backward(hidden, weight, *arguments)
        return results

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of `hidden`, `weight` and `bias` from the `gradient` of the results, [rows, 2]."""
        hidden, weight, logits, labels, inverse_temperatures, normalisers, results = ctx.saved_tensors
        rows, num_tokens = logits.shape
        grid = rows, triton.cdiv(num_tokens, _BLOCK)
        arguments = logits, labels, inverse_temperatures, normalisers, results, gradient.contiguous()
        _gradient_in_place[grid](*arguments, num_tokens, **ctx.options)
        of_bias = None if not ctx.needs_input_grad[2] else logits.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        # The weight is frozen beside adapters, and its gradient would cost a third of the layer's time.
        of_weight = logits.t() @ hidden if ctx.needs_input_grad[1] else None
        return logits @ weight, of_weight, of_bias, None, None, None, None


@triton.jit
def _changed(x, scale, cap, CAPPED: tl.constexpr):
    """Return scale * x, or cap * tanh(scale * x / cap)."""
    x = x.to(tl.float32) * scale
    if CAPPED:
        # tanh(z) = 2 sigmoid(2 z) - 1
        x = cap * (2 * tl.sigmoid(2 * x / cap) - 1)
    return x


@triton.jit
def _log_probs(
    logits,
    labels,
    inverse_temperatures,
    normalisers,
    results,
    num_tokens,
    scale,
    cap,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
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
        x = _changed(tl.load(logits + columns, mask=inside, other=0.0), scale, cap, CAPPED)
        x = x * inverse_temperature
        new_largest = tl.maximum(largest, tl.max(tl.where(inside, x, -float("inf"))))
        e = tl.where(inside, tl.exp(x - new_largest), 0.0)
        shrink = tl.exp(largest - new_largest)
        total = total * shrink + tl.sum(e)
        weighted = weighted * shrink + tl.sum(e * x)
        largest = new_largest
    normaliser = largest + tl.log(total)
    chosen = _changed(tl.load(logits + tl.load(labels + row)), scale, cap, CAPPED)
    chosen = chosen * inverse_temperature
    tl.store(normalisers + row, normaliser)
    tl.store(results + 2 * row, chosen - normaliser)
    tl.store(results + 2 * row + 1, normaliser - weighted / total)


@triton.jit
def _gradient_in_place(
    logits,
    labels,
    inverse_temperatures,
    normalisers,
    results,
    gradient,
    num_tokens,
    scale,
    cap,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Overwrite one block of logits with its gradient.

    The gradient of x[label] - log Z is 1[label] - p. The gradient of the entropy H is -p (log p + H).
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * num_tokens
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_tokens
    inverse_temperature = tl.load(inverse_temperatures + row)
    x = _changed(tl.load(logits + columns, mask=inside, other=0.0), scale, cap, CAPPED)
    slope = scale
    if CAPPED:
        slope = scale * (1 - (x / cap) * (x / cap))
    x = x * inverse_temperature
    log_p = x - tl.load(normalisers + row)
    p = tl.exp(log_p)
    is_label = (columns == tl.load(labels + row)).to(tl.float32)
    of_log_prob = tl.load(gradient + 2 * row) * (is_label - p)
    of_entropy = tl.load(gradient + 2 * row + 1) * p * (log_p + tl.load(results + 2 * row + 1))
    dx = (of_log_prob - of_entropy) * inverse_temperature * slope
    tl.store(logits + columns, dx.to(logits.dtype.element_ty), mask=inside)
