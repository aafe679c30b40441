"""`model=` takes a choice, a folder or a hub name, on the command line, in files, in sweeps and for completion."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from support.experiments import EXPERIMENTS, composed

from rgtrain.commands import sweeper
from rgtrain.config import model_source
from rgtrain.config.composition import register_plugins
from rgtrain.config.hydra_errors import composition_errors_as_config_errors, parse_options
from rgtrain.config.model_source import folder_or_hub_name
from rgtrain.errors import ConfigError
from rgtrain.models.embedded_model import EMBEDDED_MODEL

HUB_NAME = "Qwen/Qwen2.5-0.5B-Instruct"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return the folder of a model in the current folder's folder models/."""
    made = tmp_path / "models" / "mine-0.5B"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return made


def refusal(*words: str, name: str = "small", config_dir: Path = EXPERIMENTS) -> str:
    register_plugins()
    options = parse_options(["--config-path", str(config_dir), "--config-name", name, *words])
    with (
        pytest.raises(ConfigError) as refused,
        initialize_config_dir(str(options.config_path), version_base="1.3"),
        composition_errors_as_config_errors(options),
    ):
        compose(options.config_name, overrides=options.overrides)
    return str(refused.value)


def test_a_model_is_given_in_every_form(folder):
    register_plugins()
    lora = {"path": "models/mine-0.5B", "lora_rank": 32}
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        for word, expected in {
            f"model={HUB_NAME}": {"path": HUB_NAME},
            # As a shell completes it.
            "model=models/mine-0.5B/": {"path": "models/mine-0.5B"},
            "model=./models/mine-0.5B": {"path": "models/mine-0.5B"},
            f"model={folder}": {"path": str(folder)},
            "model=[models/mine-0.5B,lora]": lora,
        }.items():
            config = compose("small", overrides=[word])
            assert {key: config.actor_rollout_ref.model[key] for key in expected} == expected, word
            # Only the path is known. The rest is read from the model.
            assert config.model.template_opens_thinking is None, word


def test_a_file_names_a_model_in_its_defaults(folder):
    (folder.parent / "mine.yaml").write_text("defaults: [/base, /model: models/mine-0.5B, _self_]\nseed: 7\n")
    config = composed(name="mine", config_dir=folder.parent)
    assert config.actor_rollout_ref.model.path == "models/mine-0.5B"
    config = composed(f"model={HUB_NAME}", name="mine", config_dir=folder.parent)
    assert config.actor_rollout_ref.model.path == HUB_NAME


def test_a_choice_of_the_users_own_is_preferred_to_a_hub_name(folder):
    own = folder.parent / "model" / "team" / "small.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nactor_rollout_ref: {model: {path: models/mine-0.5B}}\n")
    (folder.parent / "mine.yaml").write_text("defaults: [/base, /model: team/small, _self_]\n")
    assert composed(name="mine", config_dir=folder.parent).actor_rollout_ref.model.path == "models/mine-0.5B"


def test_a_sweep_takes_folders_and_hub_names(folder):
    register_plugins()
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        words = sweeper._combinations(
            OverridesParser.create(loader).parse_overrides([f"model=models/mine-0.5B,{HUB_NAME}"])
        )
        paths = [compose("small", overrides=one).actor_rollout_ref.model.path for one in words]
    assert paths == ["models/mine-0.5B", HUB_NAME]
    varied = zip(words, sweeper._varied_values(words), strict=True)
    jobs = [sweeper._Job(one, values, None) for one, values in varied]
    sweeper._name_jobs(jobs)
    assert [job.name for job in jobs] == ["model_models-mine-0.5B", "model_Qwen-Qwen2.5-0.5B-Instruct"]


def test_a_model_that_is_nothing_is_refused_with_the_choices(folder):
    for word in ("models/nine-0.5B", "/no/such/model", "qwen9", "a/b/c"):
        message = refusal(f"model={word}")
        assert f"model has no choice {word!r}" in message
        assert "choose from: llama3.2_1b" in message
        assert f"there is no folder {word!r}; give a choice, a model's folder or its hub name ORG/NAME" in message
    assert "there is no folder 'models/x'" in refusal("model=[models/x,lora]")
    (folder.parent / "mine.yaml").write_text("defaults: [/base, /model: models/x, _self_]\n")
    message = refusal(name="mine", config_dir=folder.parent)
    assert message.startswith("the file 'mine' names 'model/models/x' in its `defaults`; ")
    assert "there is no folder 'models/x'" in message


def test_the_embedded_model_counts_as_there_before_it_is_unpacked(monkeypatch, tmp_path):
    monkeypatch.setattr(model_source, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(model_source, "path_from_here", lambda path: tmp_path / path)
    path = f"models/{EMBEDDED_MODEL}"
    assert folder_or_hub_name(path) == folder_or_hub_name(f"{path}/") == str(tmp_path / path)
