from pathlib import Path

import pytest
from support.checkpoint_files import tiny_model, write_checkpoint


@pytest.fixture
def step(tmp_path) -> Path:
    """Step 20 of a run, saved by two ranks."""
    write_checkpoint(tmp_path / "run" / "checkpoints" / "global_step_20", tiny_model(), world_size=2)
    return tmp_path / "run" / "checkpoints" / "global_step_20"
