"""Load PPO's critic with the attention that the configuration sets, because verl always uses flash-attn."""

from typing import Any

import torch


def load_value_model(local_path: str, torch_dtype: torch.dtype, model_config: Any, trust_remote_code: bool) -> Any:
    """Load the model in `local_path` with a new output layer that gives one value per token.

    The parameters are those of verl's `load_valuehead_model`.

    Args:
        local_path: The folder of the model.
        torch_dtype: The dtype of the parameters.
        model_config: The model's configuration in transformers, with the attention to use.
        trust_remote_code: Whether the model may run code from its folder.

    Returns:
        The critic.
    """
    from transformers import AutoModelForTokenClassification

    return AutoModelForTokenClassification.from_pretrained(
        local_path,
        dtype=torch_dtype,
        config=model_config,
        attn_implementation=model_config._attn_implementation,
        trust_remote_code=trust_remote_code,
    )
