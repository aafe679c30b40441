"""The model that an evaluation is given by a path."""

from support.checkpoint_files import tiny_model, write_checkpoint
from transformers import AutoModelForCausalLM

from rgtrain.evaluation.evaluation_model import find_model, opened_model


def test_an_evaluation_takes_a_run_one_of_its_steps_or_that_steps_actor(tmp_path):
    step = tmp_path / "run" / "checkpoints" / "global_step_20"
    write_checkpoint(step, tiny_model(), world_size=2)
    for path in (tmp_path / "run", step, step / "actor"):
        with opened_model(find_model(str(path))) as model:
            AutoModelForCausalLM.from_pretrained(model.folder)
        assert not model.folder.exists()
