from pathlib import Path

import pytest
from support.checkpoint_files import tiny_model, write_checkpoint


@pytest.fixture
def step(tmp_path) -> Path:
    """Write the checkpoint that two ranks save at step 20, and return its folder."""
    write_checkpoint(tmp_path / "run" / "checkpoints" / "global_step_20", tiny_model(), world_size=2)
    return tmp_path / "run" / "checkpoints" / "global_step_20"
