"""Checkpoints are compared with the free space of the disk."""

from support.experiments import plain_project_experiment
from support.preflights import preflight_only


def test_checkpoints_that_do_not_fit_on_the_disk_are_an_error(tmp_path, quick):
    words = ["hardware=1x80gb", "model=qwen2.5_0.5b", "trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=null"]
    code, text = preflight_only(
        plain_project_experiment("quickstart", tmp_path / "run", *words, "trainer.total_training_steps=2000")
    )
    assert code == 2
    assert "GB of checkpoints will not fit into" in text
