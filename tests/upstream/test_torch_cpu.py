"""The functions that verl calls on an accelerator work on a CPU."""

import psutil
import pytest
import torch

from rgtrain.upstream import torch_cpu


@pytest.mark.parametrize("asked", ["cpu:gloo,cpu:gloo", "gloo", None])
def test_the_backend_of_cpu_is_named_once(asked):
    given = []
    init = torch_cpu.naming_cpu_once(lambda backend, *arguments, **options: given.append((backend, arguments, options)))
    init(asked, 3, rank=1)
    assert given == [("cpu:gloo" if asked == "cpu:gloo,cpu:gloo" else asked, (3,), {"rank": 1})]


def test_random_numbers_continue_from_a_saved_state():
    state = torch_cpu.get_rng_state()
    first = torch.rand(4)
    torch_cpu.set_rng_state(state)
    assert torch.equal(torch.rand(4), first)


def test_memory_is_measured_on_this_machine():
    free, total = torch_cpu.mem_get_info()
    assert 0 < free <= total == psutil.virtual_memory().total
    assert 0 < torch_cpu.memory_allocated() == pytest.approx(torch_cpu.max_memory_reserved(), rel=0.1)


def test_pinning_returns_the_tensor_unchanged():
    tensor = torch.ones(2)
    assert torch_cpu.pin_memory(tensor) is tensor
