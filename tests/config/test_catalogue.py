"""Every experiment and choice is complete, and the help lists it on one line."""

import subprocess
import sys

import pytest
import yaml
from reasoning_gym.factory import DATASETS
from support.registered_datasets import REASONING_GYM

from rgtrain.config import catalogue
from rgtrain.models.model_shapes import HUB_NAMES, SHAPES
from rgtrain.paths import CONFIGS, PROJECT_ROOT
from rgtrain.problems import parse_mixture
from rgtrain.problems.plugins import import_plugins
from rgtrain.problems.prompts import ROLES
from rgtrain.problems.soundness import check_sound

EXPERIMENTS = catalogue.experiments()


def category_of(dataset: str) -> str:
    return DATASETS[dataset][0].__module__.split(".")[1]


@pytest.mark.parametrize("path", catalogue.choices("mixture"), ids=catalogue.name_of)
def test_every_mixture_is_valid_for_training(path):
    content = yaml.safe_load(path.read_text())
    for plugin in content.get("plugins", []):
        pytest.importorskip("reasoning_core", reason="reasoning-core is not installed")
        import_plugins([plugin])
    content = content.get("data", content)
    drawn = [spec.name for spec in parse_mixture(content["mixture"]) if spec.weight > 0]
    check_sound(drawn, allowed=content.get("allow_unsound_verifiers", []))


@pytest.mark.parametrize("category", sorted({category_of(name) for name in REASONING_GYM}))
def test_the_mixture_of_a_category_has_all_its_datasets(category):
    content = yaml.safe_load((CONFIGS / "mixture" / f"{category}.yaml").read_text())
    assert set(content["mixture"]) == {name for name in REASONING_GYM if category_of(name) == category}


def test_the_mixture_all_has_all_datasets():
    content = yaml.safe_load((CONFIGS / "mixture" / "all.yaml").read_text())
    assert set(content["mixture"]) == set(REASONING_GYM)


@pytest.mark.parametrize("path", [p for p in catalogue.choices("model") if p.stem != "lora"], ids=catalogue.name_of)
def test_every_model_declares_its_shape_and_prompt_role(path):
    content = yaml.safe_load(path.read_text())
    path_of_model = content["actor_rollout_ref"]["model"]["path"]
    shape = "smollm2-135m" if path_of_model.endswith("models/SmolLM2-135M-Instruct") else HUB_NAMES[path_of_model]
    assert content["model"]["template_opens_thinking"] in (True, False)
    assert content["data"]["prompt"]["role"] in ROLES
    assert SHAPES[shape]["model_type"] in ("llama", "qwen2", "qwen3")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=catalogue.name_of)
def test_an_experiment_has_at_most_25_lines(path):
    assert len(path.read_text().splitlines()) <= 25


def test_help_lists_every_experiment_and_choice_on_one_line(tmp_path):
    command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    words = f" {' '.join(shown.split())} "
    paths = [*EXPERIMENTS, *(path for group in catalogue.GROUPS for path in catalogue.choices(group))]
    for path in paths:
        assert len(catalogue.description(path)) > 15, path
        # The whole description, which may be broken into lines.
        assert f" {catalogue.name_of(path)} {catalogue.description(path)} " in words, path
