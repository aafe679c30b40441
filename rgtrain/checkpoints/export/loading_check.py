"""Load an exported model as its users will: by transformers, with a strict comparison of keys, and by vLLM."""

import copy
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from rgtrain.checkpoints.export.tokenizer_format import CHAT_TEMPLATE
from rgtrain.checkpoints.hugging_face import MAX_PARSED_BYTES, TOKENIZER_CONFIG
from rgtrain.checkpoints.shards.layout import VALUE_HEAD, ModelLayout
from rgtrain.checkpoints.shards.safetensors_reader import read_safetensors
from rgtrain.checkpoints.untrusted_files import first_line, printable, quiet_libraries, read_json_object
from rgtrain.errors import ConfigError
from rgtrain.machine.vllm_settings import vllm_environment

ADAPTER_CONFIG = "adapter_config.json"
GENERATION_CONFIG = "generation_config.json"
# Loading by vLLM takes about 15 s and the time to read the files.
_VLLM_LIMIT_S = 1800.0
_VLLM_PROGRAM = Path(__file__).with_name("vllm_loading.py")
_VLLM_SETTINGS = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def check_loading(folder: Path, layout: ModelLayout, *, trust: bool = False) -> None:
    """Load an exported folder by transformers, or by PEFT if it holds an adapter, without reading the weights.

    Args:
        folder: The exported folder.
        layout: The tensors of the model.
        trust: Whether the model's own code may run.

    Raises:
        ConfigError: The model, its tokenizer or its generation config can't be loaded, or the files lack a tensor of
            the model, have another one or one of another shape.
    """
    with quiet_libraries(), _without_progress_bars():
        # The model reads it too, but its error would not name the file.
        if (folder / GENERATION_CONFIG).is_file():
            _check_generation_config(folder)
        if (folder / ADAPTER_CONFIG).is_file():
            _check_adapter(folder, layout)
        else:
            _check_model(folder, layout, trust=trust)
        if (folder / TOKENIZER_CONFIG).is_file():
            _check_tokenizer(folder, trust=trust)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _check_model(folder: Path, layout: ModelLayout, *, trust: bool) -> None:
    try:
        # On the meta device, transformers compares names and shapes without reading the values.
        _, found = layout.auto_class.from_pretrained(
            folder,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=trust,
            local_files_only=True,
        )
    except Exception as error:  # Hundreds of model classes raise any exception.
        raise _not_loaded("model", error, "give HF_CONFIG_DIR with the config of the trained model") from error
    problems = {
        "lacks": sorted(found["missing_keys"]),
        "does not know": sorted(set(found["unexpected_keys"]) - set(VALUE_HEAD)),
        "has another shape of": sorted(str(mismatched[0]) for mismatched in found["mismatched_keys"]),
        "can't convert": sorted(map(str, found["error_msgs"])),
    }
    for verb, names in problems.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ConfigError(
                f"transformers can't load the exported model, because it {verb} "
                f"{printable(names[0], max_characters=120)!r}{more}: give HF_CONFIG_DIR with the config of the trained "
                "model"
            )


def _check_adapter(folder: Path, layout: ModelLayout) -> None:
    import peft

    try:
        config = peft.PeftConfig.from_peft_type(**read_json_object(folder / ADAPTER_CONFIG, max_bytes=MAX_PARSED_BYTES))
        model = peft.get_peft_model(copy.deepcopy(layout.model), config, low_cpu_mem_usage=True)
        expected = {name: tuple(value.shape) for name, value in peft.get_peft_model_state_dict(model).items()}
    except Exception as error:  # PEFT checks few values of the config.
        raise _not_loaded("adapter", error, "export with --lora merged") from error
    written = {name: tensor.shape for name, tensor in read_safetensors(folder).items()}
    if odd := sorted(name for name in expected.keys() | written.keys() if expected.get(name) != written.get(name)):
        raise ConfigError(
            f"PEFT can't load the exported adapter, because its tensor {odd[0]!r} has shape "
            f"{written.get(odd[0], 'none')} in the file but {expected.get(odd[0], 'none')} in the model: export with "
            "--lora merged"
        )


def _check_tokenizer(folder: Path, *, trust: bool) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
    except ImportError as error:
        raise _not_loaded("tokenizer", error, "install the package that it names") from error
    except Exception as error:  # tokenizers raises plain Exceptions, and a damaged file can raise anything.
        raise _not_loaded("tokenizer", error, "give HF_CONFIG_DIR with a working one") from error
    if (folder / CHAT_TEMPLATE).is_file() and not tokenizer.chat_template:
        raise ConfigError(f"the exported tokenizer does not use its {CHAT_TEMPLATE}: restore it in HF_CONFIG_DIR")


def _check_generation_config(folder: Path) -> None:
    try:
        GenerationConfig.from_dict(read_json_object(folder / GENERATION_CONFIG, max_bytes=MAX_PARSED_BYTES))
    except Exception as error:  # transformers raises several kinds for values that don't fit together.
        raise _not_loaded(GENERATION_CONFIG, error, "restore that file in HF_CONFIG_DIR") from error


def _not_loaded(name: str, error: Exception, fix: str) -> ConfigError:
    return ConfigError(f"transformers can't load the exported {name} ({first_line(error)}): {fix}")


def vllm_verdict(folder: Path) -> str:
    """Load an exported model by vLLM in another process, if vLLM is installed.

    Args:
        folder: The exported model, not an adapter.

    Returns:
        The verdict, such as "vLLM 0.31.0: loaded as Qwen3ForCausalLM", or the reason why vLLM could not try.

    Raises:
        ConfigError: vLLM knows the architecture, but can't load the files.
    """
    if importlib.util.find_spec("vllm") is None:
        return "vLLM: not installed, so not tried"
    # -P: the folder of the program is not searched for modules.
    command = [sys.executable, "-P", str(_VLLM_PROGRAM), str(folder)]
    environment = {**os.environ, **vllm_environment(), **_VLLM_SETTINGS}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", timeout=_VLLM_LIMIT_S, check=False
    )
    verdict = [line for line in done.stdout.splitlines() if line.startswith("vLLM ")]
    if done.returncode == 0 and verdict:
        return printable(verdict[-1], max_characters=120)
    said = [line for line in done.stderr.splitlines() if line.strip()] or ["without a message"]
    raise ConfigError(
        f"vLLM can't load the exported model ({printable(said[-1].strip(), max_characters=300)}): export without "
        "--verify if vLLM does not support this model"
    )
