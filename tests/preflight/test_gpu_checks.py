"""A run that asks for more GPUs than there are is refused."""

import pytest
from support.experiments import small_with_model
from support.preflights import check_plain

from rgtrain.errors import ConfigError


def test_more_gpus_than_there_are_is_refused(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="no GPU can be used: choose hardware=cpu"):
        check_plain(small_with_model(tiny_model, tmp_path / "run", "hardware=gpu"))
