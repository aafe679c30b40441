"""Models that no engine, or only verl's, can train are refused from their config.json, and the docs list them."""

import json
import re
import shutil

import pytest
from support.experiments import small_with_model
from support.preflights import check_plain

from rgtrain.errors import ConfigError
from rgtrain.models.family_layouts import CRITICS, PADDED_ROWS, REFUSED, SHARED_PROMPTS
from rgtrain.paths import PROJECT_ROOT
from rgtrain.preflight.model_families import check_content

DECODER = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, r"is an encoder-decoder \(t5\); use a decoder"),
        ({**DECODER, "quantization_config": {"quant_method": "mxfp4"}}, r"has quantized weights \(mxfp4\), .*in bf16"),
        (
            {**DECODER, "architectures": ["LlamaForSequenceClassification"]},
            "ForSequenceClassification, which generates",
        ),
        ({"model_type": "nemotron_h"}, "of the family nemotron_h, which engine=fast can't train, .*use another model$"),
        ({"model_type": "qwen2_5_vl"}, "of the family qwen2_5_vl, which engine=fast can't train, .*or set engine=verl"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_with_the_reason(config, message):
    with pytest.raises(ConfigError, match=message):
        check_content("models/mine", config)


@pytest.mark.parametrize("family", sorted(SHARED_PROMPTS | PADDED_ROWS))
def test_a_family_with_a_layout_passes(family):
    assert check_content("models/mine", {"model_type": family}) == []


def test_an_untried_family_gets_a_warning():
    [warning] = check_content("models/mine", {"model_type": "new_one", "architectures": ["NewOneForCausalLM"]})
    assert warning.startswith("the model family new_one is untried with engine=fast, so a self-test")


def test_a_critic_of_a_family_without_a_value_model_is_refused():
    assert check_content("models/mine", {"model_type": "llama"}, has_critic=True) == []
    with pytest.raises(
        ConfigError, match="the family lfm2, which has no value model .*set an algorithm without a crit"
    ):
        check_content("models/mine", {"model_type": "lfm2"}, has_critic=True)


def test_preflight_reads_the_models_own_configuration(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "doge"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="of the family doge, which engine=fast can't train"):
        check_plain(small_with_model(folder, tmp_path / "run"))
    check_plain(small_with_model(folder, tmp_path / "run", "engine=verl"))


def test_the_docs_list_every_family():
    text = (PROJECT_ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.split("### Model families\n")[1].split("\n## ")[0]
    tables = {"shared prompts": SHARED_PROMPTS, "padded rows": PADDED_ROWS, "refused": REFUSED, "critic": CRITICS}
    [block] = re.findall(r"```text\n(.*?)```", section, flags=re.DOTALL)
    listed = {name: families.split() for name, families in re.findall(r"^(\w[\w ]+): ((?:.|\n )*)", block, flags=re.M)}
    assert listed == {name: sorted(families) for name, families in tables.items()}
