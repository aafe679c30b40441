"""The engine gives the log-probabilities of the plain model, and gradients do not depend on the number of ranks."""

from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from support.families import VOCABULARY_SIZE as FAMILY_VOCABULARY_SIZE
from support.families import make_model
from support.moe_models import tiny_model
from support.ranks import RankFailed, Ranks, start_worlds
from support.training_samples import Sample, sample_group
from torch.distributions import Categorical
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rgtrain.checkpoints.export import export
from rgtrain.config.composition import checked_config, register_plugins
from rgtrain.machine.devices import num_gpus
from rgtrain.paths import CONFIGS
from rgtrain.training.rollout_alarm import LIMITS, ROLLOUT_GAP, GapLimit, RolloutAlarm, RolloutMismatch
from rgtrain.training.update.rank_balance import MiniBatch, RankShare

pytestmark = pytest.mark.skipif(num_gpus() > 0, reason="the CUDA stack is installed")

# The environment of a run on a CPU. The ranks connect through a file, so the address stays empty.
ENVIRONMENT = {
    "VERL_USE_EXTERNAL_MODULES": "rgtrain.upstream.on_cpu",
    "VERL_PLATFORM": "cpu",
    "OMP_NUM_THREADS": "1",
    "MASTER_ADDR": "",
    "MASTER_PORT": "",
}
# The maximum number of tokens per micro-batch, with each prompt counted once.
MAX_TOKENS = 150
# Odd, so that two ranks have shards of different sizes, and small, because logits take most of an update's time.
VOCABULARY_SIZE = 211


def group(prompt_length: int, *response_lengths: int) -> list[Sample]:
    seed = prompt_length + sum(response_lengths)
    return sample_group(
        prompt_length=prompt_length, response_lengths=response_lengths, vocabulary_size=VOCABULARY_SIZE, seed=seed
    )


# With two ranks, the first rank gets the short groups and the second rank the long ones.
SHORT_GROUPS = group(12, 1, 2, 1, 3) + group(9, 5, 4, 7, 2)
LONG_GROUPS = group(30, 40, 25, 17, 20) + group(21, 28, 36, 14, 40)
# Each group exceeds MAX_TOKENS, so the second rank splits it. The first rank then has to split as often.
OVERLONG_GROUPS = group(30, 60, 35, 47, 20) + group(21, 58, 36, 44, 40)
# The second mini-batch must be computed with the weights after the first optimizer step.
MINI_BATCHES = [SHORT_GROUPS + LONG_GROUPS, SHORT_GROUPS[::-1] + OVERLONG_GROUPS]


@cache
def run_config(model: Path, *overrides: str) -> dict[str, Any]:
    """Return the whole configuration of a run in fp32, for small rounding errors, with all terms of the loss."""
    register_plugins()
    actor = "actor_rollout_ref.actor"
    overrides = [
        "hardware=cpu",
        "algorithm=grpo",
        "trainer.experiment_name=test",
        f"actor_rollout_ref.model.path={model}",
        f"{actor}.fsdp_config.mixed_precision.param_dtype=fp32",
        f"{actor}.kl_loss_coef=0.1",
        f"{actor}.entropy_coeff=0.1",
        f"{actor}.ppo_max_token_len_per_gpu={MAX_TOKENS}",
        # AdamW would normalise tiny gradients, and so turn their rounding errors into full steps.
        f"{actor}.optim={{optimizer: SGD, override_optimizer_config: null, lr: 0.5}}",
        *overrides,
    ]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(checked_config(compose("quickstart", overrides=overrides)))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """Save a random two-layer Llama in fp32 with tied embeddings, like the quickstart's model."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY_SIZE, "hidden_size": 64, "intermediate_size": 129, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.05)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Iterator[dict[int, Ranks]]:
    """Yield one world of one rank and one of two ranks, by their size."""
    folder = tmp_path_factory.mktemp("ranks")
    with start_worlds([1, 2], "support.training_ranks", folder=folder, environment=ENVIRONMENT) as worlds:
        yield worlds


@pytest.fixture
def one_rank(worlds, model_folder) -> Ranks:
    """Return a world of one rank with a new actor."""
    worlds[1].call("build_actor", run_config(model_folder))
    return worlds[1]


@pytest.fixture
def two_ranks(worlds, model_folder) -> Ranks:
    """Return a world of two ranks with a new actor."""
    worlds[2].call("build_actor", run_config(model_folder))
    return worlds[2]


@pytest.fixture(scope="module")
def plain_model(model_folder) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


def plain_distributions(model: LlamaForCausalLM, sample: Sample, *, temperature: float = 1.0) -> Categorical:
    """Return the distributions of the response's tokens from a forward pass over the whole sequence."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sample.prompt + sample.response])).logits[0]
    return Categorical(logits=logits[len(sample.prompt) - 1 : -1] / temperature)


def assert_equal_gradients(one: list[dict[str, np.ndarray]], two: list[dict[str, np.ndarray]]) -> None:
    # In fp32, the order of a sum over a few hundred tokens changes it by about 1e-6. One token too many or too few
    # would change a mean by more than 1e-3.
    assert len(one) == len(two) > 0
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        differences = {name: np.linalg.norm(first[name] - second[name]) / np.linalg.norm(first[name]) for name in first}
        assert max(differences.values()) < 1e-5, differences


# Metrics that are measured on the machine.
MACHINE_METRICS = {
    "mfu",
    "perf/max_memory_allocated_gb",
    "perf/max_memory_reserved_gb",
    "perf/cpu_memory_used_gb",
}
INVARIANT_METRICS = {
    "rollout_gap/mean",
    "actor/pg_loss",
    "actor/ppo_kl",
    "actor/pg_clipfrac",
    "actor/pg_clipfrac_lower",
    "actor/entropy_loss",
    "kl_loss",
    "kl_coef",
    "loss",
    "grad_norm",
    "lr",
    "rollout_gap/max",
}
# The positions of the samples of the first rank in each mini-batch. The second rank has the others.
FIRST_RANKS = {
    "equal numbers": None,
    "a group against three": [range(4), range(12)],
    "divided groups": [(0, 1, 6, 9, 12, 15), (2, 3, 4, 13, 14)],
    "a rank without samples": [(), (5,)],
    "one sample against several micro-batches": [(0,), (2,)],
}


def shares(kind: str, *, epochs: int = 1) -> list[RankShare] | None:
    """Return the shares of two ranks in MINI_BATCHES."""
    if FIRST_RANKS[kind] is None:
        return None
    samples, parts = ([], []), ([], [])
    for number, (mini_batch, first) in enumerate(zip(MINI_BATCHES, FIRST_RANKS[kind], strict=True)):
        num_tokens = [len(sample.prompt + sample.response) for sample in mini_batch]
        start, size = number * len(MINI_BATCHES[0]), len(mini_batch)
        for rank, own in enumerate(([*first], [i for i in range(size) if i not in first])):
            rows = [len(samples[rank]) + row for row in range(max(1, len(own)))]
            samples[rank].extend(start + i for i in own or [0])
            parts[rank].append(MiniBatch(rows, size, num_tokens, counts=bool(own)))
    return [RankShare(own, mini_batches * epochs) for own, mini_batches in zip(samples, parts, strict=True)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(param, id=", ".join([*param[:2], "resharded" if param[2] else "kept whole", f"{param[3]} epochs"]))
        for param in [
            ("token-mean", "equal numbers", True, 1),
            ("token-mean", "one sample against several micro-batches", False, 1),
            ("token-sum", "a rank without samples", False, 1),
            ("seq-mean-token-sum", "divided groups", True, 1),
            ("seq-mean-token-mean", "a group against three", False, 2),
            ("seq-mean-token-sum-norm", "a rank without samples", True, 1),
        ]
    ],
)
def updates(request, worlds, model_folder) -> dict[int, dict[str, Any]]:
    """Return the results of the same update by one rank and by two ranks, from the first rank."""
    mode, kind, reshards, epochs = request.param
    actor = "actor_rollout_ref.actor"
    settings = [
        f"{actor}.loss_agg_mode={mode}",
        f"{actor}.fsdp_config.reshard_after_forward={reshards}",
        # Otherwise, gradients are reduced once per micro-batch.
        f"{actor}.fsdp_config.use_no_sync_for_gradient_accumulation={mode == 'token-mean'}",
    ]
    if mode in ("token-sum", "seq-mean-token-sum-norm"):
        # A sum over tokens needs a smaller step than a mean.
        settings += [f"{actor}.loss_scale_factor=50", f"{actor}.optim.lr=0.002"]
    results = {}
    for world_size, ranks in worlds.items():
        ranks.call("build_actor", run_config(model_folder, *settings))
        divided = shares(kind, epochs=epochs) if world_size == 2 else None
        mini_batches = MINI_BATCHES * epochs if divided is None else MINI_BATCHES
        results[world_size] = ranks.call("update", mini_batches, shares=divided)[0]
    return results


def test_two_ranks_compute_the_same_gradients_as_one(updates):
    assert_equal_gradients(updates[1]["gradients"], updates[2]["gradients"])


def test_two_ranks_report_the_same_metrics_as_one(updates):
    one, two = (updates[world_size]["metrics"] for world_size in (1, 2))
    assert one.keys() == two.keys() == INVARIANT_METRICS | MACHINE_METRICS
    for name in INVARIANT_METRICS:
        assert two[name] == pytest.approx(one[name], rel=1e-5, abs=1e-9), name


def test_a_rank_with_fewer_samples_than_micro_batches_returns_the_log_probs_of_its_samples(worlds, model_folder):
    worlds[2].call("build_actor", run_config(model_folder))
    worlds[1].call("build_actor", run_config(model_folder))
    divided = [SHORT_GROUPS[:1], LONG_GROUPS]
    for samples, output in zip(divided, worlds[2].call("infer_shares", divided), strict=True):
        [alone] = worlds[1].call("infer", samples)
        for name in ("log_probs", "entropy"):
            assert len(output[name]) == len(samples)
            for one, two in zip(alone[name], output[name], strict=True):
                assert two == pytest.approx(one, abs=1e-6)


def test_two_ranks_with_a_copy_of_the_states_each_train_like_one(one_rank, worlds, model_folder, tmp_path):
    # Hybrid sharding, with one rank as a machine.
    settings = [f"actor_rollout_ref.{part}.fsdp_config.fsdp_size=1" for part in ("actor", "ref")]
    ranks = worlds[2]
    ranks.call("build_actor", run_config(model_folder, *settings))
    one, two = (world.call("update", MINI_BATCHES)[0] for world in (one_rank, ranks))
    assert_equal_gradients(one["gradients"], two["gradients"])
    assert two["metrics"]["grad_norm"] == pytest.approx(one["metrics"]["grad_norm"], rel=1e-5)
    ranks.call("save_checkpoint", str(tmp_path / "global_step_1" / "actor"))
    said = []
    export(tmp_path / "global_step_1" / "actor", tmp_path / "exported", verify=True, say=said.append)
    assert said[0].startswith("verified: the log-probabilities of 124 tokens equal those of the model in training")


def test_two_ranks_train_a_critic_like_one(worlds, model_folder):
    config = run_config(
        model_folder, "algorithm=ppo", "critic.optim={optimizer: SGD, override_optimizer_config: null, lr: 0.5}"
    )
    results = []
    for world_size, ranks in worlds.items():
        ranks.call("build_critic", config)
        divided = shares("one sample against several micro-batches") if world_size == 2 else None
        results.append(ranks.call("update", MINI_BATCHES, shares=divided)[0])
    one, two = results
    assert_equal_gradients(one["gradients"], two["gradients"])
    for name in ("critic/vf_loss", "critic/vf_clipfrac", "critic/vpred_mean", "loss", "grad_norm"):
        assert two["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-5), name


@pytest.mark.parametrize("kind", ["actor", "critic"])
def test_the_export_of_a_checkpoint_is_verified_against_the_model_in_training(worlds, model_folder, tmp_path, kind):
    lora = "actor_rollout_ref.model={lora_rank: 4, lora_alpha: 8, target_modules: all-linear, lora: {merge: true}}"
    ppo = ("algorithm=ppo", "critic.optim={optimizer: SGD, override_optimizer_config: null, lr: 0.5}")
    ranks = worlds[2]
    ranks.call(f"build_{kind}", run_config(model_folder, *((lora,) if kind == "actor" else ppo)))
    ranks.call("update", MINI_BATCHES[:1])
    ranks.call("save_checkpoint", str(tmp_path / "global_step_1" / kind))
    # Parameters that were gathered for the outputs are sharded again.
    ranks.call("update", MINI_BATCHES[:1])
    said = []
    export(tmp_path / "global_step_1" / kind, tmp_path / "exported", verify=True, say=said.append)
    name = "log-probabilities" if kind == "actor" else "values"
    assert said[0].startswith(f"verified: the {name} of 124 tokens equal those of the model in training within ")
    assert said[0].endswith("the scales of 14 adapters equal the trainer's") == (kind == "actor")


@pytest.fixture(scope="module")
def expert_model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    tiny_model("qwen3_moe").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["actor", "adapters", "critic", "experts"])
def test_training_continues_on_another_number_of_ranks(worlds, model_folder, expert_model_folder, tmp_path, kind):
    """A checkpoint of one rank is loaded by two, and their next one by the first again."""
    role = "critic" if kind == "critic" else "actor"
    # AdamW would normalise tiny gradients, and so turn their rounding errors into full steps.
    schedule = "lr: 1e-2, lr_scheduler_type: cosine, total_training_steps: 10"
    options = f"{{optimizer: AdamW, override_optimizer_config: {{eps: 0.1}}, {schedule}}}"
    overrides = {
        "actor": [f"actor_rollout_ref.actor.optim={options}"],
        "adapters": [f"actor_rollout_ref.actor.optim={options}", "actor_rollout_ref.model.lora_rank=1"],
        "critic": ["algorithm=ppo", f"critic.optim={options}"],
        "experts": [f"actor_rollout_ref.actor.optim={options}"],
    }[kind]
    config = run_config(expert_model_folder if kind == "experts" else model_folder, *overrides)
    for ranks in worlds.values():
        ranks.call(f"build_{role}", config)
    for step, (before, after) in enumerate([(worlds[1], worlds[2]), (worlds[2], worlds[1])]):
        before.call("update", [SHORT_GROUPS])
        folder = str(tmp_path / f"global_step_{step}" / role)
        before.call("save_checkpoint", folder)
        [saved, *_] = before.call("training_state")
        [random_numbers, *_] = before.call("random_numbers")
        drawn = []
        for _ in range(2):
            after.call("load_checkpoint", folder)
            drawn.append(after.call("random_numbers"))
        # The first rank draws on, and a new one draws others, which are the same whenever it resumes.
        assert drawn[0][0] == random_numbers
        assert drawn[0] == drawn[1]
        assert all(numbers != random_numbers for numbers in drawn[0][1:])
        for loaded in after.call("training_state"):
            assert_close_states(loaded, saved, within=0)
        assert saved["schedule"]["last_epoch"] == 2 * step + 1
        one, two = (ranks.call("update", [SHORT_GROUPS[::-1]])[0]["gradients"] for ranks in (before, after))
        assert_equal_gradients(one, two)
        [continued, *_], [resumed, *_] = (ranks.call("training_state") for ranks in (before, after))
        assert_close_states(resumed, continued, within=1e-6)
        assert any(not np.array_equal(continued["tensors"][name], saved["tensors"][name]) for name in saved["tensors"])


def assert_close_states(one: dict[str, Any], other: dict[str, Any], *, within: float) -> None:
    for part in ("options", "schedule"):
        assert one[part] == other[part]
    assert one["tensors"].keys() == other["tensors"].keys()
    for name, values in one["tensors"].items():
        np.testing.assert_allclose(other["tensors"][name], values, rtol=0, atol=within, err_msg=str(name))


def test_micro_batches_hold_whole_groups(two_ranks):
    first, second = two_ranks.call("update", [SHORT_GROUPS + LONG_GROUPS])
    assert sorted(first["micro_batches"]) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sorted(second["micro_batches"]) == [[8, 9, 10, 11], [12, 13, 14, 15]]


def test_all_ranks_run_as_many_micro_batches_as_the_rank_that_needs_most(one_rank, two_ranks):
    num_needed = [len(one_rank.call("update", [share])[0]["micro_batches"]) for share in (SHORT_GROUPS, LONG_GROUPS)]
    num_run = [len(result["micro_batches"]) for result in two_ranks.call("update", [SHORT_GROUPS + LONG_GROUPS])]
    assert num_needed == [1, 2]
    assert num_run == [2, 2]


@pytest.mark.parametrize("temperature", [1.0, 0.7, list(np.linspace(0.5, 1.5, len(LONG_GROUPS)))])
def test_log_probs_and_entropy_equal_those_of_the_plain_model(one_rank, plain_model, temperature):
    [output] = one_rank.call("infer", LONG_GROUPS, temperature=temperature)
    temperatures = np.broadcast_to(temperature, len(LONG_GROUPS)).tolist()
    for number, (sample, own_temperature) in enumerate(zip(LONG_GROUPS, temperatures, strict=True)):
        plain = plain_distributions(plain_model, sample, temperature=own_temperature)
        assert output["log_probs"][number] == pytest.approx(plain.log_prob(torch.tensor(sample.response)), abs=1e-5)
        assert output["entropy"][number] == pytest.approx(plain.entropy(), abs=1e-5)


def test_inference_computes_no_gradient(one_rank):
    one_rank.call("infer", SHORT_GROUPS)
    assert one_rank.call("has_gradients") == [False]


def test_the_first_update_after_a_weight_sync_reports_the_gap_to_the_rollout(one_rank):
    reported = []
    for _ in range(2):
        for _ in range(2):
            [result] = one_rank.call("update", [SHORT_GROUPS])
            reported.append({name for name in result["metrics"] if name.startswith("rollout_gap/")})
        # This is the weight sync.
        one_rank.call("weights")
    assert reported == [{"rollout_gap/mean", "rollout_gap/max"}, set()] * 2


def test_the_gap_to_the_rollout_compares_the_log_probs_of_the_sampled_tokens(one_rank, plain_model):
    [result] = one_rank.call("update", [SHORT_GROUPS])
    gaps = torch.cat(
        [
            plain_distributions(plain_model, sample).log_prob(torch.tensor(sample.response))
            - torch.tensor(sample.rollout_log_probs)
            for sample in SHORT_GROUPS
        ]
    ).abs()
    assert result["metrics"]["rollout_gap/mean"] == pytest.approx(gaps.mean().item(), rel=1e-4)
    assert result["metrics"]["rollout_gap/max"] == pytest.approx(gaps.max().item(), rel=1e-4)


@pytest.mark.parametrize("is_same_model", [True, False])
def test_the_gap_stops_a_run_if_vllm_has_other_weights(one_rank, plain_model, is_same_model):
    vllms_model = deepcopy(plain_model)
    if not is_same_model:
        vllms_model.model.norm.weight.data *= 1.2
    sampled = [
        replace(
            sample,
            rollout_log_probs=plain_distributions(vllms_model, sample).log_prob(torch.tensor(sample.response)).tolist(),
        )
        for sample in SHORT_GROUPS
    ]
    [result] = one_rank.call("update", [sampled])
    metrics = {f"actor/{name}": value for name, value in result["metrics"].items()}
    alarm = RolloutAlarm(GapLimit("llama", "float32", LIMITS["float32"]), say=lambda line: None)
    with nullcontext() if is_same_model else pytest.raises(RolloutMismatch):
        alarm.observe(metrics, step=1)
    assert (metrics[ROLLOUT_GAP] < 1e-5) == is_same_model


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_rollout_gets_all_weights_under_their_hugging_face_names(worlds, model_folder, plain_model, world_size):
    worlds[world_size].call("build_actor", run_config(model_folder))
    expected = plain_model.state_dict()
    for weights in worlds[world_size].call("weights"):
        assert weights.keys() == expected.keys()
        assert all(np.array_equal(weights[name], expected[name]) for name in expected)


def test_a_plain_model_with_the_rollouts_weights_is_the_model_with_its_adapters(worlds, model_folder, plain_model):
    adapters = ["actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora.merge=true"]
    worlds[1].call("build_actor", run_config(model_folder, *adapters))
    worlds[1].call("update", [SHORT_GROUPS])
    [weights] = worlds[1].call("weights")
    merged = deepcopy(plain_model)
    merged.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})
    [output] = worlds[1].call("infer", LONG_GROUPS)
    for sample, log_probs in zip(LONG_GROUPS, output["log_probs"], strict=True):
        expected = plain_distributions(merged, sample).log_prob(torch.tensor(sample.response))
        assert log_probs == pytest.approx(expected, abs=1e-5)
        original = plain_distributions(plain_model, sample).log_prob(torch.tensor(sample.response))
        assert (expected - original).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "bucket_bytes", "num_buckets"),
    [
        ("llama", 1, 21),
        ("tied llama", 10**9, 1),
        # One bucket per layer, and one for the parameters before and one for those after the layers.
        ("qwen2_moe", 1, 4),
        ("qwen2_moe", 10**9, 1),
    ],
)
def test_a_sync_gathers_the_parameters_once_per_bucket(worlds, family, bucket_bytes, num_buckets, dtype):
    for result in worlds[2].call("gathered_as_one_by_one", family, bucket_bytes=bucket_bytes, dtype=dtype):
        assert result["differing"] == []
        assert result["num_buckets"] == result["num_gathers"] == num_buckets


@pytest.mark.parametrize(("mesh_shape", "num_gathers"), [((1, 2), 3), ((2, 1), 0)])
def test_a_sync_gathers_only_from_ranks_that_hold_other_shards(worlds, mesh_shape, num_gathers):
    settings = {"bucket_bytes": 30_000, "mesh_shape": mesh_shape}
    for result in worlds[2].call("gathered_as_one_by_one", "llama", **settings):
        assert result["differing"] == []
        assert result["num_buckets"] == 3
        assert result["num_gathers"] == num_gathers


@pytest.mark.parametrize(("moves_on_second_rank", "num_loads"), [(False, 1), (True, 3)])
def test_ranks_agree_on_how_to_load_a_sync(worlds, moves_on_second_rank, num_loads):
    for result in worlds[2].call("loaded_by_copies", moves_on_second_rank=moves_on_second_rank):
        assert result == {"differing": [], "num_loads": num_loads}


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("mesh_shape", "num_gathers"), [((2,), 2), ((2, 1), 0)])
def test_a_sync_merges_adapters_as_the_exporter_does(worlds, base_dtype, mesh_shape, num_gathers):
    for result in worlds[2].call("merged_as_exported", base_dtype=base_dtype, mesh_shape=mesh_shape):
        assert result["names"] == []
        # A product of fewer rows may round differently.
        assert result["largest"] <= torch.finfo(base_dtype).eps
        assert result["same_base"]
        # One gathers the factors and one the weights.
        assert result["num_gathers"] == num_gathers
        modules = [
            f"layers.{n}.{m}" for n in range(2) for m in ("mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj")
        ]
        assert result["changed"] == [f"model.{module}.weight" for module in ("embed_tokens", *modules)]


@pytest.fixture(scope="module")
def lora(model_folder, tmp_path_factory) -> str:
    """Return the setting of a random adapter for the model. Ranks would draw their own."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    base = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(folder)
    settings = f"lora_rank: 4, lora_alpha: 8, lora_adapter_path: {folder}, lora: {{merge: true}}"
    return f"actor_rollout_ref.model={{{settings}}}"


def test_two_ranks_train_adapters_like_one_with_no_more_collectives_than_for_all_weights(
    worlds, model_folder, plain_model, lora
):
    results = []
    # Two ranks merge adapters into gathered weights. The layers of one rank do so each time, because it reshards.
    for world_size, reshards, *model in ((2, False), (2, False, lora), (1, True, lora)):
        setting = f"actor_rollout_ref.actor.fsdp_config.reshard_after_forward={reshards}"
        worlds[world_size].call("build_actor", run_config(model_folder, setting, *model))
        if model:
            # The reference policy disables adapters before the update, which must train them.
            worlds[world_size].call("infer", SHORT_GROUPS[:4], no_lora_adapter=True)
        results.append(worlds[world_size].call("counted_update", MINI_BATCHES)[0])
    of_all_weights, two, one = results
    for name, count in two["collectives"].items():
        assert 0 < count <= of_all_weights["collectives"][name], name
    assert_equal_gradients(one["gradients"], two["gradients"])
    # The reference policy has the frozen weights, and not those that held adapters during the update.
    reference, _ = worlds[2].call("infer", SHORT_GROUPS, no_lora_adapter=True)
    for sample, log_probs in zip(SHORT_GROUPS, reference["log_probs"], strict=True):
        expected = plain_distributions(plain_model, sample).log_prob(torch.tensor(sample.response))
        assert log_probs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "feature", ["use_fused_kernels", "distillation_use_topk", "distillation_only", "calculate_sum_pi_squared"]
)
def test_an_unsupported_feature_is_refused_by_name(one_rank, feature):
    with pytest.raises(RankFailed, match=f"NotImplementedError: {feature} is not supported"):
        one_rank.call("update", [SHORT_GROUPS], **{feature: True})


def test_sequence_parallelism_is_refused_by_name(worlds, model_folder):
    parallel = "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2"
    config = run_config(model_folder, parallel, "actor_rollout_ref.model.use_remove_padding=true")
    with pytest.raises(RankFailed, match=r"NotImplementedError: .*\(ulysses_sequence_parallel_size\)"):
        worlds[2].call("build_actor", config)


@pytest.fixture(scope="module", params=["lfm2", "gemma2"])
def other_family(request, tmp_path_factory) -> Path:
    """Save a random model of a family whose sequences can't share a prompt."""
    folder = tmp_path_factory.mktemp(request.param)
    make_model(request.param).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_family_that_cannot_share_prompts_is_trained_by_its_own_log_probs(worlds, other_family, world_size):
    worlds[world_size].call("build_actor", run_config(other_family))
    samples = [
        sample
        for prompt, responses in ((12, (1, 9, 4)), (30, (17, 2, 20)))
        for sample in sample_group(
            prompt_length=prompt, response_lengths=responses, vocabulary_size=FAMILY_VOCABULARY_SIZE, seed=prompt
        )
    ]
    model = AutoModelForCausalLM.from_pretrained(other_family, dtype=torch.float32)
    for output in worlds[world_size].call("infer", samples):
        for number, sample in enumerate(samples):
            plain = plain_distributions(model, sample)
            assert output["log_probs"][number] == pytest.approx(plain.log_prob(torch.tensor(sample.response)), abs=1e-4)
    [result, *_] = worlds[world_size].call("update", [samples])
    assert result["metrics"]["grad_norm"] > 0


def test_verls_registry_holds_our_engines(one_rank):
    [engines] = one_rank.call("registered_engines")
    assert engines["language_model", "cpu"] == "SharedPromptEngine"
    assert engines["value_model", "cpu"] == "CriticEngine"
