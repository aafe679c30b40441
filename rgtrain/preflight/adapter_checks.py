"""Check the LoRA adapter from which a run continues."""

from pathlib import Path

from rgtrain.checkpoints.adapter_config import read_adapter_config
from rgtrain.checkpoints.untrusted_files import read_json_object
from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError
from rgtrain.models.model_lookup import ADAPTER_CONFIG

_MAX_CONFIG_BYTES = 2**20


def check_adapter(config: RunConfig) -> None:
    """Check that the checkpoints of a run that starts from an adapter can be exported.

    Raises:
        ConfigError: The adapter in `lora_adapter_path` has settings that the export refuses.
    """
    given = config.model.lora_adapter_path
    # verl also takes paths of remote file systems, and peft takes names on the hub.
    if not given or not (folder := Path(given).expanduser()).is_dir():
        return
    path = folder / ADAPTER_CONFIG
    try:
        content = read_json_object(path, max_bytes=_MAX_CONFIG_BYTES, inside=Path(path.absolute().anchor))
    except FileNotFoundError:
        raise ConfigError(
            f"lora_adapter_path {str(folder)!r} has no {ADAPTER_CONFIG}; give the folder of a PEFT adapter"
        ) from None
    read_adapter_config(content, where=str(path))
