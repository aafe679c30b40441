"""Pack the completions of a prompt behind one copy of it.

A group of n completions repeats its prompt n times; with long prompts and short answers nearly all the work of a
forward pass is the same prompt again and again. Here each row holds a prompt once and then its completions, which see
the prompt and themselves but not each other, so the log-probabilities are those of separate sequences. The idea is
Prefix Grouper's (arXiv 2506.05433).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A row's attention costs its length squared: past this many tokens a group starts another row.
MAX_ROW_TOKENS = 1024


@dataclass(frozen=True)
class PackedGroups:
    """Rows of prompts and completions, and where each completion token's logits will be.

    input_ids, position_ids: [rows, width]. attention_mask: [rows, 1, width, width], true where a token may look.
    first_column: no completion token's logits lie left of it.
    The rest have one element a completion token, sequence by sequence: the row and column of the logits that
    predict it, the token itself, and the place of those logits in the concatenation of all sequences.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    first_column: int
    rows: Tensor
    columns: Tensor
    labels: Tensor
    places: Tensor


def pack_groups(prompts: Sequence[Tensor], responses: Sequence[Tensor], *, pad_token_id: int) -> PackedGroups:
    """Pack sequence i = `prompts[i]` + `responses[i]` (1-D token ids) with those that have an equal prompt."""
    rows = _assign_rows(prompts, responses)
    width = max(len(prompts[row[0]]) + sum(len(responses[i]) for i in row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id)
    position_ids = torch.zeros(len(rows), width, dtype=torch.long)
    # 0 for the prompt, a number of its own for each completion, and another for padding.
    segments = torch.full((len(rows), width), -1)
    sources: dict[int, tuple[int, Tensor]] = {}
    for number, members in enumerate(rows):
        prompt = prompts[members[0]]
        input_ids[number, : len(prompt)] = prompt
        position_ids[number, : len(prompt)] = torch.arange(len(prompt))
        segments[number, : len(prompt)] = 0
        start = len(prompt)
        for segment, i in enumerate(members, start=1):
            end = start + len(responses[i])
            input_ids[number, start:end] = responses[i]
            position_ids[number, start:end] = torch.arange(len(prompt), len(prompt) + len(responses[i]))
            segments[number, start:end] = segment
            # The prompt's last token predicts the first of a completion, each of its tokens the next.
            before = torch.tensor([len(prompt) - 1])
            sources[i] = number, torch.cat([before, torch.arange(start, end - 1)])[: len(responses[i])]
            start = end
    return PackedGroups(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=_attention_mask(segments),
        first_column=min(len(prompt) for prompt in prompts) - 1,
        rows=torch.cat([torch.full((len(responses[i]),), sources[i][0]) for i in range(len(prompts))]),
        columns=torch.cat([sources[i][1] for i in range(len(prompts))]),
        labels=torch.cat(list(responses)),
        places=_places(prompts, responses),
    )


def _assign_rows(prompts: Sequence[Tensor], responses: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the sequences of each row: equal prompts together, as many as fit."""
    open_rows: dict[tuple[int, ...], tuple[list[int], int]] = {}
    rows = []
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        key = tuple(prompt.tolist())
        members, used = open_rows.get(key, ([], len(prompt)))
        if not members or used + len(response) > MAX_ROW_TOKENS:
            members, used = [], len(prompt)
            rows.append(members)
        members.append(i)
        open_rows[key] = members, used + len(response)
    return rows


def _attention_mask(segments: Tensor) -> Tensor:
    """Each token sees the tokens up to itself in the prompt and in its own segment."""
    width = segments.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    same = segments[:, :, None] == segments[:, None, :]
    is_prompt = (segments == 0)[:, None, :]
    return (causal & (same | is_prompt))[:, None]


def _places(prompts: Sequence[Tensor], responses: Sequence[Tensor]) -> Tensor:
    places, start = [], 0
    for prompt, response in zip(prompts, responses, strict=True):
        first = start + len(prompt) - 1
        places.append(torch.arange(first, first + len(response)))
        start += len(prompt) + len(response)
    return torch.cat(places)
