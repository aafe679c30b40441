"""A run that asks for more GPUs than the machine has is refused."""

import pytest
from support.experiments import small_with_model
from support.preflights import check_plain

from rgtrain.errors import ConfigError


def test_a_run_that_asks_for_a_missing_gpu_is_refused(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="no GPU is available; set hardware=cpu"):
        check_plain(small_with_model(tiny_model, tmp_path / "run", "hardware=gpu"))
