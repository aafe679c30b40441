"""A model's output layer that gives log-probabilities of known tokens, and never holds all logits at once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint


@dataclass
class Targets:
    """What to compute from the next hidden states: one label a row, a temperature for all or one a row."""

    labels: Tensor
    temperature: float | Tensor
    with_entropy: bool


class LogProbHead:
    """Takes the place of `forward` of a model's output layer; set `targets` before each forward pass of the model."""

    targets: Targets

    def __init__(self, model: Any):
        self._layer = model.get_output_embeddings()
        config = model.config
        names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
        changed = [name for name in names if _is_configured(config, name)]
        if changed or getattr(self._layer, "bias", None) is not None:
            raise NotImplementedError(f"{type(model).__name__} changes its logits ({', '.join(changed) or 'bias'})")
        self._layer.forward = self

    def __call__(self, hidden: Tensor) -> Tensor:
        """[1, rows, 2]: the label's log-probability and the entropy (not to be relied on unless asked for), in fp32."""
        return token_log_probs(hidden[0], self._layer.weight, self.targets)[None]


def _is_configured(config: Any, name: str) -> bool:
    return getattr(config, name, None) not in (None, 1, 1.0)


def token_log_probs(hidden: Tensor, weight: Tensor, targets: Targets) -> Tensor:
    """[rows, 2], fp32: log-probability of each row's label, and entropy of its distribution if asked for."""
    rows = max(1, _held_bytes(hidden.device) // (len(weight) * (hidden.element_size() if hidden.is_cuda else 4)))
    of_chunk = _chunk_on_gpu if hidden.is_cuda else _chunk_on_cpu
    chunks = []
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        temperature = targets.temperature[part] if isinstance(targets.temperature, Tensor) else targets.temperature
        arguments = hidden[part], weight, targets.labels[part], temperature, targets.with_entropy
        if torch.is_grad_enabled() and len(hidden) > rows:
            chunks.append(checkpoint(of_chunk, *arguments, use_reentrant=False))
        else:
            chunks.append(of_chunk(*arguments))
    return torch.cat(chunks)


@cache
def _held_bytes(device: torch.device) -> int:
    """Of logits that are held at a time; the backward pass computes them again where there are more."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 16
    return 1 << 30


def _chunk_on_gpu(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float | Tensor, _: bool) -> Tensor:
    from rgtrain.training.update.log_prob_kernels import LinearLogProbs  # Triton, which a CPU has not

    temperatures = torch.as_tensor(temperature, dtype=torch.float32, device=hidden.device).expand(len(hidden))
    log_probs: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = LinearLogProbs.apply
    return log_probs(hidden, weight, labels, temperatures.reciprocal())


def _chunk_on_cpu(
    hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float | Tensor, with_entropy: bool
) -> Tensor:
    logits = linear(hidden, weight).float()
    if isinstance(temperature, Tensor):
        logits = logits / temperature[:, None]
    elif temperature != 1:
        logits = logits / temperature
    normaliser = torch.logsumexp(logits, dim=-1)
    chosen = logits.gather(-1, labels[:, None]).squeeze(-1) - normaliser
    if with_entropy:
        # sum p (log Z - x) = log Z - sum p x
        entropy = normaliser - (torch.softmax(logits, dim=-1) * logits).sum(-1)
    else:
        entropy = torch.zeros_like(chosen)
    return torch.stack([chosen, entropy], dim=-1)
