"""What generating workers send to the trainer."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Group:
    """The completions of one prompt: token ids, the log-probability of each, and the version of the weights."""

    uid: str
    responses: list[list[int]]
    log_probs: list[np.ndarray]
    version: int
