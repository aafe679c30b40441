"""The datasets that Reasoning Gym itself registers, without its composite."""

from reasoning_gym.factory import DATASETS

REASONING_GYM = sorted(
    name for name, (cls, _) in DATASETS.items() if cls.__module__.startswith("reasoning_gym.") and name != "composite"
)
