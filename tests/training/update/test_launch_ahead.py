"""Losses and metrics of micro-batches are read once per update, and padding needs no length from the GPU."""

import pytest
import torch
from tensordict import TensorDict
from transformers import AutoModelForCausalLM, masking_utils
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine.utils import postprocess_batch_func

from rgtrain.training.update.launch_ahead import deferred_items, loss_inputs, nested_values, read_items
from rgtrain.training.update.layouts import SHARED_PROMPTS, PolicyModel
from rgtrain.training.update.log_prob_head import Targets
from rgtrain.training.update.packed_attention import copy_to_device, known_sequences, searching_unless_known

LENGTHS = (3, 1, 4)


def nested(lengths) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.arange(float(length)) for length in lengths], layout=torch.jagged)


def micro_batch() -> TensorDict:
    fields = {
        "prompts": nested((2, 2, 5)),
        "responses": nested(LENGTHS),
        "input_ids": nested(2 + length for length in LENGTHS),
        "advantages": nested(LENGTHS),
        "number": torch.arange(3),
    }
    return tu.get_tensordict(fields, {"dp_size": 2})


def output(loss: float) -> dict:
    """Return the output of a micro-batch whose numbers are deferred, as of a loss function of verl."""
    loss_tensor = torch.tensor(loss, requires_grad=True) * 1
    with deferred_items():
        metrics = {
            "actor/pg_loss": Metric(value=loss_tensor, aggregation=AggregationType.SUM),
            "actor/ppo_kl": Metric(value=loss_tensor.detach().item(), aggregation=AggregationType.MEAN),
            "critic/vpred_mean": loss_tensor.detach().item(),
            "kl_coef": 0.5,
        }
        # verl adds the entropy to a loss that a metric already holds.
        loss_tensor -= 0.25
    return {"loss": loss_tensor.detach().clone(), "metrics": metrics}


@pytest.mark.parametrize("num_micro_batches", [1, 5])
def test_numbers_are_read_once_however_many_micro_batches_there_are(num_micro_batches, monkeypatch):
    outputs = [output(float(number)) for number in range(num_micro_batches)]
    reads = []
    for name in ("item", "tolist", "__float__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda tensor, name=name, original=original: reads.append(name) or original(tensor)
        )
    read_items(outputs)
    assert reads == ["tolist"]
    metrics = postprocess_batch_func(outputs, None, tu.get_tensordict({}, {"use_dynamic_bsz": False}))
    assert reads == ["tolist"]
    numbers = [float(number) for number in range(num_micro_batches)]
    assert metrics["loss"] == [number - 0.25 for number in numbers]
    assert metrics["metrics"]["actor/pg_loss"].values == numbers
    assert metrics["metrics"]["actor/ppo_kl"].values == numbers
    assert metrics["metrics"]["critic/vpred_mean"] == numbers
    assert metrics["metrics"]["kl_coef"] == [0.5] * num_micro_batches


def test_numbers_outside_of_the_loss_are_read_at_once():
    with deferred_items():
        assert isinstance(torch.tensor(3).item(), int)
    assert torch.tensor(1.5).item() == 1.5


def test_inputs_of_the_loss_share_offsets_and_know_their_longest_row():
    given = micro_batch()
    moved = loss_inputs(given, "cpu")
    padded = moved.select("advantages").to_padded_tensor()["advantages"]
    assert padded.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0], [0, 1, 2, 3]]
    assert moved["advantages"]._max_seqlen == 4
    assert moved["number"].tolist() == [0, 1, 2] and moved["dp_size"] == 2
    assert given["advantages"] is not moved["advantages"]


def test_padding_responses_keeps_their_gradients():
    values = torch.randn(sum(LENGTHS), requires_grad=True)
    offsets = torch.tensor([0, 3, 4, 8])
    padded = torch.nested.to_padded_tensor(nested_values(values, offsets, longest=4), 0.0)
    factors = torch.randn(3, 4)
    (padded * factors).sum().backward()
    expected = torch.cat([row[:length] for row, length in zip(factors, LENGTHS, strict=True)])
    assert torch.equal(values.grad, expected)


def test_positions_are_searched_only_if_the_sequences_are_unknown():
    positions = torch.tensor([[0, 1, 0, 1]])
    find = searching_unless_known(lambda ids: "found")
    with known_sequences():
        assert find(positions) is None
    assert find(positions) == "found"


@pytest.mark.gpu
def test_on_a_gpu_forward_and_backward_passes_never_wait(tiny_model, monkeypatch):
    find = searching_unless_known(masking_utils.find_packed_sequence_indices)
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", find)
    policy_model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).cuda()
    policy = PolicyModel(policy_model)
    policy.use(SHARED_PROMPTS)
    prompt = torch.arange(100, 120)
    responses = [torch.arange(200, 200 + length) for length in LENGTHS]

    def run() -> None:
        arranged = SHARED_PROMPTS.arrange([prompt] * len(LENGTHS), responses).to("cuda")
        policy.head.targets = Targets(arranged.labels, arranged.sources, temperature=0.9, with_entropy=True)
        log_probs = policy_model(**arranged.model_inputs, use_cache=False).logits[:, 0]
        offsets = copy_to_device(torch.tensor([0, 3, 4, 8]), "cuda")
        padded = torch.nested.to_padded_tensor(nested_values(log_probs, offsets, longest=4), 0.0)
        with deferred_items():
            assert isinstance(padded.mean().item(), torch.Tensor)
        padded.sum().backward()

    # The first pass chooses and compiles kernels.
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
