"""The typed view reads every experiment, and names missing and unusable values."""

import ast
import copy
import itertools
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from support.experiments import composed

import rgtrain
from rgtrain.config import catalogue
from rgtrain.config.run_config import DataConfig, RunConfig, plain_config, read_section
from rgtrain.errors import ConfigError
from rgtrain.paths import CONFIGS

NODES = {
    "model": "actor_rollout_ref.model",
    "actor": "actor_rollout_ref.actor",
    "rollout": "actor_rollout_ref.rollout",
    "ray_init": "ray_kwargs.ray_init",
    "model_choice": "model",
}


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    return plain_config(composed())


def changed(plain: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(plain)
    *folders, name = key.split(".")
    node = tree
    for folder in folders:
        node = node[folder]
    node[name] = value
    return tree


def without(plain: dict[str, Any], key: str) -> dict[str, Any]:
    tree = changed(plain, key, None)
    *folders, name = key.split(".")
    node = tree
    for folder in folders:
        node = node[folder]
    del node[name]
    return tree


def assert_equals(section: Any, node: dict[str, Any]) -> None:
    for one in fields(section):
        value, given = getattr(section, one.name), node[one.name]
        if is_dataclass(value):
            assert_equals(value, given)
        else:
            assert (str(value) if isinstance(value, Path) else value) == given, one.name


@pytest.mark.parametrize("path", catalogue.experiments(), ids=catalogue.name_of)
def test_the_typed_values_of_every_experiment_equal_those_of_its_nodes(path):
    plain = plain_config(composed(name=catalogue.name_of(path), config_dir=CONFIGS))
    config = RunConfig.of(plain)
    assert (str(config.run_dir), config.preflight, config.whole) == (plain["run_dir"], plain["preflight"], plain)
    sections = [one.name for one in fields(config) if is_dataclass(getattr(config, one.name))]
    assert len(sections) == 12
    for name in sections:
        node: Any = plain
        for part in NODES.get(name, name).split("."):
            node = node[part]
        assert_equals(getattr(config, name), node)


# Each choice of each group occurs, together with choices of the other groups.
GROUPS = ("hardware", "algorithm", "reward", "mixture_policy", "model", "debug")
WORDS = [
    [word for word in words if word]
    for words in itertools.zip_longest(
        *([f"{group}={catalogue.name_of(path)}" for path in catalogue.choices(group)] for group in GROUPS)
    )
]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_choice_of_a_group_is_read(words):
    assert RunConfig.of(plain_config(composed(*words))).trainer.num_gpus >= 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trainer.n_gpus_per_node", 0, "trainer.n_gpus_per_node is 0; give a whole number from 1 up"),
        ("trainer.n_gpus_per_node", True, "trainer.n_gpus_per_node is True; give a whole number from 1 up"),
        ("trainer.save_freq", "often", "trainer.save_freq is 'often'; give a whole number"),
        ("trainer.total_training_steps", 2.5, "trainer.total_training_steps is 2.5; give a whole number or null"),
        ("trainer.watchdog.end_after_s", -1, "trainer.watchdog.end_after_s is -1; give seconds above 0 or null"),
        ("trainer.watchdog", None, "trainer.watchdog is None; give a mapping"),
        ("trainer.logger", [1], "trainer.logger is [1]; give a string or a list of strings"),
        ("trainer.save_failure", "stopp", "trainer.save_failure is 'stopp'; did you mean 'stop'? (choose from: "),
        ("trainer.default_local_dir", 7, "trainer.default_local_dir is 7; give a path"),
        ("data.held_out_files", "a.yaml", "data.held_out_files is 'a.yaml'; give a list of strings"),
        ("data.curriculum", [], "data.curriculum is []; give a mapping"),
        ("actor_rollout_ref.model.path", None, "actor_rollout_ref.model.path is None; give a string"),
        ("actor_rollout_ref.actor.optim.lr", "fast", "actor_rollout_ref.actor.optim.lr is 'fast'; give a number"),
        ("actor_rollout_ref.rollout.val_kwargs.n", None, "val_kwargs.n is None; give a whole number from 1 up"),
        ("actor_rollout_ref.rollout.free_cache_engine", 1, "free_cache_engine is 1; give true or false"),
        ("ray_kwargs.ray_init.address", 7, "ray_kwargs.ray_init.address is 7; give a string or null"),
        ("run_dir", "???", "run_dir is missing; give a path"),
    ],
)
def test_an_unusable_value_is_reported_with_the_allowed_values(small, key, value, message):
    with pytest.raises(ConfigError) as refused:
        RunConfig.of(changed(small, key, value))
    assert message in str(refused.value)
    assert "; " not in str(refused.value).replace("; give", "").replace("; did", "")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("preflight", "preflight is missing; (choose from: brief, only)"),
        ("trainer", "trainer is missing; give a mapping"),
        ("trainer.nnodes", "trainer.nnodes is missing; give a whole number from 1 up"),
        ("actor_rollout_ref.rollout.n", "actor_rollout_ref.rollout.n is missing; give a whole number from 1 up"),
        ("actor_rollout_ref", "actor_rollout_ref.model is missing; give a mapping"),
    ],
)
def test_a_missing_key_is_reported(small, key, message):
    with pytest.raises(ConfigError) as refused:
        RunConfig.of(without(small, key))
    assert message in str(refused.value)


def test_all_unusable_values_are_reported_at_once(small):
    wrong = changed(changed(small, "data.train_size", "many"), "actor_rollout_ref.rollout.n", 0)
    with pytest.raises(ConfigError, match=r"data.train_size is 'many'; .*actor_rollout_ref.rollout.n is 0; "):
        RunConfig.of(wrong)


def test_a_free_form_node_is_left_to_its_parser(small):
    assert RunConfig.of(changed(small, "data.mixture", ["chain_sum"])).data.mixture == ["chain_sum"]


def test_a_single_tracker_may_be_given_without_a_list(small):
    assert RunConfig.of(changed(small, "trainer.logger", "wandb")).trainer.trackers == ["wandb"]


def test_errors_of_a_single_node_have_full_keys(small):
    assert read_section(DataConfig, small["data"], key="data") == RunConfig.of(small).data
    with pytest.raises(ConfigError, match="data.seed is 'x'; give a whole number"):
        read_section(DataConfig, small["data"] | {"seed": "x"}, key="data")


# Names that only nodes of verl's configuration have.
VERL_NODES = {"actor_rollout_ref", "trainer", "algorithm", "critic", "ray_kwargs", "ray_init", "rollout", "fsdp_config"}
# Files that may look up verl's nodes, with the reason.
VERL_OWN = {
    "config/run_config.py": "reads them",
    "config/composition.py": "composes them",
    "training/launch.py": "completes verl's configuration before verl gets it",
    "training/trainer.py": "is verl's trainer, which holds verl's configuration and changes it",
    "training/packed_trainer.py": "is verl's trainer, and takes verl's own way for settings that it does not know",
    "training/checkpointing.py": "is verl's trainer, which holds verl's configuration and changes it",
    "migration.py": "reads configurations of the original training code, whose nodes have the same names",
    "training/sft/sft_settings.py": "translates it into that of verl's SFT trainer",
    "training/sft/sft_progress.py": "is verl's tracker, which gets the configuration of verl's SFT trainer",
    "upstream/masked_tracking.py": "takes a value out of verl's copy for its trackers",
}
PACKAGE = Path(rgtrain.__file__).parent


def lookups(tree: ast.Module) -> list[str]:
    """Return the expressions of a file that look up a node of verl's configuration by item, `get` or attribute."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(slice=ast.Constant(value=str(name))) if name in VERL_NODES:
                found.append(ast.unparse(node))
            case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(name)), *_]):
                found += [ast.unparse(node)] if name in VERL_NODES else []
            case ast.Attribute(attr="actor_rollout_ref" | "ray_kwargs"):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_file_looks_up_a_node_of_the_configuration(path):
    found = lookups(ast.parse(path.read_text(encoding="utf-8")))
    assert not found or str(path.relative_to(PACKAGE)) in VERL_OWN


@pytest.mark.parametrize(
    "line",
    [
        'config["actor_rollout_ref"]["rollout"]["n"]',
        'config["trainer"]',
        'config.get("trainer")',
        "c.ray_kwargs.ray_init",
    ],
)
def test_lookups_are_detected(line):
    assert lookups(ast.parse(line))
