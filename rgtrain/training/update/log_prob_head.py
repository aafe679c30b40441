"""An output layer that returns log-probabilities of known tokens without holding all logits at once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from rgtrain.training.update.packed_attention import known_sequences


@dataclass
class Targets:
    """The labels and options for the next forward pass.

    Attributes:
        labels: [rows], the token whose log-probability is computed in each row.
        sources: [rows], the position in the concatenated rows of the model's input whose hidden state predicts it.
        temperature: One temperature for all rows, or [rows].
        with_entropy: Whether the entropy is needed.
    """

    labels: Tensor
    sources: Tensor
    temperature: float | Tensor
    with_entropy: bool


@dataclass(frozen=True)
class LogitTransform:
    """A model's change of its logits after the output layer, `cap * tanh(scale * logits / cap)`.

    A cap of 0 means none. Gemma 2 has a cap of 30. Granite and Cohere have a scale.
    """

    scale: float = 1.0
    cap: float = 0.0

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the changed logits."""
        logits = logits if self.scale == 1 else logits * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


_UNCHANGED = LogitTransform()


class LogProbHead:
    """Replaces the output of a model's forward pass, which is then log-probabilities instead of logits.

    The output layer computes them from the hidden states of the rows that predict a token. All changes that the model
    makes to its logits must be known in `transform`.

    Args:
        model: The model, which is changed in place.

    Attributes:
        targets: To be set before each forward pass of the model. With None, the model returns its logits.
        transform: The model's change of its logits, which `measure_transform` finds.
        error: If it is a number, forward passes without targets raise it to the mean error of the log-probabilities.

    Raises:
        NotImplementedError: The model has no output layer, or its output layer has no weight.
    """

    targets: Targets | None = None
    error: float | None = None
    transform: LogitTransform = _UNCHANGED

    def __init__(self, model: Any):
        self._layer = model.get_output_embeddings()
        if not isinstance(getattr(self._layer, "weight", None), Tensor):
            raise NotImplementedError(f"{type(model).__name__} has no output layer with a weight")
        self._plain_layer, self._plain_model = self._layer.forward, model.forward
        self._probe: Tensor | None = None

        @wraps(model.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._run_model(*args, **kwargs)

        self._layer.forward, model.forward = self._run_layer, forward

    @property
    def weight(self) -> Tensor:
        """The weight of the output layer, [vocabulary, size]."""
        weight: Tensor = self._layer.weight
        return weight

    def _run_layer(self, hidden: Tensor) -> Tensor:
        if self._probe is not None:
            return self._probe.to(hidden.device)
        if self.targets is None:
            logits: Tensor = self._plain_layer(hidden)
            if self.error is not None:
                self.error = max(self.error, self._error(hidden.flatten(0, -2), logits.flatten(0, -2)))
            return logits
        rows = hidden.flatten(0, -2)[self.targets.sources]
        bias = getattr(self._layer, "bias", None)
        self._results = token_log_probs(rows, self.weight, self.targets, bias=bias, transform=self.transform)
        # The model may change these as it changes logits, so they carry nothing.
        return hidden.new_zeros(1, 1, 1)

    def _error(self, hidden: Tensor, logits: Tensor) -> float:
        """Return the mean difference of log-probabilities from those by torch, which has the same rounding."""
        labels = torch.arange(len(hidden), device=hidden.device) * (len(self.weight) // len(hidden))
        targets = Targets(labels, labels, temperature=1.0, with_entropy=False)
        own = token_log_probs(hidden, self.weight, targets, bias=getattr(self._layer, "bias", None))[:, 0]
        plain = torch.log_softmax(logits.float(), dim=-1).gather(-1, labels[:, None])[:, 0]
        return (own - plain).abs().mean().item()

    def _run_model(self, *args: Any, **kwargs: Any) -> Any:
        with known_sequences():
            output = self._plain_model(*args, **kwargs)
        if self.targets is not None and self._probe is None:
            # FSDP hooks into the backward pass through the outputs of the model, which must be no views.
            output.logits = self._results
            del self._results
        return output

    def measure_transform(self, run: Callable[[], Tensor]) -> None:
        """Find `transform` by giving the model known values in place of its logits.

        Args:
            run: Runs the model on any input, and returns its logits.

        Raises:
            NotImplementedError: The model changes its logits in a way that is not a LogitTransform.
        """
        tiny, huge = 2.0**-10, 1e6
        values = torch.tensor([tiny, huge, *torch.linspace(-50, 50, 14).tolist()])
        num_tokens = len(self.weight)
        self._probe = values.repeat(-(-num_tokens // len(values)))[None, None, :num_tokens]
        try:
            logits = run().flatten().float().cpu()
        finally:
            probe, self._probe = self._probe.flatten(), None
        scale, largest = logits[0].item() / tiny, logits[1].item()
        self.transform = LogitTransform(scale=scale, cap=largest if abs(largest) < 0.5 * abs(scale) * huge else 0.0)
        if logits.shape != probe.shape or not torch.allclose(logits, self.transform(probe), rtol=1e-2, atol=1e-3):
            raise NotImplementedError("it changes its logits in a way that the log-probabilities can't follow")


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Targets,
    *,
    bias: Tensor | None = None,
    transform: LogitTransform = _UNCHANGED,
) -> Tensor:
    """Compute log-probabilities in chunks of rows whose logits fit into memory.

    Args:
        hidden: [rows, size], the last hidden states.
        weight: [vocabulary, size], the weight of the output layer.
        targets: The labels, temperatures and options.
        bias: [vocabulary], the bias of the output layer.
        transform: The model's change of its logits.

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
        arguments = hidden[part], weight, bias, targets.labels[part], temperature, targets.with_entropy, transform
        if torch.is_grad_enabled() and len(hidden) > rows:
            chunks.append(checkpoint(compute_chunk, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            chunks.append(compute_chunk(*arguments))
    return torch.cat(chunks)


@cache
def _max_logits_bytes(device: torch.device) -> int:
    """Return the maximum size of logits held at a time. If all logits are larger, they are recomputed for gradients."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 16
    return 1 << 30


def _chunk_on_gpu(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    temperature: float | Tensor,
    _: bool,
    transform: LogitTransform,
) -> Tensor:
    from rgtrain.training.update.log_prob_kernels import LinearLogProbs  # imports Triton, which needs a GPU

    # Python waits for the GPU if it copies a number there, but not if a kernel fills a tensor with it.
    temperatures = (
        temperature
        if isinstance(temperature, Tensor)
        else torch.full((len(hidden),), temperature, device=hidden.device)
    )
    log_probs: Callable[..., Tensor] = LinearLogProbs.apply
    return log_probs(hidden, weight, bias, labels, temperatures.float().reciprocal(), transform.scale, transform.cap)


def _chunk_on_cpu(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    temperature: float | Tensor,
    with_entropy: bool,
    transform: LogitTransform,
) -> Tensor:
    logits = transform(linear(hidden, weight, bias).float())
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
