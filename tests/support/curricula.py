"""A curriculum of two datasets, one of them with levels, and training groups for it."""

from rgtrain.curriculum.curriculum import Curriculum, GroupResult
from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.problems.mixture import DatasetSpec

SPECS = [DatasetSpec("spell_backward"), DatasetSpec("chain_sum")]
FIXED = {"name": "fixed"}


def small_curriculum(policy: dict, mixture_policy: dict | None = None, **options) -> Curriculum:
    """A curriculum with this policy for spell_backward; `options` are those of its levels."""
    raw = {"policy": policy, "datasets": {"spell_backward": options}}
    return build_curriculum(SPECS, seed=1, curriculum=raw, mixture_policy=mixture_policy or FIXED)


def group(dataset: str, level: int | None, score: float, *, mixed: bool = False) -> GroupResult:
    """A group of eight answers with this score or, if mixed, half of them wrong and half right."""
    scores = [0.0, 1.0] * 4 if mixed else [score] * 8
    return GroupResult(dataset, level, scores, rewards=scores)
