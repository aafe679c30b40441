"""Every key of verl's configuration acts under engine=fast, or is refused when it is set."""

import importlib.util
from pathlib import Path

import pytest
from support.experiments import project_experiment

from rgtrain.config import verl_keys
from rgtrain.config.plain_tree import lookup
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.config.verl_keys import HonouredKeys, RefusedKeys, check_verl_keys, classified_keys, refused_settings
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT

ROWS = verl_keys.read_table()
REFUSED = {key: row for key, row in classified_keys().items() if isinstance(row, RefusedKeys) and not row.accepted_if}


@pytest.fixture(scope="module")
def shipped():
    """The quickstart with a critic on GPUs."""
    return plain_config(project_experiment("quickstart", "algorithm=ppo", "hardware=2x48gb"))


def changed(plain, **settings):
    """Return a copy of a plain configuration with changed values of full keys."""
    config = dict(plain)
    for key, value in settings.items():
        *nodes, name = key.split(".")
        node = config
        for part in nodes:
            node[part] = node = dict(node[part])
        node[name] = value
    return config


def another(value):
    """Return a value of the same kind that is not accepted anywhere."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 7
    if isinstance(value, list):
        return [*value, "another"]
    return {**value, "another": 1} if isinstance(value, dict) else "another"


def test_every_key_of_verls_tree_stands_in_one_row():
    assert verl_keys._verl_leaves() <= classified_keys().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actor_rollout_ref.rollout.new_key": 1}, "actor_rollout_ref.rollout.new_key stands in 0 rows"),
        ({"trainer.balance_batch": None}, "trainer.balance_batch is no key of verl's"),
        ({"critic.optim.lr": None}, "critic.optim.lr is no key of verl's"),
    ],
)
def test_a_version_of_verl_with_other_keys_is_noticed(monkeypatch, changes, message):
    defaults = {key: value for key, value in {**verl_keys._defaults(), **changes}.items() if changes.get(key, 1)}
    monkeypatch.setattr(verl_keys, "_defaults", lambda: defaults)
    monkeypatch.setattr(verl_keys, "_verl_leaves", lambda: defaults.keys())
    with pytest.raises(ConfigError, match=message):
        classified_keys.__wrapped__()


def test_a_key_below_a_refused_node_is_refused_in_a_new_version_too(monkeypatch):
    defaults = {**verl_keys._defaults(), "transfer_queue.backend.New.size": 1}
    monkeypatch.setattr(verl_keys, "_defaults", lambda: defaults)
    assert isinstance(classified_keys.__wrapped__()["transfer_queue.backend.New.size"], RefusedKeys)


@pytest.mark.parametrize("row", [row for row in ROWS if isinstance(row, HonouredKeys)], ids=lambda row: row.keys[0])
def test_the_modules_that_are_said_to_read_honoured_keys_mention_them(row):
    def source(module):
        # Without importing the package, which takes seconds.
        package, *parts = module.split(".")
        root = Path(importlib.util.find_spec(package).origin).parent
        return root.joinpath(*parts).with_suffix(".py").read_text()

    sources = {module: source(module) for module in row.read_by}
    # Options of nsys are passed on as a whole.
    names = {"worker_nsight_options" if "_nsight_options" in key else key.rpartition(".")[2] for key in row.keys}
    assert {name for name in names if not any(name in text for text in sources.values())} == set()
    assert [module for module, text in sources.items() if not any(name in text for name in names)] == []


def test_defaults_are_accepted(shipped):
    assert list(refused_settings(shipped)) == []


@pytest.mark.parametrize("row", [row for row in ROWS if row in REFUSED.values()], ids=lambda row: row.keys[0])
def test_every_refused_key_is_refused_with_another_value(shipped, row):
    assert row.advice
    for key in (key for key, of_key in REFUSED.items() if of_key is row):
        value = another(lookup(shipped, key))
        if value in row.only:
            value = "another"
        found = {refused: given for refused, given, _ in refused_settings(changed(shipped, **{key: value}))}
        assert found.pop(key) == value
        # A default may be the value of the changed key.
        assert all("${" in str(verl_keys._defaults()[other]) for other in found)


def test_all_refused_keys_are_reported_at_once(shipped):
    settings = {
        "reward.reward_manager.name": "dapo",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
        "trainer.v1.trainer_mode": "colocate_async",
    }
    with pytest.raises(ConfigError) as caught:
        check_verl_keys(RunConfig.of(changed(shipped, **settings)))
    assert str(caught.value).splitlines() == [
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu is 4, but engine=fast sizes micro-batches in tokens; set "
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu or engine=verl",
        "  reward.reward_manager.name is 'dapo', but engine=fast computes rewards from reward.parts; set reward.parts, "
        "which takes functions of yours as pkg://MODULE.FUNCTION, or engine=verl",
        "  trainer.v1.trainer_mode is 'colocate_async', but engine=fast extends verl's synchronous trainer; set "
        "engine=verl",
    ]


@pytest.mark.parametrize(
    ("refused", "accepted"),
    [
        (
            {"actor_rollout_ref.rollout.val_kwargs.do_sample": True},
            {"actor_rollout_ref.rollout.val_kwargs.temperature": 0.6},
        ),
        ({"actor_rollout_ref.actor.use_torch_compile": True, "trainer.device": "cpu"}, {"trainer.device": "cuda"}),
        (
            {"actor_rollout_ref.rollout.engine_kwargs.vllm": {"swap_spaces": 4}},
            {"actor_rollout_ref.rollout.engine_kwargs.vllm": {"enable_expert_parallel": True}},
        ),
        ({"critic.strategy": "fsdp"}, {"critic.enable": False}),
        ({"critic.model.use_remove_padding": True}, {"critic.enable": False}),
        ({"critic.model.use_remove_padding": True}, {"critic.model.use_remove_padding": False}),
        ({"actor_rollout_ref.model.lora_rank": 8}, {"actor_rollout_ref.model.lora.merge": True}),
        (
            {"actor_rollout_ref.model.override_config": {"attn_implementation": "flash_attention_2"}},
            {"actor_rollout_ref.model.override_config": {"attention_dropout": 0.1}},
        ),
        (
            {"actor_rollout_ref.model.lora_adapter_path": "adapter", "actor_rollout_ref.model.lora.merge": True},
            {"actor_rollout_ref.model.lora_rank": 8},
        ),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_some_keys_are_accepted_depending_on_others(shipped, refused, accepted):
    assert len({row.accepted_if for _, _, row in refused_settings(changed(shipped, **refused))}) == 1
    assert list(refused_settings(changed(shipped, **{**refused, **accepted}))) == []


def test_a_default_that_follows_a_refused_key_is_not_reported_too(shipped):
    settings = {"actor_rollout_ref.actor.strategy": "fsdp", "actor_rollout_ref.ref.strategy": "fsdp"}
    assert [key for key, _, _ in refused_settings(changed(shipped, **settings))] == ["actor_rollout_ref.actor.strategy"]


def test_the_conditions_are_those_of_the_table():
    assert verl_keys._CONDITIONS.keys() == {
        row.accepted_if for row in ROWS if isinstance(row, RefusedKeys) and row.accepted_if
    }


def test_verls_engine_accepts_every_key(shipped):
    everything = {key: another(lookup(shipped, key)) for key in REFUSED if key.count(".") > 1}
    check_verl_keys(RunConfig.of(changed(shipped, **everything, engine="verl")))


@pytest.mark.parametrize(
    "words",
    [
        ("debug=overfit", "model=smollm2_1.7b"),
        ("debug=profile", "hardware=cpu"),
        ("debug=deterministic",),
        ("model=[qwen3_4b,lora]", "algorithm=dapo"),
        # Keys that act, and on which the defaults of other keys depend.
        (
            "algorithm=ppo",
            "data.max_prompt_length=300",
            "data.max_response_length=200",
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=9000",
            "actor_rollout_ref.actor.ppo_epochs=2",
            "trainer.project_name=mine",
            "trainer.n_gpus_per_node=2",
            "critic.loss_agg_mode=seq-mean-token-mean",
            "critic.ppo_max_token_len_per_gpu=20000",
            "global_profiler.tool=torch_memory",
        ),
    ],
    ids=lambda words: " ".join(words),
)
def test_choices_and_keys_that_act_are_accepted(words):
    assert list(refused_settings(plain_config(project_experiment("quickstart", *words)))) == []


def test_the_critics_token_budget_is_the_one_that_verl_reads(shipped):
    critic = shipped["critic"]
    assert critic["ppo_infer_max_token_len_per_gpu"] == critic["ppo_max_token_len_per_gpu"] == 16384


def test_the_documentation_has_the_table():
    text = (PROJECT_ROOT / "docs" / "verl-keys.md").read_text(encoding="utf-8")
    table = "\n".join(verl_keys.table_lines())
    assert table in text, "run `python -m rgtrain.config.verl_keys` and paste its output into docs/verl-keys.md"
