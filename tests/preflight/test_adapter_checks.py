"""A run does not start from an adapter whose checkpoints could not be exported."""

import json
from types import SimpleNamespace

import pytest

from rgtrain.errors import ConfigError
from rgtrain.preflight.adapter_checks import check_adapter


def run_of(path):
    return SimpleNamespace(model=SimpleNamespace(lora_adapter_path=path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"adapter_config.json' have use_dora true, which can't be exported"),
        ({"trainable_token_indices": [3]}, r"have trainable_token_indices \[3\], which"),
        ({"r": "8"}, "holds no valid LoRA settings"),
    ],
)
def test_an_adapter_that_can_not_be_exported_is_refused(tmp_path, changes, message):
    content = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "use_rslora": True} | changes
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        check_adapter(run_of(str(tmp_path)))


def test_a_plain_adapter_a_hub_name_and_no_adapter_are_accepted(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 16, "use_rslora": true}')
    for path in (None, "owner/adapter", str(tmp_path)):
        check_adapter(run_of(path))


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no adapter_config.json; give the folder of a PEFT adapter"):
        check_adapter(run_of(str(tmp_path)))
