"""Check that engine=fast trains models of this family right, before the model is loaded."""

from collections.abc import Mapping
from typing import Any

from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError
from rgtrain.models.family_layouts import CRITICS, PADDED_ROWS, REFUSED, SHARED_PROMPTS
from rgtrain.preflight.training_model import find_model

_PATH = "actor_rollout_ref.model.path"
_ENGINE = "set engine=verl to train it with verl's own engine"


def check_model_family(config: RunConfig) -> list[str]:
    """Check that the fast engine can train a model of this family.

    Returns:
        A warning if the family is untried. The engine then tests the model at the start.

    Raises:
        ConfigError: No engine, or only verl's, can train it.
    """
    if config.engine == "verl":
        return []
    found = find_model(config).config
    return [] if found is None else check_family(config.model.path, found, has_critic=bool(config.critic.enable))


def check_family(path: str, config: Mapping[str, Any], *, has_critic: bool = False) -> list[str]:
    """Check the content of a model's config.json; see `check_model_family`."""
    family, [architecture, *_] = str(config.get("model_type")), config.get("architectures") or [""]
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
            f"the model family {family} is untried with engine=fast, so a self-test at the start will stop the run if "
            f"the model would be trained wrong; in that case, {_ENGINE}"
        ]
    if has_critic and family not in CRITICS:
        raise ConfigError(
            f"{_PATH}={path} is of the family {family}, which has no value model in transformers for the critic; set "
            "an algorithm without a critic, such as algorithm=grpo"
        )
    return []
