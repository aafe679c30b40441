"""The fastest attention kernel that is installed, made for the GPU and right is used, and the log says why."""

import importlib
from dataclasses import replace
from functools import partial

import pytest
import torch

from rgtrain.machine.devices import is_installed
from rgtrain.training.update import attention_kernels
from rgtrain.training.update.attention_kernels import (
    KERNELS,
    TORCH,
    AttentionKernel,
    AttentionShape,
    _plain_attention,
    choose_kernel,
    chosen_kernel,
    expect_micro_batches,
)

SHAPE = AttentionShape(num_heads=4, num_key_heads=2, head_size=16, value_size=16, dtype=torch.bfloat16, window=None)
HOPPER, AMPERE, BLACKWELL = 9, 8, 10


def right_kernel(*tensors, scale, window):
    return _plain_attention(
        *(x.float() if x.is_floating_point() else x for x in tensors[:3]), *tensors[3:], window=window
    )


def blind_kernel(*tensors, scale, window):
    # It ignores the keys of the prompt, as if each completion stood alone.
    queries, keys, values, query_starts, key_starts, *lengths = tensors
    return right_kernel(queries, keys, values.flip(0), query_starts, key_starts, *lengths, scale=scale, window=window)


def failing_kernel():
    raise ImportError("undefined symbol: _ZN3c104cuda9SetDeviceEab\nmore")


@pytest.fixture
def stack(monkeypatch):
    """Let a set of distributions be installed, with kernels that work."""

    def install(*distributions: str) -> list[AttentionKernel]:
        monkeypatch.setattr(attention_kernels, "is_installed", distributions.__contains__)
        return [replace(one, load=lambda: right_kernel) for one in KERNELS]

    return install


def chosen(kernels, shape=SHAPE, capability=HOPPER, num_tokens=16_000):
    return choose_kernel(shape, device="cpu", capability=capability, num_tokens=num_tokens, kernels=kernels)


@pytest.mark.parametrize(
    ("installed", "capability", "line"),
    [
        ((), HOPPER, "torch (flash-attn-4: not installed; flash-attn: not installed)"),
        (("flash-attn",), HOPPER, "flash-attn (flash-attn-4: not installed)"),
        (("flash-attn-4",), HOPPER, "flash-attn-4"),
        (("flash-attn-4", "flash-attn"), BLACKWELL, "flash-attn-4"),
        (("flash-attn-4", "flash-attn"), AMPERE, "flash-attn (flash-attn-4: not made for compute capability 8.x)"),
        (
            ("flash-attn-4",),
            AMPERE,
            "torch (flash-attn-4: not made for compute capability 8.x; flash-attn: not installed)",
        ),
    ],
)
def test_the_fastest_kernel_that_is_installed_and_made_for_the_gpu_is_used(stack, installed, capability, line):
    assert str(chosen(stack(*installed), capability=capability)) == f"attention in training: {line}"


def test_small_micro_batches_use_a_kernel_with_less_work_in_python(stack):
    line = "slower with fewer than 16,000 tokens per micro-batch"
    assert chosen(stack("flash-attn-4"), num_tokens=15_999).rejected["flash-attn-4"] == line
    assert chosen(stack("flash-attn-4", "flash-attn"), num_tokens=15_999).name == "flash-attn"


def test_the_size_of_a_runs_micro_batches_decides(stack, monkeypatch):
    monkeypatch.setattr(attention_kernels, "_choices", {})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (HOPPER, 0))
    choose = partial(choose_kernel, kernels=stack("flash-attn-4"))
    monkeypatch.setattr(attention_kernels, "choose_kernel", choose)
    names = []
    for num_tokens in (8_000, 16_000):
        monkeypatch.setattr(attention_kernels, "_num_tokens", 0)
        expect_micro_batches(num_tokens)
        names.append(chosen_kernel(SHAPE, torch.device("cpu")).name)
    assert names == ["torch", "flash-attn-4"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head_size": 256}, "heads are larger than 128"),
        ({"value_size": 192}, "heads are larger than 128"),
        ({"dtype": torch.float32}, "it does not compute in float32"),
    ],
)
def test_a_kernel_that_does_not_support_the_model_is_not_imported(changes, reason):
    assert KERNELS[0].name == "flash-attn-4"
    shape = AttentionShape(**{**vars(SHAPE), **changes})
    kernel = replace(KERNELS[0], distribution=None, load=failing_kernel)
    assert kernel.obstacle(shape, capability=HOPPER, num_tokens=16_000) == reason


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (failing_kernel, "undefined symbol: _ZN3c104cuda9SetDeviceEab"),
        (lambda: blind_kernel, "wrong by 1"),
        (lambda: lambda *_, **__: None, "'NoneType' object"),
    ],
)
def test_a_kernel_that_fails_or_is_wrong_gives_way_to_a_slower_one(stack, load, reason):
    fastest, *others = stack("flash-attn-4", "flash-attn")
    choice = chosen([replace(fastest, load=load), *others])
    assert choice.name == "flash-attn"
    assert choice.rejected["flash-attn-4"].startswith(reason) or reason in choice.rejected["flash-attn-4"]


@pytest.mark.parametrize("window", [None, 7])
def test_the_trial_computes_attention_as_torch_does(window):
    # One segment whose queries are the last 5 of 12 keys.
    queries, keys, values = (torch.randn(length, 4, 16, dtype=torch.float64) for length in (5, 12, 12))
    starts = [torch.tensor([0, length], dtype=torch.int32) for length in (5, 12)]
    ours = _plain_attention(queries, keys, values, *starts, 5, 12, window=window)
    distance = (torch.arange(5)[:, None] + 7) - torch.arange(12)[None]
    mask = (distance >= 0) & (distance < (window or 12))
    plain = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.transpose(0, 1) for tensor in (queries, keys, values)), attn_mask=mask
    )
    assert torch.allclose(ours, plain.transpose(0, 1))


def test_without_any_kernel_the_reasons_are_reported(stack):
    kernels = stack()
    with pytest.raises(NotImplementedError, match="no attention kernel works .torch: it does not compute in"):
        chosen(kernels, AttentionShape(**{**vars(SHAPE), "dtype": torch.float32}))


def test_flash_attention_4_alone_is_not_mistaken_for_flash_attention_2(tmp_path, monkeypatch):
    # Its module is flash_attn.cute, so `flash_attn` can be imported, but has no functions.
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn_4-4.0.0b19.dist-info").mkdir()
    (tmp_path / "flash_attn_4-4.0.0b19.dist-info" / "METADATA").write_text("Name: flash-attn-4\nVersion: 4.0.0b19\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert is_installed("flash-attn-4")
    assert not is_installed("flash-attn")


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_on_a_gpu_each_installed_kernel_is_right(kernel, window):
    shape = AttentionShape(12, 2, 128, 128, torch.bfloat16, window)
    capability = torch.cuda.get_device_capability()[0]
    if reason := kernel.obstacle(shape, capability=capability, num_tokens=16_000):
        pytest.skip(reason)
    assert (
        choose_kernel(shape, device="cuda", capability=capability, num_tokens=16_000, kernels=[kernel]).name
        == kernel.name
    )


def test_torch_comes_last():
    assert KERNELS[-1] is TORCH
