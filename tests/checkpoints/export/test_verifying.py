"""With `verify`, the export compares its result with the checkpoint."""

import re

import pytest
from support.checkpoint_files import (
    tiny_model,
    write_checkpoint,
)

from rgtrain.checkpoints.export import export


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_verification_reports_the_difference_of_the_logits(tmp_path, dtype):
    write_checkpoint(tmp_path / "global_step_1", tiny_model(tie_word_embeddings=True), world_size=2)
    said = []
    export(tmp_path, tmp_path / "exported", dtype=dtype, verify=True, say=said.append)
    (difference,) = re.findall(r"^verified: logits differ by at most (\S+), with magnitudes up to", said[0])
    assert (float(difference) == 0) == (dtype is None)
