"""Pack the completions of a prompt behind one copy of it.

As separate sequences, the n completions of a group repeat their prompt n times. With long prompts and short answers,
nearly all the work of a forward pass is then repeated. A packed row holds each prompt once, followed by its
completions. Completions see the prompt and themselves but not each other, so the log-probabilities equal those of
separate sequences. The method is from Prefix Grouper (arXiv 2506.05433).

That is right only if attention alone carries information between tokens. Other models get separate sequences, in one
row or in padded rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rgtrain.training.update.packed_attention import PackedLayout, copy_to_device

# On a CPU, the cost of a group's attention grows with the square of its length. Larger groups are therefore split, and
# the prompt is repeated.
MAX_GROUP_TOKENS = 1024


@dataclass(frozen=True)
class ArrangedSequences:
    """The sequences of a micro-batch as the rows that the model gets.

    `sources`, `labels` and `places` have one element per completion token, sequence by sequence.

    Attributes:
        model_inputs: The arguments of the model's forward pass. `input_ids` is [rows, tokens].
        sources: The position in the concatenated rows whose hidden state predicts the token. The last token of a shared
            prompt predicts the first token of every completion.
        labels: The token.
        places: The position of the preceding token in the concatenation of all sequences with their prompts.
        max_length: The length of the longest sequence with its prompt.
    """

    model_inputs: dict[str, Any]
    sources: Tensor
    labels: Tensor
    places: Tensor
    max_length: int

    def to(self, device: torch.device | str | int) -> "ArrangedSequences":
        """Return a copy on `device`."""
        inputs = {
            name: copy_to_device(value, device) if isinstance(value, Tensor) else value.to(device)
            for name, value in self.model_inputs.items()
        }
        return ArrangedSequences(
            model_inputs=inputs,
            sources=copy_to_device(self.sources, device),
            labels=copy_to_device(self.labels, device),
            places=copy_to_device(self.places, device),
            max_length=self.max_length,
        )


def pack_groups(
    prompts: Sequence[Tensor],
    responses: Sequence[Tensor],
    *,
    max_group_tokens: int | None = MAX_GROUP_TOKENS,
    shares_prompts: bool = True,
) -> ArrangedSequences:
    """Pack sequences into one row, grouped by equal prompts.

    Args:
        prompts: The token ids of each sequence's prompt (1-D).
        responses: The token ids of each sequence's completion (1-D).
        max_group_tokens: The maximum number of tokens of a group. Larger groups are split. None means no limit.
        shares_prompts: Whether a group has one copy of its prompt. Otherwise, each sequence is a group.

    Returns:
        The packed row, with completion tokens in the order of the given sequences.
    """
    prompt_arrays, response_arrays = ([tensor.numpy() for tensor in tensors] for tensors in (prompts, responses))
    if shares_prompts:
        groups = group_by_prompt(prompt_arrays, response_arrays, max_group_tokens=max_group_tokens)
    else:
        groups = [[i] for i in range(len(prompts))]
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    sources: dict[int, np.ndarray] = {}
    group_lengths: list[list[int]] = []
    start = 0
    for members in groups:
        prompt = prompt_arrays[members[0]]
        tokens.append(prompt)
        positions.append(np.arange(len(prompt)))
        last_of_prompt = start + len(prompt) - 1
        start += len(prompt)
        for i in members:
            length = len(response_arrays[i])
            tokens.append(response_arrays[i])
            positions.append(np.arange(len(prompt), len(prompt) + length))
            sources[i] = np.concatenate([[last_of_prompt], np.arange(start, start + length - 1)])[:length]
            start += length
        lengths = [len(response_arrays[i]) for i in members]
        # A sequence on its own is one segment, which needs fewer keys.
        group_lengths.append([len(prompt), *lengths] if shares_prompts else [len(prompt) + lengths[0]])
    model_inputs = {
        "input_ids": torch.from_numpy(np.concatenate(tokens))[None],
        "position_ids": torch.from_numpy(np.concatenate(positions))[None],
        "layout": PackedLayout.of(group_lengths),
    }
    return ArrangedSequences(
        model_inputs=model_inputs,
        sources=torch.from_numpy(np.concatenate([sources[i] for i in range(len(prompts))])),
        labels=torch.from_numpy(np.concatenate(response_arrays)),
        places=torch.from_numpy(_places(prompt_arrays, response_arrays)),
        max_length=max(len(p) + len(r) for p, r in zip(prompt_arrays, response_arrays, strict=True)),
    )


def pad_rows(prompts: Sequence[Tensor], responses: Sequence[Tensor]) -> ArrangedSequences:
    """Put each sequence into a separate row, padded on the right.

    No mask is needed, because a causal model never sees later tokens.

    Args:
        prompts: The token ids of each sequence's prompt (1-D).
        responses: The token ids of each sequence's completion (1-D).

    Returns:
        The rows, with completion tokens in the order of the given sequences.
    """
    sequences = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    max_length = max(map(len, sequences))
    sources = [
        torch.arange(len(response)) + number * max_length + len(prompt) - 1
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    places = _places([prompt.numpy() for prompt in prompts], [response.numpy() for response in responses])
    return ArrangedSequences(
        model_inputs={"input_ids": torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)},
        sources=torch.cat(sources),
        labels=torch.cat(list(responses)),
        places=torch.from_numpy(places),
        max_length=max_length,
    )


def group_by_prompt(
    prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], *, max_group_tokens: int | None
) -> list[list[int]]:
    """Group sequences with equal prompts, and start another group if one is full.

    Args:
        prompts: The token ids of each sequence's prompt.
        responses: The token ids of each sequence's completion.
        max_group_tokens: The maximum number of tokens of a group with several sequences. None means no limit.

    Returns:
        The indices of the sequences of each group.
    """
    open_groups: dict[bytes, tuple[list[int], int]] = {}
    groups = []
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        key = prompt.tobytes()
        members, used = open_groups.get(key, ([], len(prompt)))
        full = max_group_tokens is not None and used + len(response) > max_group_tokens
        if not members or full:
            members, used = [], len(prompt)
            groups.append(members)
        members.append(i)
        open_groups[key] = members, used + len(response)
    return groups


def _places(prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray]) -> np.ndarray:
    places, start = [], 0
    for prompt, response in zip(prompts, responses, strict=True):
        first = start + len(prompt) - 1
        places.append(np.arange(first, first + len(response)))
        start += len(prompt) + len(response)
    return np.concatenate(places)
