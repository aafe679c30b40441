"""Compute GRPO's and RLOO's advantages for all groups at once.

verl's functions take each sample's score from a tensor and put it back, which takes longer than the arithmetic. Here,
the scores of groups of one size form a matrix. Its rows are reduced like verl's vectors, so the results are the same.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

# As in verl's `compute_grpo_outcome_advantage`.
_EPSILON = 1e-6


def grpo_advantages(scores: Tensor, groups: Sequence[str], *, by_deviation: bool) -> Tensor:
    """Compute the advantages of GRPO, or of Dr. GRPO without the division.

    Args:
        scores: [samples]. The total reward of each sample.
        groups: The name of each sample's group.
        by_deviation: Whether to divide by the standard deviation of the group.

    Returns:
        [samples]. A sample without others in its group keeps its score.
    """

    def advantages(of_groups: Tensor) -> Tensor:
        if of_groups.shape[1] == 1:
            return of_groups / (1 + _EPSILON) if by_deviation else of_groups
        centred = of_groups - of_groups.mean(dim=1, keepdim=True)
        return centred / (of_groups.std(dim=1, keepdim=True) + _EPSILON) if by_deviation else centred

    return _for_each_size(scores, groups, advantages)


def rloo_advantages(scores: Tensor, groups: Sequence[str]) -> Tensor:
    """Compute the advantages of RLOO (arXiv 2402.14740), whose baseline is the mean of the group's other samples.

    Args:
        scores: [samples]. The total reward of each sample.
        groups: The name of each sample's group.

    Returns:
        [samples]. A sample without others in its group keeps its score.
    """

    def advantages(of_groups: Tensor) -> Tensor:
        size = of_groups.shape[1]
        if size == 1:
            return of_groups
        means = of_groups.mean(dim=1, keepdim=True)
        return of_groups * size / (size - 1) - means * size / (size - 1)

    return _for_each_size(scores, groups, advantages)


def _for_each_size(scores: Tensor, groups: Sequence[str], advantages: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the advantages of all samples, computed from one matrix [groups, samples] per size of a group."""
    numbers: dict[str, int] = {}
    of_sample = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    sizes = np.bincount(of_sample)
    # The samples of each group are consecutive, in the order of the batch.
    order = np.argsort(of_sample, kind="stable")
    size_of_sample = sizes[of_sample[order]]
    result = torch.empty_like(scores)
    for size in np.unique(sizes):
        members = torch.from_numpy(order[size_of_sample == size].reshape(-1, size))
        result[members] = advantages(scores[members])
    return result
