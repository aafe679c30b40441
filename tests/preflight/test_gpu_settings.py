"""A run uses all GPUs, with settings that fit the model and their memory, unless values are given."""

from dataclasses import replace
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from support.gpus import give_gpus

from rgtrain import quickstart
from rgtrain.commands import train_command
from rgtrain.config.composition import checked_config, register_plugins
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.config.training_settings import TrainingSettings
from rgtrain.errors import ConfigError
from rgtrain.machine import devices
from rgtrain.machine.devices import Gpu
from rgtrain.models.model_shapes import SHAPES
from rgtrain.paths import CONFIGS
from rgtrain.preflight import gpu_checks, gpu_settings, preflight_report
from rgtrain.preflight.duration import GPUS
from rgtrain.preflight.gpu_checks import check_devices, describe_devices, gpu_bytes
from rgtrain.preflight.gpu_settings import best_settings, choose_gpu_settings
from rgtrain.preflight.memory import estimate
from rgtrain.preflight.preflight_report import brief_report
from rgtrain.preflight.sizes import ModelSize
from rgtrain.preflight.training_model import find_model
from rgtrain.training import launch

GAMES = "intra_generalisation/games_qwen_3b"
FSDP = "actor_rollout_ref.actor.fsdp_config"


@cache
def unresolved(name: str, *words: str) -> DictConfig:
    register_plugins()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, overrides=[*words, "trainer.experiment_name=test"])


def run_on(monkeypatch, memories_gb, *words: str, name: str = "quickstart_gpu") -> RunConfig:
    """Return the configuration of a run on a machine with these GPUs and 256 GB of memory, as `train_grpo.py` does."""
    give_gpus(monkeypatch, *memories_gb)
    for module in (gpu_settings, gpu_checks):
        monkeypatch.setattr(module, "memory_bytes", lambda: 256e9)
    if not any(word.startswith("hardware=") for word in words):
        words = (*words, "hardware=gpu")
    composed = unresolved(name, *words).copy()
    return choose(composed)


def choose(composed: DictConfig) -> RunConfig:
    return RunConfig.of(plain_config(choose_gpu_settings(composed, checked_config(composed.copy()))))


def peak_share(config: RunConfig) -> float:
    available = gpu_bytes(config)
    return estimate(find_model(config).size, TrainingSettings.of(config), gpu_bytes=available).peak / available


MACHINES = {
    "1x24": [25.8],
    "2x24": [25.8] * 2,
    "4x24": [24.1] * 4,
    "8x24": [24.1] * 8,
    "4x40": [42.9] * 4,
    "4x48": [48.3] * 4,
    "1x80": [85.5],
    "2x48": [48.3] * 2,
    "2x80": [85.5] * 2,
    "4x80": [85.5] * 4,
    "1x141": [150.8],
    "2x141": [150.8] * 2,
    "8x80": [85.5] * 8,
}
# The kind of GPU with this memory.
KINDS = {"24": "A10", "40": "A100-40", "48": "A6000", "80": "H100", "141": "H200"}

MODELS = {
    "quickstart": ("quickstart_gpu", "smollm2_135m"),
    "1B": (GAMES, "llama3.2_1b"),
    "3B": (GAMES, "qwen2.5_3b"),
    "7B": (GAMES, "qwen2.5_7b"),
    "8B": (GAMES, "qwen3_8b"),
    "7B, LoRA": (GAMES, "[qwen2.5_7b,lora]"),
}
OPEN = frozenset(gpu_settings._FIELDS.values())


@cache
def default_settings(model: str) -> tuple[ModelSize, TrainingSettings]:
    name, choice = MODELS[model]
    config = RunConfig.of(plain_config(checked_config(unresolved(name, f"model={choice}", "hardware=gpu").copy())))
    return find_model(config).size, TrainingSettings.of(config)


def settings_on(machine: str, model: str, **given) -> TrainingSettings:
    memories = MACHINES[machine]
    size, settings = default_settings(model)
    settings = replace(settings, num_gpus=len(memories), **given)
    return best_settings(
        size,
        settings,
        gpu=GPUS[KINDS[machine.partition("x")[2]]],
        gpu_bytes=min(memories) * 1e9,
        host_bytes=256e9,
        open_fields=OPEN - given.keys(),
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_chosen_settings_fit_each_machine(machine, model):
    settings, size, available = settings_on(machine, model), default_settings(model)[0], min(MACHINES[machine]) * 1e9
    estimated = estimate(size, settings, gpu_bytes=available)
    assert estimated.peak <= available
    assert estimated.kv_cache_tokens >= 8 * settings.sequence_tokens
    assert settings.max_micro_batch_tokens >= settings.sequence_tokens


# Of an update of 64 prompts x 8 responses of 1,024 tokens: machine and model, tokens per micro-batch, gradient
# checkpointing, resharding, gradients reduced once per update, offloading, and sleep of vLLM during updates.
CHOICES = """
1x24   quickstart  26,112      no      no     yes      no     yes
1x141  quickstart  26,112      no      no     yes      no      no
1x24   1B           6,144      no      no     yes  always     yes
2x24   1B          26,112     yes      no      no      no     yes
4x24   1B           8,704     yes      no     yes      no     yes
1x80   1B          17,408      no      no     yes      no     yes
1x24   3B          26,112     yes      no      no  always     yes
4x24   3B           8,704     yes     yes      no  asleep     yes
2x48   3B          26,112     yes      no      no      no     yes
4x48   3B           8,704     yes      no     yes      no     yes
1x80   3B           8,704     yes      no     yes      no     yes
2x80   3B           8,704      no      no      no      no     yes
4x80   3B           8,704      no      no      no      no      no
1x141  3B           8,704      no      no     yes      no     yes
4x24   7B          26,112     yes     yes      no  always     yes
8x24   7B          26,112     yes     yes      no  always     yes
4x40   7B          26,112     yes      no      no  always     yes
2x80   7B           8,704     yes     yes      no      no     yes
4x80   7B          26,112     yes      no      no      no     yes
8x80   7B          26,112     yes      no      no      no      no
2x141  7B           4,096      no      no     yes      no     yes
4x80   8B          26,112     yes      no      no      no     yes
2x141  8B           8,704      no      no      no      no     yes
1x24   7B+LoRA      8,704     yes      no     yes  always     yes
8x24   7B+LoRA     26,112     yes     yes      no  asleep     yes
2x80   7B+LoRA      8,704      no      no     yes      no     yes
"""


def words(settings: TrainingSettings) -> list[str]:
    flags = (settings.checkpointing, settings.reshard, settings.sync_once)
    offload = "always" if settings.cpu_offload else "asleep" if settings.param_offload else "no"
    yes = ["yes" if flag else "no" for flag in flags]
    return [f"{settings.max_micro_batch_tokens:,}", *yes, offload, "yes" if settings.vllm_sleeps else "no"]


@pytest.mark.parametrize("row", CHOICES.strip().splitlines())
def test_settings_save_memory_only_if_it_is_short(row):
    machine, model, *expected = row.split()
    sizes = {"batch_size": 64, "mini_batch_size": 64, "group_size": 8, "prompt_tokens": 512, "response_tokens": 1024}
    assert words(settings_on(machine, model.replace("+", ", "), **sizes)) == expected


def test_a_sleeping_engine_maps_only_the_memory_that_its_part_of_the_batch_needs():
    size = default_settings("7B")[0]
    settings = settings_on("2x141", "7B", batch_size=32, mini_batch_size=32, response_tokens=1024)
    assert settings.vllm_sleeps
    cached = estimate(size, settings, gpu_bytes=141e9).kv_cache_tokens
    assert 1 <= cached / (settings.engine_sequences * settings.sequence_tokens) < 1.5


@pytest.mark.parametrize("machine", ["4x80", "2x141"])
@pytest.mark.parametrize("name", ["qwen2.5-7b", "qwen3-8b", "llama3.1-8b"])
def test_all_parameters_of_models_of_7b_and_8b_train_without_offloading(machine, name):
    size, settings = ModelSize.of(SHAPES[name]), default_settings("7B")[1]
    available = min(MACHINES[machine]) * 1e9
    settings = best_settings(
        size,
        replace(settings, num_gpus=len(MACHINES[machine])),
        gpu=GPUS[KINDS[machine.partition("x")[2]]],
        gpu_bytes=available,
        host_bytes=None,
        open_fields=OPEN,
    )
    assert not (settings.param_offload or settings.optimizer_offload or settings.cpu_offload)
    assert settings.micro_batch_tokens >= 4096
    assert estimate(size, settings, gpu_bytes=available).peak <= 0.92 * available


@pytest.mark.parametrize("machine", ["2x24", "8x24", "4x40", "4x48"])
def test_the_readmes_first_command_trains_on_all_gpus(monkeypatch, tmp_path, machine):
    memories = MACHINES[machine]
    give_gpus(monkeypatch, *memories)
    commands, started = [], []

    def run_command(title, command):
        commands.append(command)
        raise quickstart.StepFailed(title, exit_code=1)

    monkeypatch.setattr(quickstart, "_run_command", run_command)
    with pytest.raises(quickstart.StepFailed):
        quickstart.run(run_dir=tmp_path)
    name = commands[0][commands[0].index("--config-name") + 1]
    # The command of the quickstart, without its start of a run.
    monkeypatch.setattr(launch, "train", started.append)
    train_command._run(unresolved(name).copy())
    config = RunConfig.of(plain_config(started[0]))
    assert (config.trainer.device, config.trainer.num_gpus) == ("cuda", len(memories))
    assert config.hardware.chosen["trainer.n_gpus_per_node"] == len(memories)
    check_devices(config)
    assert f"devices        on {len(memories)} GPUs: NVIDIA X ({memories[0]:.0f} GB)" in brief_report(config)


def test_given_values_and_a_chosen_hardware_file_are_kept(monkeypatch):
    given = [f"{FSDP}.reshard_after_forward=true", "actor_rollout_ref.rollout.gpu_memory_utilization=0.3"]
    config = run_on(monkeypatch, MACHINES["4x48"], *given, "trainer.n_gpus_per_node=2", name=GAMES)
    assert (config.trainer.n_gpus_per_node, config.rollout.gpu_memory_utilization) == (2, 0.3)
    assert config.actor.fsdp_config.reshard_after_forward
    assert not config.hardware.chosen.keys() & {word.split("=")[0] for word in given}
    small = run_on(monkeypatch, MACHINES["8x80"], "hardware=1x24gb", name=GAMES)
    assert (small.trainer.n_gpus_per_node, gpu_bytes(small)) == (1, 24e9)
    assert small.actor.fsdp_config.offload_policy


def test_values_derived_from_a_chosen_one_follow_it(monkeypatch):
    config = run_on(monkeypatch, MACHINES["1x24"], name=GAMES).whole["actor_rollout_ref"]
    tokens = config["actor"]["ppo_max_token_len_per_gpu"]
    assert (
        config["rollout"]["log_prob_max_token_len_per_gpu"] == tokens == config["ref"]["log_prob_max_token_len_per_gpu"]
    )


@pytest.mark.parametrize(
    ("words", "number", "reason"),
    [
        ((), 4, ""),
        (("data.train_batch_size=9", "actor_rollout_ref.actor.ppo_mini_batch_size=9"), 4, ""),
        # Each GPU needs a completion.
        (
            ("data.train_batch_size=3", "actor_rollout_ref.actor.ppo_mini_batch_size=3"),
            3,
            " (because ppo_mini_batch_size * rollout.n=3 is not a multiple of the number of GPUs=4)",
        ),
        (("actor_rollout_ref.rollout.tensor_model_parallel_size=4",), 4, ""),
        (("trainer.n_gpus_per_node=2",), 2, " (trainer.n_gpus_per_node=2)"),
    ],
)
def test_the_largest_number_of_gpus_that_divides_the_batch_is_used_and_named(monkeypatch, words, number, reason):
    single = () if not reason or number == 2 else ("actor_rollout_ref.rollout.n=1",)
    config = run_on(monkeypatch, MACHINES["4x24"], *words, *single)
    assert config.trainer.n_gpus_per_node == number
    count = "4 GPUs" if number == 4 else f"{number} of 4 GPUs"
    assert f"devices        on {count}: NVIDIA X (24 GB){reason}" in brief_report(config)


def test_restricted_gpus_are_named_with_the_variable(monkeypatch):
    give_gpus(monkeypatch, *MACHINES["8x24"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    composed = unresolved("quickstart_gpu", "hardware=gpu").copy()
    config = choose(composed)
    assert config.trainer.n_gpus_per_node == 4
    assert describe_devices(config) == "on 4 of 8 GPUs: NVIDIA X (24 GB) (CUDA_VISIBLE_DEVICES=4,5,6,7)"


def test_the_smallest_of_different_gpus_decides_and_is_named(monkeypatch):
    config = run_on(monkeypatch, [85.5, 25.8], "model=qwen2.5_3b", name=GAMES)
    assert gpu_bytes(config) == 25.8e9
    assert "NVIDIA X (86 GB), NVIDIA X (26 GB); memory settings are for the smallest, 26 GB" in describe_devices(config)
    config = run_on(monkeypatch, [85.5, 2.1], "model=qwen2.5_3b", name=GAMES)
    with pytest.raises(ConfigError, match=r"leave out the GPUs of 2 GB \(of 2 GPUs, keep numbers 0\)"):
        check_devices(config)


def test_only_one_mig_slice_is_used(monkeypatch):
    give_gpus(monkeypatch, 20, 20, is_mig=True)
    composed = unresolved("quickstart_gpu", "hardware=gpu").copy()
    config = choose(composed)
    assert describe_devices(config) == "on 1 of 2 GPUs: NVIDIA X (20 GB) (NCCL does not connect MIG slices)"
    check_devices(config)


@pytest.mark.parametrize("slices", [(False, True), (True, True)])
def test_several_gpus_of_which_one_is_a_mig_slice_are_refused(monkeypatch, slices):
    gpus = tuple(Gpu(f"GPU-{number}", "NVIDIA X", 20, is_mig) for number, is_mig in enumerate(slices))
    monkeypatch.setattr(devices, "_query_gpus", lambda: gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0,GPU-1")
    config = choose(unresolved("quickstart_gpu", "hardware=gpu", "trainer.n_gpus_per_node=2").copy())
    with pytest.raises(ConfigError, match="n_gpus_per_node=2, but a GPU here is a MIG slice, .*; set it to 1, or CUDA"):
        check_devices(config)


def test_gpus_of_unknown_memory_are_used_without_an_estimate(monkeypatch):
    config = run_on(monkeypatch, [0.0, 0.0])
    assert config.hardware.chosen == {"trainer.n_gpus_per_node": 2}
    check_devices(config)


def test_a_model_that_fits_by_no_settings_is_refused_with_advice(monkeypatch):
    config = run_on(monkeypatch, [8.6], "model=qwen2.5_7b", name=GAMES)
    with pytest.raises(ConfigError, match="will not fit into GPU memory .* try .* smaller model"):
        check_devices(config)


def test_offloading_is_limited_by_the_memory_of_the_machine(monkeypatch):
    give_gpus(monkeypatch, 25.8)
    monkeypatch.setattr(gpu_settings, "memory_bytes", lambda: 32e9)
    composed = unresolved(GAMES, "model=qwen2.5_7b", "hardware=gpu").copy()
    config = choose(composed)
    monkeypatch.setattr(gpu_checks, "memory_bytes", lambda: 32e9)
    with pytest.raises(ConfigError, match="122 GB of states are offloaded, but this machine .* allows 32 GB"):
        check_devices(config)


def test_the_report_names_the_chosen_values(monkeypatch):
    config = run_on(monkeypatch, MACHINES["2x24"])
    lines: list[str] = []
    assert preflight_report._report_memory(config, find_model(config), lines.append) == []
    table = {words[0]: " ".join(words[1:]) for words in map(str.split, lines[0].splitlines()) if words}
    assert table["trainer.n_gpus_per_node"] == "2 the most that fit batch, tensor parallelism and sharding"
    assert table["actor_rollout_ref.model.enable_gradient_checkpointing"] == "false activations fit"
    assert table.keys() >= gpu_settings._FIELDS.keys()
    assert "no gradient checkpointing, states sharded over 2 GPUs, parameters gathered once per update" in "\n".join(
        brief_report(config)
    )


def test_hardware_of_another_machine_is_reckoned_with_its_memory(monkeypatch):
    config = run_on(monkeypatch, [], "hardware=8x80gb", "model=qwen2.5_7b", name=GAMES)
    assert describe_devices(config) == "on 8 GPUs of 80 GB, which this machine does not have"
    assert config.hardware.chosen.keys() == gpu_settings._FIELDS.keys()
    assert 0.5 < peak_share(config) <= 0.92
    # A person may plan for less memory than this machine has, but not for more.
    for present, expected in ([85.5] * 8, 80e9), ([25.8] * 8, 25.8e9):
        give_gpus(monkeypatch, *present)
        assert gpu_bytes(config) == expected


def test_several_machines_hold_a_copy_of_the_states_each_if_it_fits(monkeypatch):
    assert [settings_on("4x80", model, num_machines=2).fsdp_size for model in ("3B", "8B")] == [2, -1]
    config = run_on(monkeypatch, [], "hardware=2x8x80gb", name=GAMES)
    fsdp_sizes = [config.whole["actor_rollout_ref"][part]["fsdp_config"]["fsdp_size"] for part in ("actor", "ref")]
    assert fsdp_sizes == [8, 8]
    assert peak_share(config) <= 0.92


@pytest.mark.parametrize(
    ("given", "sleeps"),
    [("enable_sleep_mode=false", False), ("free_cache_engine=true", True)],
)
def test_the_keys_of_sleep_mode_follow_each_other(monkeypatch, given, sleeps):
    config = run_on(monkeypatch, MACHINES["1x80"], f"actor_rollout_ref.rollout.{given}")
    assert (config.rollout.free_cache_engine, config.rollout.enable_sleep_mode) == (sleeps, sleeps)


def test_verls_own_engine_keeps_checkpointing_and_sleep_mode(monkeypatch):
    config = run_on(monkeypatch, MACHINES["2x141"], "engine=verl")
    assert config.model.enable_gradient_checkpointing and config.rollout.free_cache_engine
    assert config.actor.ppo_max_token_len_per_gpu <= 32_768


@pytest.mark.parametrize("parallel", [2, 4])
def test_tensor_parallelism_divides_vllms_weights_and_cache(parallel):
    settings, size = settings_on("4x80", "7B", tensor_parallel=parallel), default_settings("7B")[0]
    estimated = estimate(size, settings, gpu_bytes=85.5e9)
    assert estimated.parts["vLLM's weights"] == 2 * size.total / parallel
    assert size.kv_cache(tensor_parallel=parallel) == size.kv_cache(tensor_parallel=1) / parallel
    # An engine of several GPUs generates the sequences of all of them.
    assert settings.engine_sequences == 32 * 8 * parallel // 4
    assert estimated.peak <= 0.92 * 85.5e9
