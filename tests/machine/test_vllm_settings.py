"""The environment variable VLLM_ATTENTION_BACKEND is passed on if it is valid, and never stops a start if not."""

import pytest
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from rgtrain.machine import vllm_settings


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(vllm_settings, "num_gpus", lambda: 1)


def test_the_names_read_from_vllms_source_are_those_of_its_enum():
    assert vllm_settings.known_attention_backends() == set(AttentionBackendEnum.__members__)


def test_vllm_chooses_if_the_variable_is_unset_or_empty(monkeypatch, on_a_gpu):
    monkeypatch.delenv("VLLM_ATTENTION_BACKEND", raising=False)
    assert vllm_settings.attention_backend() is None
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "")
    assert vllm_settings.attention_backend() is None


@pytest.mark.parametrize("name", ["FLASH_ATTN", "flash_attn", "Flash_Attn", " flash_attn "])
def test_a_valid_name_is_passed_on_in_any_case(monkeypatch, on_a_gpu, name):
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", name)
    assert vllm_settings.attention_backend() == "FLASH_ATTN"
    assert vllm_settings.attention_backend_warning() is None


@pytest.mark.parametrize("name", ["XFORMERS", "xformers", "FLASH_ATTN_VLLM_V1", "flash-atn"])
def test_a_name_that_vllm_lacks_gets_a_warning_and_vllm_chooses(monkeypatch, on_a_gpu, name):
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", name)
    assert vllm_settings.attention_backend() is None
    warning = vllm_settings.attention_backend_warning()
    assert f"VLLM_ATTENTION_BACKEND={name} has no effect, because the installed vLLM has no such backend" in warning


@pytest.mark.parametrize("name", ["xformers", "FLASH_ATTN"])
def test_on_a_cpu_any_name_gets_a_warning(monkeypatch, name):
    monkeypatch.setattr(vllm_settings, "num_gpus", lambda: 0)
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", name)
    assert vllm_settings.attention_backend() is None
    assert "on a CPU vLLM has only one attention backend; unset it" in vllm_settings.attention_backend_warning()


def test_without_the_variable_there_is_no_warning(monkeypatch, on_a_gpu):
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "")
    assert vllm_settings.attention_backend_warning() is None
