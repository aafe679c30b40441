"""Keep secrets out of the configuration that verl's trackers record."""

import os
from collections.abc import Callable
from typing import Any

from rgtrain.provenance import masked_values


def masking_secrets(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap verl's factory of trackers so that they record the configuration without its secrets."""

    def tracking(*, config: dict[str, Any], **arguments: Any) -> Any:
        # The proxy's URL may hold a password that W&B needs. W&B also reads it from the environment.
        if proxy := config["trainer"].pop("wandb_proxy", None):
            os.environ["WANDB_HTTPS_PROXY"] = proxy
        return original(config=masked_values(config), **arguments)

    return tracking
