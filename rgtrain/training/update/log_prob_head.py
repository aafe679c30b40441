"""An output layer that returns log-probabilities of known tokens without holding all logits at once."""

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
    """The labels and options for the next forward pass.

    Attributes:
        labels: [rows], the token whose log-probability is computed in each row.
        temperature: One temperature for all rows, or [rows].
        with_entropy: Whether the entropy is needed.
    """

    labels: Tensor
    temperature: float | Tensor
    with_entropy: bool


class LogProbHead:
    """A replacement for the `forward` method of a model's output layer.

    Args:
        model: The model, whose output layer is changed in place.

    Attributes:
        targets: To be set before each forward pass of the model.
    """

    targets: Targets

    def __init__(self, model: Any):
        self._layer = model.get_output_embeddings()
        config = model.config
        names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
        changed = [name for name in names if _is_configured(config, name)]
        if changed or getattr(self._layer, "bias", None) is not None:
            raise NotImplementedError(
                f"{type(model).__name__} modifies its logits ({', '.join(changed) or 'bias'}), which is not supported; "
                "use another model"
            )
        self._layer.forward = self

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return [1, rows, 2] in fp32, as `token_log_probs` does with an extra dimension."""
        return token_log_probs(hidden[0], self._layer.weight, self.targets)[None]


def _is_configured(config: Any, name: str) -> bool:
    return getattr(config, name, None) not in (None, 1, 1.0)


def token_log_probs(hidden: Tensor, weight: Tensor, targets: Targets) -> Tensor:
    """Compute log-probabilities in chunks of rows whose logits fit into memory.

    Args:
        hidden: [rows, size], the last hidden states.
        weight: [vocabulary, size], the weight of the output layer.
        targets: The labels, temperatures and options.

    Returns:
        [rows, 2] in fp32. The columns are the log-probability of the row's label and the entropy of its distribution.
        The entropy is undefined if it was not requested.
    """
    rows = max(1, _max_logits_bytes(hidden.device) // (len(weight) * (hidden.element_size() if hidden.is_cuda else 4)))
    compute_chunk = _chunk_on_gpu if hidden.is_cuda else _chunk_on_cpu
    chunks = []
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        temperature = targets.temperature[part] if isinstance(targets.temperature, Tensor) else targets.temperature
        arguments = hidden[part], weight, targets.labels[part], temperature, targets.with_entropy
        if torch.is_grad_enabled() and len(hidden) > rows:
            chunks.append(checkpoint(compute_chunk, *arguments, use_reentrant=False))
        else:
            chunks.append(compute_chunk(*arguments))
    return torch.cat(chunks)


@cache
def _max_logits_bytes(device: torch.device) -> int:
    """Return the maximum size of logits held at a time. If all logits are larger, they are recomputed for gradients."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 16
    return 1 << 30


def _chunk_on_gpu(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float | Tensor, _: bool) -> Tensor:
    from rgtrain.training.update.log_prob_kernels import LinearLogProbs  # imports Triton, which needs a GPU

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
