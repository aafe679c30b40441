"""Adapted layers give PEFT's results and gradients with fewer kernels, and leave the other cases to PEFT."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rgtrain.training.update.lora_linear import with_merged_weights

# Another test may have applied the replacement.
PEFTS_FORWARD = inspect.unwrap(Linear.forward)
# The parts of an update that only change shapes.
VIEWS = ("view", "transpose", "detach", "aten.t.", "expand", "alias")


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 129)
        self.second = nn.Linear(129, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def adapted(dtype: torch.dtype = torch.float32, **settings: Any) -> nn.Module:
    """Return two frozen layers with random adapters."""
    torch.manual_seed(0)
    config = {"r": 8, "lora_alpha": 24, "target_modules": ["first", "second"], "init_lora_weights": False}
    return get_peft_model(TwoLayers(), LoraConfig(**config | settings)).to(dtype)


@pytest.fixture
def use(monkeypatch) -> Iterator[Callable[[Any], None]]:
    """Yield a function that sets the forward method of PEFT's layers for a test."""
    yield lambda forward: monkeypatch.setattr(Linear, "forward", forward)


def pass_through(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the output, and the gradients of the input and of the trained parameters, of one pass."""
    x = torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    model.zero_grad()
    output = model(x)
    output.float().square().mean().backward()
    trained = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    return {"output": output.detach(), "input": x.grad, **trained}


def differences(model: nn.Module, use: Callable[[Any], None], dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Return how much each result of our layers differs from PEFT's, as a fraction of its norm."""
    use(PEFTS_FORWARD)
    expected = pass_through(model, dtype)
    use(with_merged_weights(PEFTS_FORWARD))
    found = pass_through(model, dtype)
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    return {name: ((found[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected}


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"rank_pattern": {"first": 3}, "alpha_pattern": {"second": 5}}],
    ids=["plain", "rslora", "patterns"],
)
def test_results_and_gradients_equal_pefts(use, settings):
    found = differences(adapted(**settings), use)
    assert len(found) == 6
    assert max(found.values()) < 1e-6, found


def test_results_and_gradients_in_bf16_are_as_exact_as_pefts(use):
    model, exact = adapted(torch.bfloat16), adapted(torch.bfloat16).float()
    use(PEFTS_FORWARD)
    expected, pefts = pass_through(exact, torch.float32), pass_through(model, torch.bfloat16)
    use(with_merged_weights(PEFTS_FORWARD))
    ours = pass_through(model, torch.bfloat16)
    for name, value in expected.items():
        errors = [((found[name].float() - value).norm() / value.norm()).item() for found in (ours, pefts)]
        assert errors[0] < max(1.5 * errors[1], 2**-8), (name, errors)


def test_autocast_computes_in_its_own_dtype(use):
    model = adapted()
    use(with_merged_weights(PEFTS_FORWARD))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.ones(1, 3, 64))
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert {weight.grad.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}


def with_disabled_adapters(model: nn.Module) -> nn.Module:
    model.base_model.disable_adapter_layers()
    # PEFT freezes disabled adapters.
    return model


def with_two_adapters(model: nn.Module) -> nn.Module:
    model.add_adapter("other", LoraConfig(r=4, target_modules=["first"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])
    return model


def with_merged_adapters(model: nn.Module) -> nn.Module:
    model.merge_adapter()
    return model


def with_hook(model: nn.Module) -> nn.Module:
    model.base_model.model.first.base_layer.register_forward_hook(lambda layer, arguments, output: 2 * output)
    return model


@pytest.mark.parametrize(
    "model",
    [
        with_disabled_adapters(adapted()),
        with_two_adapters(adapted()),
        with_hook(adapted()),
        adapted(use_dora=True),
        adapted(bias="all"),
        adapted(lora_bias=True, target_modules=["first"]),
    ],
    ids=["disabled", "two adapters", "hook", "dora", "trained bias", "adapter with bias"],
)
def test_other_cases_are_pefts(use, model):
    assert max(differences(model, use).values()) < 1e-6


def test_merged_adapters_are_not_added_again(use):
    model = adapted()
    x = torch.ones(1, 2, 64)
    use(with_merged_weights(PEFTS_FORWARD))
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(with_merged_adapters(model)(x), expected, atol=1e-5)


def test_dropout_keeps_pefts_method_in_training_only(use):
    model = adapted(lora_dropout=0.5)
    use(with_merged_weights(PEFTS_FORWARD))
    x = torch.ones(1, 2, 64)
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        model.eval()
        expected = model(x)
        use(PEFTS_FORWARD)
        assert torch.allclose(model(x), expected, atol=1e-5)


class Operations(TorchDispatchMode):
    """Counts the operations that launch a kernel on a GPU, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if not any(view in name for view in VIEWS):
            self.counts[name.split(".")[1]] += 1
        return function(*args, **kwargs or {})


def test_a_layer_passes_over_its_tokens_by_matrix_products_only(use):
    counts = {}
    for kind, forward in {"peft": PEFTS_FORWARD, "ours": with_merged_weights(PEFTS_FORWARD)}.items():
        use(forward)
        with Operations() as operations:
            pass_through(deepcopy(adapted()), torch.float32)
        counts[kind] = operations.counts
    # For each of two layers, PEFT scales and adds in both passes. Here, merging takes one product in each.
    extra = counts["peft"] - counts["ours"]
    assert (extra["mul"], extra["add"]) == (4, 4)
    assert counts["peft"]["mm"] + counts["peft"]["addmm"] == counts["ours"]["mm"] + counts["ours"]["addmm"] == 16
