"""Models with random weights, for tests and measurements: a tiny one, and any known shape."""

from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError, choose_from
from rgtrain.models.embedded_model import write_model_folder
from rgtrain.models.model_shapes import SHAPES


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

    return write_model_folder(Path(path), write)


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

    return write_model_folder(path, write)
