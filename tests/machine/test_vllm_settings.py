"""VLLM_ATTENTION_BACKEND of older instructions is passed on where it is valid, and explained where not."""

import pytest
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from rgtrain.errors import ConfigError
from rgtrain.machine import vllm_settings


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(vllm_settings, "num_gpus", lambda: 1)


def test_the_names_read_from_vllms_source_are_vllms_own():
    assert vllm_settings.known_attention_backends() == set(AttentionBackendEnum.__members__)


def test_unset_or_empty_leaves_the_choice_to_vllm(monkeypatch, on_a_gpu):
    monkeypatch.delenv("VLLM_ATTENTION_BACKEND", raising=False)
    assert vllm_settings.attention_backend() is None
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "")
    assert vllm_settings.attention_backend() is None


def test_a_valid_name_is_passed_on(monkeypatch, on_a_gpu):
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "FLASH_ATTN")
    assert vllm_settings.attention_backend() == "FLASH_ATTN"


def test_a_name_that_is_gone_is_explained(monkeypatch, on_a_gpu):
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "XFORMERS")
    with pytest.raises(ConfigError, match=r"XFORMERS: this vLLM has no such backend.*FLASH_ATTN.*unset"):
        vllm_settings.attention_backend()


def test_on_a_cpu_there_is_nothing_to_choose(monkeypatch):
    monkeypatch.setattr(vllm_settings, "num_gpus", lambda: 0)
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "FLASH_ATTN")
    with pytest.raises(ConfigError, match="one attention only"):
        vllm_settings.attention_backend()
