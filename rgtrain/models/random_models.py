"""Models with random weights for tests and measurements: a tiny one, and any known shape."""

from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError, choose_from
from rgtrain.models.embedded_model import write_model_folder
from rgtrain.models.model_shapes import SHAPES

# The tokens that a model with a mean response length samples from. The first tokens of many vocabularies are special.
_FIRST_CHOSEN_TOKEN = 1000
_MAX_MEAN_RESPONSE = 40_000
# The size of the common part of all embeddings, which are about 0.8 long, and the raise of the chosen tokens' logits.
_COMMON_SIZE, _RAISED_LOGIT = 8.0, 25.0


def make_tiny_model(path: Path, *, seed: int = 0) -> Path:
    """Write a random two-layer Llama (3.2 million parameters, fp32) with the embedded model's tokenizer.

    Args:
        path: The folder of the model. A model that is there already is kept.
        seed: The seed of the weights.

    Returns:
        `path`.
    """

    def write(folder: Path, tokenizer: Any) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            head_dim=32,  # the smallest that vLLM supports on a CPU
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


def make_random_model(
    path: Path,
    *,
    like: str,
    num_layers: int | None = None,
    mean_response_tokens: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a random bf16 model of a known shape, with the embedded model's tokenizer.

    Use it to measure speed and memory if the model itself is not available. Its vocabulary has the size of the known
    shape, so it may sample tokens that the tokenizer decodes to an empty text. Weights are initialised on the GPU if
    there is one.

    Args:
        path: A new or empty folder.
        like: The name of a shape in SHAPES.
        num_layers: The number of layers; None for the shape's number.
        mean_response_tokens: The mean length of responses. Lengths are about geometrically distributed, so some are
            several times as long. None for a model that hardly ever ends a response.
        seed: The seed of the weights.

    Returns:
        `path`.

    Raises:
        ConfigError: The name is unknown, a number is out of range, or `path` holds something.
    """
    if like not in SHAPES:
        raise ConfigError(f"unknown model shape {like!r}; {choose_from(like, SHAPES)}")
    if num_layers is not None and num_layers < 1:
        raise ConfigError(f"the number of layers is {num_layers}; give 1 or more")
    if mean_response_tokens is not None and not 2 <= mean_response_tokens <= _MAX_MEAN_RESPONSE:
        raise ConfigError(f"the mean length of responses is {mean_response_tokens}; give 2 to {_MAX_MEAN_RESPONSE}")
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is not an empty folder; give a new or empty folder, or remove it")

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
        if mean_response_tokens is not None:
            _limit_to_tokens(model, mean_response_tokens, eos_token=tokenizer.eos_token_id)
        model.save_pretrained(folder, max_shard_size="4GB")

    return write_model_folder(path, write)


def _limit_to_tokens(model: Any, num_tokens: int, *, eos_token: int) -> None:
    """Let a random model sample about uniformly from `num_tokens` tokens, of which one ends the response.

    All embeddings get a common part, so the hidden states of all positions point to nearly the same direction. The
    output rows of the chosen tokens get a part in this direction, which raises their logits equally.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    chosen = torch.arange(_FIRST_CHOSEN_TOKEN, _FIRST_CHOSEN_TOKEN + num_tokens)
    # If the token that ends a response is among them anyway, it counts once.
    chosen = torch.cat([chosen[chosen != eos_token][: num_tokens - 1], torch.tensor([eos_token])])
    prompt = torch.randint(len(embedding), (1, 256), generator=generator).to(embedding.device)
    with torch.no_grad():
        common = torch.nn.functional.normalize(torch.randn(embedding.shape[1], generator=generator), dim=0)
        embedding += (_COMMON_SIZE * common).to(embedding)
        hidden = model.get_decoder()(prompt).last_hidden_state[0].float().mean(0)
        direction, size = torch.nn.functional.normalize(hidden, dim=0), hidden.norm()
        # Tied output rows have the common part, too.
        others = (output.float() @ direction).mean()
        rows = output[chosen.to(output.device)].float()
        rows += (others + _RAISED_LOGIT / size - rows @ direction)[:, None] * direction
        output[chosen.to(output.device)] = rows.to(output)
