from pathlib import Path

import pytest

from rgtrain.models import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random two-layer Llama with the embedded model's tokenizer and a context of 2048 tokens."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
