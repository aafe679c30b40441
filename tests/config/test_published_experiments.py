"""Experiments have the published values (tests/experiments/published.yaml), or differ from them as documented."""

from functools import cache

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from reasoning_gym.coaching.curriculum_config import CurriculumAttributeConfig, CurriculumExperimentConfig
from reasoning_gym.coaching.experiment import CurriculumExperiment
from support.experiments import project_experiment

from rgtrain.config import catalogue
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.paths import CONFIGS, PROJECT_ROOT
from rgtrain.preflight.plan import plan_of
from rgtrain.problems import parse_mixture

PUBLISHED = yaml.safe_load((PROJECT_ROOT / "tests" / "experiments" / "published.yaml").read_text())
EXPERIMENTS = PUBLISHED["experiments"]
WITH_CURRICULUM = [name for name, published in EXPERIMENTS.items() if "curriculum" in published]
DOCS = (PROJECT_ROOT / "docs" / "training.md").read_text()


@cache
def experiment(name: str) -> DictConfig:
    """Return the configuration of an experiment on the hardware of the paper. It takes a second."""
    return project_experiment(name, "hardware=4x80gb")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_value_is_the_published_one_or_a_stated_difference(name):
    config, published = experiment(name), EXPERIMENTS[name]
    expected = PUBLISHED["common"] | {
        "actor_rollout_ref.model.path": published["model"],
        "actor_rollout_ref.actor.ppo_mini_batch_size": published["ppo_mini_batch_size"],
        "data.train_size": published["dataset_size"],
        "trainer.total_training_steps": published["total_training_steps"],
    }
    expected |= {f"data.{key}": published[key] for key in ("max_prompt_length", "max_response_length")}
    expected["data.train_batch_size"] = published["train_batch_size"]
    expected |= {f"trainer.{key}": published[key] for key in ("save_freq", "total_epochs") if key in published}
    differences = PUBLISHED["differences"] | PUBLISHED["differences_of_experiments"].get(name, {})
    for key, value in (expected | differences).items():
        ours = OmegaConf.select(config, key, throw_on_missing=True)
        assert (OmegaConf.to_container(ours) if OmegaConf.is_config(ours) else ours) == value, key
    # Experiments with a curriculum list no mixture.
    assert OmegaConf.to_container(config.data.mixture) == published.get("mixture") or "curriculum" in published
    assert config.data.mixture_policy.name == "fixed"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_reward_is_the_published_one(name):
    parts = OmegaConf.to_container(experiment(name).reward.parts)
    weights = {part: weight for one in EXPERIMENTS[name]["rewards"] for part, weight in one.items()}
    names = {part: part if part == "accuracy" else f"published_{part}" for part in weights}
    assert {part: options["weight"] for part, options in parts.items()} == {names[p]: w for p, w in weights.items()}
    assert parts.get("published_format", {}).get("prepend_thinking_token", False) is False
    early = EXPERIMENTS[name].get("right_answers_lose", False)
    assert parts.get("published_length", {}).get("right_answers_lose", False) is early
    assert parts.get("published_length", {}).get("max_chars", 1024) == 1024


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_run_has_the_published_number_of_steps(name):
    published = EXPERIMENTS[name]
    epochs = published.get("total_epochs", 1) * (published["dataset_size"] // published["train_batch_size"])
    num_steps = plan_of(RunConfig.of(plain_config(experiment(name)))).num_steps
    assert num_steps == (published["total_training_steps"] or epochs)


@pytest.mark.parametrize("name", WITH_CURRICULUM)
def test_a_curriculum_has_the_published_thresholds_and_levels(name):
    published = EXPERIMENTS[name]["curriculum"]
    data = OmegaConf.to_container(experiment(name).data)
    thresholds = {key: published[key] for key in ("window", "raise_above", "lower_below")}
    assert data["curriculum"]["policy"] == {"name": "threshold", **thresholds}
    curriculum = build_curriculum(
        parse_mixture(data["mixture"]), seed=1, curriculum=data["curriculum"], mixture_policy=data["mixture_policy"]
    )
    assert set(curriculum.ladders) == set(published["start_levels"])
    for dataset, start in published["start_levels"].items():
        original = levels_of_reasoning_gym(dataset, start, num_levels=len(curriculum.ladders[dataset]))
        for ours, theirs in zip(curriculum.ladders[dataset].levels, original, strict=True):
            assert {key: theirs[key] for key in ours} == ours


def levels_of_reasoning_gym(dataset: str, start: dict[str, int], *, num_levels: int) -> list[dict]:
    """Return the parameters at each level as the original trainer sets them, and check that the last is the top."""
    config = CurriculumExperimentConfig({dataset: CurriculumAttributeConfig(attribute_levels=start)})
    original = CurriculumExperiment("original", config, size=10, seed=1)
    levels = [dict(vars(original.composite.datasets[dataset].config))]
    for _ in range(num_levels):
        original.update_difficulty(dataset, "increment")
        levels.append(dict(vars(original.composite.datasets[dataset].config)))
    assert levels[-1] == levels[-2]
    return levels[:-1]


def test_every_difference_is_in_the_documentation_and_in_the_file():
    for key in PUBLISHED["differences"]:
        assert f"`{key.rpartition('.')[2]}`" in DOCS
    for name, differences in PUBLISHED["differences_of_experiments"].items():
        text = (CONFIGS / f"{name}.yaml").read_text()
        assert all(f"published {key.rpartition('.')[2]}" in text for key in differences)


def test_every_experiment_of_the_paper_is_in_the_table_of_published_values():
    """An experiment that cites the paper has published values, or its file says that there are none."""
    citing = {catalogue.name_of(path): path.read_text() for path in catalogue.experiments()}
    citing = {name: text for name, text in citing.items() if "2505.24760" in text or "was published" in text}
    assert set(EXPERIMENTS) <= set(citing)
    for name in set(citing) - set(EXPERIMENTS):
        assert "No configuration of it was published with this mixture" in citing[name]
