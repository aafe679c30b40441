"""Build a curriculum of two datasets, one of them with levels, and training groups for it."""

from rgtrain.curriculum.curriculum import Curriculum, GroupResult
from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.problems.mixture import DatasetSpec

SPECS = [DatasetSpec("spell_backward"), DatasetSpec("chain_sum")]
FIXED = {"name": "fixed"}


def small_curriculum(policy: dict, mixture_policy: dict | None = None, **options) -> Curriculum:
    """Return a curriculum with `policy` for spell_backward; `options` configure its levels."""
    raw = {"policy": policy, "datasets": {"spell_backward": options}}
    return build_curriculum(SPECS, seed=1, curriculum=raw, mixture_policy=mixture_policy or FIXED)


def group(dataset: str, level: int | None, score: float, *, mixed: bool = False) -> GroupResult:
    """Return a group of eight answers, all with this score or, if mixed, half of them wrong and half right."""
    scores = [0.0, 1.0] * 4 if mixed else [score] * 8
    return GroupResult(dataset, level, scores, rewards=scores)
