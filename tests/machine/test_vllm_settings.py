"""The environment variable VLLM_ATTENTION_BACKEND is passed on if it is valid, and refused with the fix if not."""

import pytest
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from rgtrain.errors import ConfigError
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


def test_a_valid_name_is_passed_on(monkeypatch, on_a_gpu):
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "FLASH_ATTN")
    assert vllm_settings.attention_backend() == "FLASH_ATTN"


def test_a_name_that_vllm_has_removed_is_refused_with_the_fix(monkeypatch, on_a_gpu):
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "XFORMERS")
    with pytest.raises(ConfigError, match=r"XFORMERS, but this vLLM has no such backend.*FLASH_ATTN.*unset"):
        vllm_settings.attention_backend()


def test_a_choice_of_backend_is_refused_on_a_cpu(monkeypatch):
    monkeypatch.setattr(vllm_settings, "num_gpus", lambda: 0)
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "FLASH_ATTN")
    with pytest.raises(ConfigError, match="only one attention backend; unset it"):
        vllm_settings.attention_backend()
