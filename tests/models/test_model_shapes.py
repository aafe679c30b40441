from support.published_models import PUBLISHED_NUM_PARAMETERS

from rgtrain.models.model_shapes import SHAPES


def test_every_shape_has_the_published_number_of_parameters():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    found = {}
    for name, shape in SHAPES.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
        found[name] = model.num_parameters()
    assert found == PUBLISHED_NUM_PARAMETERS
