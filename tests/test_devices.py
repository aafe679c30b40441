"""What the CPU computes in is what it has instructions for."""

import platform

import pytest
import torch

from rgtrain import devices
from rgtrain.devices import compute_dtype, cpu_dtype


@pytest.mark.skipif(platform.machine() != "x86_64", reason="torch answers this for x86 only")
def test_bf16_is_chosen_exactly_where_torch_finds_instructions_for_it():
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert cpu_dtype() == ("bfloat16" if has_bf16 else "float32")


def test_a_gpu_computes_in_bf16_whatever_the_cpu_can(monkeypatch):
    monkeypatch.setattr(devices, "num_gpus", lambda: 1)
    assert compute_dtype() == "bfloat16"
