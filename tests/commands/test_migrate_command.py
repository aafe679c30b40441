"""Original configurations become experiments with the same problems, rewards and hyperparameters."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.original_configs import original_config

from rgtrain.commands.migrate_command import migrate_file
from rgtrain.config.composition import checked_config, register_plugins
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.errors import ConfigError
from rgtrain.migration import is_original, migrate, read_original, refuse_original
from rgtrain.paths import CONFIGS, PROJECT_ROOT

COSINE_FORMAT = {"cosine": 0.3, "format": 0.2}
FORMAT_LENGTH = {"format": 0.2, "length": 0.2}
KNIGHTS = {"knights_knaves": {"attribute_levels": {"n_people": 0, "depth_constraint": 0, "width_constraint": 0}}}
LONG = {"prompt_length": 4096}
# The 14 published experiments: the file of their mixture in configs/mixture, and the arguments of `original_config`.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "curriculum/knights_knaves_curriculum": (
        "knights_knaves",
        {
            "rewards": {"format": 0.2},
            **LONG,
            "mini_batch": 8,
            "steps": 300,
            "curriculum": {"last_k": 2560, "failure_threshold": 0.3, "curricula": KNIGHTS},
        },
    ),
    "curriculum/knights_knaves_noncurriculum": (
        "knights_knaves",
        {"rewards": {"format": 0.2}, **LONG, "mini_batch": 8, "steps": 300},
    ),
    "curriculum/spell_backward": (
        "spell_backward",
        {
            "rewards": COSINE_FORMAT,
            "steps": 400,
            "curriculum": {"curricula": {"spell_backward": {"attribute_levels": {"word_len": 0}}}},
        },
    ),
    "external_generalisation/math_llama_3b": (
        "math",
        {
            "rewards": COSINE_FORMAT,
            "model": "meta-llama/Llama-3.2-3B-Instruct",
            "dataset_size": 40000,
            "steps": 2000,
            "save_freq": 200,
        },
    ),
    "inter_generalisation/algebra_qwen_3b": ("inter_algebra", {"rewards": FORMAT_LENGTH, **LONG}),
    "inter_generalisation/algorithmic_qwen_3b": ("inter_algorithmic", {"rewards": FORMAT_LENGTH, **LONG}),
    "inter_generalisation/games_qwen_3b": ("inter_games", {"rewards": {"format": 0.2}, **LONG}),
    "inter_generalisation/logic_qwen_3b": ("inter_logic", {"rewards": FORMAT_LENGTH, **LONG}),
    **{
        f"intra_generalisation/{category}_qwen_3b": (f"intra_{category}", {"rewards": COSINE_FORMAT})
        for category in ("algebra", "algorithmic", "arithmetic", "cognition", "games", "graphs")
    },
}


def mixture(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / "mixture" / f"{name}.yaml").read_text())["mixture"]


def write(config: dict[str, Any], path: Path) -> Path:
    text = yaml.safe_dump(config, sort_keys=False)
    # The originals write numbers such as 1e-6 without a decimal point, which YAML alone reads as a string.
    path.write_text(text.replace("'1e-6'", "1e-6").replace("'1e-5'", "1e-5"))
    return path


def published(name: str, folder: Path) -> Path:
    mixture_name, arguments = PUBLISHED[name]
    return write(original_config(mixture(mixture_name), **arguments), folder / "original.yaml")


def composed(path: Path) -> RunConfig:
    from hydra import compose, initialize_config_dir

    register_plugins()
    with initialize_config_dir(str(path.parent), version_base="1.3"):
        return RunConfig.of(plain_config(checked_config(compose(path.stem))))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_experiment_keeps_its_problems_rewards_and_sizes(name, tmp_path):
    mixture_name, arguments = PUBLISHED[name]
    migration = migrate(read_original(published(name, tmp_path)))
    assert migration.lost == {}
    values, data = migration.values, migration.values["data"]
    assert migration.choices == {
        "model": "llama3.2_3b" if "llama" in name else "qwen2.5_3b",
        "algorithm": "grpo",
    }
    if curriculum := arguments.get("curriculum"):
        starts = {name: options["attribute_levels"] for name, options in curriculum["curricula"].items()}
        written = data["curriculum"]["datasets"]
        assert written == {name: {"start": start, "ranges": "widening"} for name, start in starts.items()}
        assert data["curriculum"]["policy"]["window"] == curriculum.get("last_k", 20)
        assert list(data["mixture"]) == list(starts)
    else:
        assert data["mixture"] == mixture(mixture_name)
    weights = {name: part["weight"] for name, part in values["reward"]["parts"].items()}
    assert weights == {"accuracy": 1.0} | {f"published_{name}": w for name, w in arguments["rewards"].items()}
    assert data["max_prompt_length"] == arguments.get("prompt_length", 512)
    assert data["train_size"] == arguments.get("dataset_size", 20000)
    assert values["trainer"]["total_training_steps"] == arguments.get("steps", 500)
    assert values["trainer"]["logger"] == ["wandb"]
    assert values["actor_rollout_ref"]["actor"]["optim"]["lr"] == 1e-6
    assert values["actor_rollout_ref"]["actor"]["ppo_mini_batch_size"] == arguments.get("mini_batch", 16)


@pytest.mark.parametrize("name", ["inter_generalisation/algebra_qwen_3b", "curriculum/knights_knaves_curriculum"])
def test_the_written_experiment_is_short_and_composes(name, tmp_path):
    output = tmp_path / "new" / "migrated.yaml"
    lines = list(migrate_file(published(name, tmp_path), output))
    assert lines[0] == f"wrote {output}"
    assert not [line for line in lines if "by hand" in line or "no equivalent" in line]
    assert len(output.read_text().splitlines()) < 60
    config = composed(output)
    assert config.trainer.experiment_name == "an_experiment"
    assert config.data.max_prompt_length == 4096
    assert config.actor.optim.lr == 1e-6


def test_settings_that_would_change_the_experiment_are_named(tmp_path):
    config = original_config({"gcd": {"weight": 1}}, rewards={"brevity": 1.0})
    config["actor_rollout_ref"]["rollout"]["name"] = "sglang"
    config["actor_rollout_ref"]["actor"]["ulysses_sequence_parallel_size"] = 2
    config["actor_rollout_ref"]["actor"]["use_kl_loss"] = False
    config["reward_model"]["enable"] = True
    config["surprise"] = {"key": 3}
    migration = migrate(read_original(write(config, tmp_path / "original.yaml")))
    assert set(migration.lost) == {
        "actor_rollout_ref.rollout.name",
        "actor_rollout_ref.actor.ulysses_sequence_parallel_size",
        "reward_model.enable",
        "surprise.key",
    }
    assert "reward.secondary_rewards.brevity" in migration.unused
    # The original code then subtracts the penalty from the reward.
    assert migration.values["algorithm"]["use_kl_in_reward"] is True


def test_a_reward_without_accuracy_stays_without_it(tmp_path):
    config = original_config({"gcd": {"weight": 1}}, rewards={"format": 0.5})
    config["reward"]["use_accuracy"] = False
    output = tmp_path / "migrated.yaml"
    list(migrate_file(write(config, tmp_path / "original.yaml"), output))
    assert composed(output).reward.parts == {"published_format": {"weight": 0.5}}


def test_a_clipping_of_gradients_acts_under_its_present_name(tmp_path):
    config = original_config({"gcd": {"weight": 1}}, rewards={})
    config["actor_rollout_ref"]["actor"]["grad_clip"] = 0.5
    output = tmp_path / "migrated.yaml"
    lines = list(migrate_file(write(config, tmp_path / "original.yaml"), output))
    assert not [line for line in lines if "by hand" in line]
    assert composed(output).whole["actor_rollout_ref"]["actor"]["optim"]["clip_grad"] == 0.5


def test_a_dataset_that_no_longer_exists_is_named(tmp_path):
    original = write(original_config({"gcdd": {"weight": 1}}, rewards={}), tmp_path / "original.yaml")
    lines = list(migrate_file(original, tmp_path / "migrated.yaml"))
    assert any("by hand" in line and "gcdd" in line and "gcd" in line for line in lines)


def test_an_existing_file_is_kept(tmp_path):
    original = write(original_config({"gcd": {"weight": 1}}, rewards={}), tmp_path / "original.yaml")
    output = tmp_path / "migrated.yaml"
    output.write_text("mine")
    with pytest.raises(ConfigError, match="exists; give another OUTPUT, or --force"):
        list(migrate_file(original, output))
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {mixture: {}}", "is not a configuration of the original training code"),
        ("a: [", "can't be read"),
        ("- a", "is not a configuration of the original training code"),
        ("", "is not a configuration of the original training code"),
        ("a: 1\na: 2", "can't be read"),
    ],
)
def test_other_files_are_refused(text, message, tmp_path):
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_original(tmp_path / "other.yaml")


def test_no_file_of_the_project_is_taken_for_an_original():
    assert not [path for path in CONFIGS.rglob("*.yaml") if is_original(yaml.safe_load(path.read_text()))]


def test_training_with_an_original_names_the_command(tmp_path):
    original = write(original_config({"gcd": {"weight": 1}}, rewards={}), tmp_path / "original.yaml")
    with pytest.raises(ConfigError, match="migrate_config.py"):
        refuse_original(original)
    command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-path", str(tmp_path)]
    done = subprocess.run([*command, "--config-name", "original"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {original} is a configuration of the original training code; run `python utils/migrate_config.py "
        f"{original}` and train with the file that it writes\n"
    )
