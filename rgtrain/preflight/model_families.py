"""Check that engine=fast trains models of this family right, before the model is loaded."""

from collections.abc import Mapping
from typing import Any

from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError
from rgtrain.models.family_layouts import CRITICS, PADDED_ROWS, REFUSED, SHARED_PROMPTS, TRAINED_BY_VERL
from rgtrain.preflight.training_model import TrainingModel

_PATH = "actor_rollout_ref.model.path"
_ENGINE = "set engine=verl to train it with verl's own engine"


def check_family(config: RunConfig, model: TrainingModel) -> list[str]:
    """Check that the engine of the run can train a model of this family.

    Returns:
        A warning if the family is untried. The engine then tests the model at the start.

    Raises:
        ConfigError: No engine, or only verl's, can train it.
    """
    if model.config is None or config.engine == "verl":
        return []
    return check_content(model.name, model.config, has_critic=bool(config.critic.enable))


def check_content(name: str, content: Mapping[str, Any], *, has_critic: bool = False) -> list[str]:
    """Check the content of a model's config.json for engine=fast; see `check_family`."""
    family, [architecture, *_] = str(content.get("model_type")), content.get("architectures") or [""]
    if content.get("is_encoder_decoder"):
        raise ConfigError(f"{_PATH}={name} is an encoder-decoder ({family}); use a decoder such as Qwen2.5")
    if quantization := content.get("quantization_config"):
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else quantization
        raise ConfigError(
            f"{_PATH}={name} has quantized weights ({method}), which can't be trained; use its version in bf16"
        )
    if architecture and not architecture.endswith(("ForCausalLM", "ForConditionalGeneration")):
        raise ConfigError(
            f"{_PATH}={name} is a {architecture}, which generates no text; use a model whose architecture ends with "
            "ForCausalLM"
        )
    if family in REFUSED:
        raise ConfigError(
            f"{_PATH}={name} is of the family {family}, which engine=fast can't train, because {REFUSED[family]}; use "
            f"another model{f', or {_ENGINE}' if family in TRAINED_BY_VERL else ''}"
        )
    if family not in SHARED_PROMPTS | PADDED_ROWS:
        return [
            f"the model family {family} is untried with engine=fast, so a self-test at the start will stop the run if "
            f"the model would be trained wrong; in that case, {_ENGINE}"
        ]
    if has_critic and family not in CRITICS:
        raise ConfigError(
            f"{_PATH}={name} is of the family {family}, which has no value model in transformers for the critic; set "
            "an algorithm without a critic, such as algorithm=grpo"
        )
    return []
