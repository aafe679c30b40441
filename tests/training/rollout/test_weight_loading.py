"""Later loads repeat the copies of the first one if that gives the same parameters, and else use vLLM's loader."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from support.vllm_stand_in import VllmModel, llama_actor, replacing
from torch import Tensor, nn

from rgtrain.training.rollout.weight_loading import WeightLoader
from rgtrain.training.update import weight_sync
from rgtrain.training.update.weight_sync import ActorWeights


def weights_of(model: nn.Module, *, frozen_version: int = 0) -> ActorWeights:
    # A small bucket, so that there are several.
    return ActorWeights(model, device="cpu", bucket_bytes=500, frozen_version=frozen_version)


def assert_loaded(model: VllmModel, source: nn.Module) -> None:
    """Check that `model` has the values that its own loader gives a new model."""
    expected = type(model)(tied=model.tied)
    expected.load_weights(weights_of(source))
    values, found = expected.values(), model.values()
    assert values.keys() == found.keys()
    for name, value in values.items():
        assert torch.equal(value, found[name]), name


def nothing() -> None:
    """Stand for vLLM's processing of loaded weights, which leaves most models as they are."""


@pytest.mark.parametrize("tied", [True, False])
def test_later_weights_are_copied_without_vllms_loader(tied, capsys):
    model = VllmModel(tied=tied)
    loader = WeightLoader(model, nothing)
    for seed in range(3):
        source = llama_actor(tied=tied, seed=seed)
        loader.load(weights_of(source))
        assert_loaded(model, source)
    assert model.num_loads == 1
    assert capsys.readouterr().out == ""


def test_weights_are_gathered_in_the_dtypes_of_vllms_parameters():
    loader = WeightLoader(VllmModel(), nothing)
    loader.load(weights_of(llama_actor()))
    kinds = {name: dtype for name, dtype in loader._dtypes.items() if "layers" not in name}
    assert kinds == {
        "model.embed_tokens.weight": torch.bfloat16,
        "lm_head.weight": torch.bfloat16,
        "model.norm.weight": torch.float32,
    }


def test_weights_that_vllm_does_not_use_are_not_sent_again():
    loader = WeightLoader(VllmModel(tied=True), nothing)
    loader.load(weights_of(llama_actor(tied=True)))
    assert "model.embed_tokens.weight" in loader._dtypes
    assert "lm_head.weight" not in loader._dtypes


@pytest.mark.parametrize("lost", ["nothing", "vllm's memory", "frozen parameters"])
def test_frozen_parameters_are_sent_again_only_if_vllm_lacks_them(lost):
    model, source = VllmModel(), llama_actor()
    loader = WeightLoader(model, nothing)
    for name, parameter in source.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    loader.load(weights_of(source))
    for parameter in source.parameters():
        parameter.data.normal_()
    before = model.values()
    if lost == "vllm's memory":
        loader.forget()
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
    loader.load(weights_of(source, frozen_version=int(lost == "frozen parameters")))
    if lost == "nothing":
        changed = {name for name, value in model.values().items() if not torch.equal(value, before[name])}
        assert changed == {f"parameters_by_name.{layer}_qkv" for layer in range(2)}
    else:
        assert_loaded(model, source)
    assert model.num_loads == 1


class ComputingModel(VllmModel):
    """A model whose loader computes, as those of state-space models do."""

    def load_weight(self, name: str, weight: Tensor) -> None:
        super().load_weight(name, -torch.exp(weight.float()) if name == "model.norm.weight" else weight)


class ListingModel(VllmModel):
    """A model whose loader takes all weights before it copies the first one."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        super().load_weights(list(weights))


class AddingModel(VllmModel):
    """A model whose loader changes parameters after copying, as those of norms with an offset do."""

    def load_weight(self, name: str, weight: Tensor) -> None:
        super().load_weight(name, weight)
        if name == "model.norm.weight":
            self.parameters_by_name["norm"].data.add_(1)


class AssigningModel(VllmModel):
    """A model whose loader takes over the memory of a weight."""

    def load_weight(self, name: str, weight: Tensor) -> None:
        if name == "model.norm.weight":
            self.parameters_by_name["norm"].data = weight.clone()
        else:
            super().load_weight(name, weight)


class MultiplyingModel(VllmModel):
    """A model whose loader changes several parameters at once."""

    def load_weight(self, name: str, weight: Tensor) -> None:
        super().load_weight(name, weight)
        if name == "model.norm.weight":
            torch._foreach_mul_([self.parameters_by_name["norm"].data], 2)


def swapping(model: VllmModel) -> Callable[[], None]:
    """Return a process that swaps halves in place, as vLLM's kernels for experts need it."""

    def process() -> None:
        for layer in range(2):
            fused = model.parameters_by_name[f"{layer}_gate_up"].data
            fused.copy_(torch.cat([fused[6:], fused[:6]]))

    return process


CASES: list[tuple[type[VllmModel], Any, str]] = [
    (ComputingModel, None, "its loader uses aten.copy_.default for model.norm.weight"),
    (ListingModel, None, "its loader uses aten.copy_.default for lm_head.weight"),
    (AddingModel, None, "its loader uses aten.add_.Tensor for model.norm.weight"),
    (MultiplyingModel, None, "its loader uses aten._foreach_mul_.Scalar for model.norm.weight"),
    (AssigningModel, None, "vLLM moves parameters after loading them"),
    (VllmModel, swapping, "vLLM changes parameters after loading them"),
    (VllmModel, replacing, "vLLM moves parameters after loading them"),
]


@pytest.mark.parametrize(("kind", "process", "reason"), CASES)
def test_vllms_loader_loads_every_time_if_copies_would_not_do(kind, process, reason, capsys):
    model = kind()
    loader = WeightLoader(model, process(model) if process else nothing)
    for seed in range(3):
        source = llama_actor(seed=seed)
        loader.load(weights_of(source))
    assert model.num_loads == 3
    said = capsys.readouterr().out.splitlines()
    assert [line.partition("] ")[2] for line in said] == [f"weight sync: vLLM loads weights by name, because {reason}"]
    if process is swapping:
        # Undo the last swap.
        swapping(model)()
    assert_loaded(model, source)


def test_a_sync_reports_its_progress_once_per_bucket(monkeypatch):
    reports = []
    monkeypatch.setattr(weight_sync.TRAINER, "moved", lambda *report: reports.append(report))
    num_buckets = len(list(weights_of(llama_actor()).buckets()))
    assert len(reports) == num_buckets > 5
    assert reports[-1] == ("weight", 21, 21)


def test_vllms_loader_loads_if_a_parameter_has_moved_since():
    model = VllmModel()
    loader = WeightLoader(model, nothing)
    loader.load(weights_of(llama_actor()))
    replacing(model)()
    loader.load(weights_of(llama_actor(seed=1)))
    assert_loaded(model, llama_actor(seed=1))
    assert model.num_loads == 2
