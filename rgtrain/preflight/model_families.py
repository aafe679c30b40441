"""Families of models that the fast engine trains, with their layouts, and families that it refuses.

The tables hold model types of transformers. tests/training/update/test_model_families.py measures every entry with a
tiny random model. For other families, the engine's self-test decides at the start (rgtrain/training/update/layouts.py).
"""

from collections.abc import Mapping
from typing import Any

from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError
from rgtrain.preflight.training_model import model_config

_PATH = "actor_rollout_ref.model.path"
_ENGINE = "set engine=verl to train it with verl's own engine"

# Attention alone carries information between tokens, and every layer takes the project's attention.
SHARED_PROMPTS = frozenset(
    {
        "afmoe",
        "apertus",
        "arcee",
        "aria_text",
        "bitnet",
        "cohere",
        "cohere2",
        "cohere2_moe",
        "cwm",
        "deepseek_v2",
        "deepseek_v3",
        "dots1",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone4",
        "exaone_moe",
        "flex_olmo",
        "gemma",
        "gemma3_text",
        "gemma4_text",
        "glm",
        "glm4",
        "glm4_moe",
        "glm4_moe_lite",
        "gpt_bigcode",
        "granite",
        "granitemoe",
        "granitemoeshared",
        "helium",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "hy_v3",
        "hyperclovax",
        "jais2",
        "jetmoe",
        "laguna",
        "llama",
        "mellum",
        "minimax_m2",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "nanochat",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "phi",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "solar_open",
        "starcoder2",
        "youtu",
    }
)
# Layers with a state, chunks, sinks, soft caps on attention, or other attention code.
PADDED_ROWS = frozenset(
    {
        "bamba",
        "diffllama",
        "falcon_h1",
        "gemma2",
        "gpt_oss",
        "granitemoehybrid",
        "jamba",
        "lfm2",
        "lfm2_moe",
        "llama4_text",
        "minimax",
        "nemotron",
        "olmo_hybrid",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_next",
        "recurrent_gemma",
        "stablelm",
        "vaultgemma",
    }
)
_DEPENDS_ON_LATER = "its log-probabilities in transformers depend on later tokens"
_NOT_LOADED = "verl can't load it, because its configuration has no num_key_value_heads"
# Families that no layout trains right, each with the reason.
REFUSED: Mapping[str, str] = {
    "doge": _DEPENDS_ON_LATER,
    "nemotron_h": _DEPENDS_ON_LATER,
    "zamba2": _DEPENDS_ON_LATER,
    "hrm_text": "its gradients depend on the other sequences of a batch",
    "biogpt": _NOT_LOADED,
    "bloom": _NOT_LOADED,
    "falcon": _NOT_LOADED,
    "falcon_mamba": _NOT_LOADED,
    "gpt_neox": _NOT_LOADED,
    "mamba": _NOT_LOADED,
    "mamba2": _NOT_LOADED,
    "mpt": _NOT_LOADED,
    "opt": _NOT_LOADED,
    "persimmon": _NOT_LOADED,
}


def check_model_family(config: RunConfig) -> list[str]:
    """Check that the fast engine can train a model of this family.

    Returns:
        A warning if the family is untried. The engine then tests the model at the start.

    Raises:
        ConfigError: No engine, or only verl's, can train it.
    """
    if config.engine == "verl":
        return []
    found = model_config(config.model.path)
    return [] if found is None else check_family(config.model.path, found)


def check_family(path: str, config: Mapping[str, Any]) -> list[str]:
    """Check the content of a model's config.json; see `check_model_family`."""
    family, [architecture, *_] = config.get("model_type"), config.get("architectures") or [""]
    if config.get("is_encoder_decoder"):
        raise ConfigError(f"{_PATH}={path} is an encoder-decoder ({family}); use a decoder such as Qwen2.5")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else quantization
        raise ConfigError(
            f"{_PATH}={path} has quantized weights ({method}), which can't be trained; use its version in bf16"
        )
    if architecture and not architecture.endswith(("ForCausalLM", "ForConditionalGeneration")):
        raise ConfigError(
            f"{_PATH}={path} is a {architecture}, which generates no text; use a model whose architecture ends with "
            "ForCausalLM"
        )
    if family in REFUSED:
        raise ConfigError(
            f"{_PATH}={path} is of the family {family}, which engine=fast can't train, because {REFUSED[family]}; use "
            f"another model, or {_ENGINE}"
        )
    if family not in SHARED_PROMPTS | PADDED_ROWS:
        return [
            f"the model family {family} is untried with engine=fast; a self-test at the start stops the run if the "
            f"model would be trained wrong; in that case, {_ENGINE}"
        ]
    return []
