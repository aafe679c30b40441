"""Save all settings of a LoRA adapter with a checkpoint."""

import enum
import json
from typing import Any


def adapter_settings(manager: Any, model: Any) -> dict[str, Any] | None:
    """Compute verl's `_get_lora_train_meta` with all fields of the adapter's configuration that differ from PEFT's.

    verl saves the rank, the alpha rounded down, and the task type. An adapter that was loaded from
    `lora_adapter_path` can have others that change the merged weights, such as `use_rslora`.

    Args:
        manager: verl's checkpoint manager.
        model: The model that it saves.

    Returns:
        The fields by name, in the types of JSON; None if the model has no adapter.
    """
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    config = configs.get("default") or next(iter(configs.values()))
    defaults = type(config)().to_dict()
    fields = {name: value for name, value in config.to_dict().items() if value != defaults.get(name)}
    # verl's own reader expects these three.
    fields |= {"r": config.r, "lora_alpha": config.lora_alpha, "task_type": config.task_type or "CAUSAL_LM"}
    settings: dict[str, Any] = json.loads(json.dumps(fields, default=_as_json))
    return settings


def _as_json(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, enum.Enum) else str(value)
