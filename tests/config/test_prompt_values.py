"""Files of the prompt are replaced by their content when a configuration is composed."""

import json

import pytest
from omegaconf import OmegaConf

from rgtrain.config import composition
from rgtrain.config.prompt_values import read_examples_file, read_prompt_file
from rgtrain.config.run_config import plain_config
from rgtrain.errors import ConfigError

EXAMPLE = {"question": "What is 1 + 1?", "answer": "2"}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def recorded(**prompt) -> dict:
    """Return the plain `data.prompt` of a configuration whose files are recorded."""
    config = OmegaConf.create({"data": {"prompt": {"system_prompt": None, "examples": None, **prompt}}})
    OmegaConf.set_struct(config, True)
    composition._record_prompt_files(config)
    # verl resolves the configuration too.
    OmegaConf.resolve(config)
    return plain_config(config)["data"]["prompt"]


def test_the_content_of_a_file_is_recorded(tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbf\r\nThink first.\r\nThen answer.\r\n\n")
    for given in ("file://prompt.txt", f"file://{tmp_path}/prompt.txt"):
        assert recorded(system_prompt=given)["system_prompt"] == "Think first.\nThen answer."
    (tmp_path / "examples.jsonl").write_text(f"{json.dumps(EXAMPLE)}\n\n")
    for given in ("examples.jsonl", "file://examples.jsonl"):
        assert recorded(examples=given)["examples"] == [EXAMPLE]


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME} dollars", "a ${", "${{x}} and $x$", "an escaped \\${x}", "the ${x}\\"]
)
def test_a_text_in_a_file_is_never_taken_for_a_reference(tmp_path, text):
    (tmp_path / "prompt.txt").write_text(text)
    (tmp_path / "examples.jsonl").write_text(json.dumps({"question": text, "answer": text}))
    prompt = recorded(system_prompt="file://prompt.txt", examples="examples.jsonl")
    assert prompt == {"system_prompt": text, "examples": [{"question": text, "answer": text}]}


def test_other_values_stay_as_they_are():
    prompt = {"system_prompt": "DeepSeekZero", "examples": [EXAMPLE]}
    assert recorded(**prompt) == prompt
    assert recorded() == {"system_prompt": None, "examples": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"is 'file://prompt.txt', which cannot be read \(No such file or directory\); give a file relative to"),
        (b" \n", "which is empty; write the prompt into it"),
        (b"direct\n", "which holds only direct; write the text of the prompt into it"),
        (b"pkg://os.system", "which holds only pkg://os.system"),
        (b"file:///etc/passwd and more", "which holds only file:///etc/passwd"),
        (b"one line\ncaf\xe9 au lait", "whose line 2 is not UTF-8 text; save it as UTF-8"),
        (b"a b" * 500_000, "which has more than 1048576 bytes; shorten it"),
    ],
)
def test_an_unusable_prompt_file_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "prompt.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=f"^data.prompt.system_prompt .*{message}"):
        read_prompt_file("file://prompt.txt", key="data.prompt.system_prompt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "which has 0 examples; give 1 to 100"),
        ("{}\n" * 101, "which has 101 examples; give 1 to 100"),
        ('{"question": "a"}\n{"question"}\n', "whose line 2 is no JSON"),
        ("[1]\n", "whose line 1 holds no JSON object; write"),
        ("[" * 100_000, "whose line 1 is no JSON"),
    ],
)
def test_an_unusable_file_of_examples_is_refused(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=f"^examples is 'a.jsonl', {message}"):
        read_examples_file("a.jsonl", key="examples")
    with pytest.raises(ConfigError, match="which cannot be read"):
        read_examples_file("b.jsonl", key="examples")
