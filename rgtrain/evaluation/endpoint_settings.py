"""Settings of an OpenAI-compatible endpoint: its address, its key and the limits of its requests."""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from rgtrain.config.value_rules import TEXT, Rule, number, whole_number
from rgtrain.errors import ConfigError, choose_from
from rgtrain.evaluation.declared_keys import declare, keys_of
from rgtrain.provenance import mask_secrets

# A shorter secret may also be an ordinary word in a message.
_MIN_SECRET_CHARS = 6


@dataclass(frozen=True)
class EndpointSettings:
    """An endpoint and one of its models. Declared fields are keys of the evaluation file's `endpoint` mapping.

    A failed request is retried, first after 0.5 s and later after up to 8 s.
    """

    base_url: str
    model: str
    api_key_env: str = field(
        default="OPENAI_API_KEY",
        metadata=declare(
            "environment variable that holds the API key, which is never written to a file",
            Rule("the name of an environment variable", TEXT.allows),
        ),
    )
    max_concurrent: int = field(
        default=64, metadata=declare("maximum number of requests in flight at a time", whole_number(1))
    )
    max_retries: int = field(
        default=20,
        metadata=declare(
            "retries of a request after status 408, 409, 425, 429 or 5xx, a lost connection, a timeout, or a reply "
            "that is not a completion",
            whole_number(0),
        ),
    )
    timeout_s: float = field(
        default=600.0,
        metadata=declare(
            "time after which a request without a complete reply counts as failed",
            number(lambda value: value > 0, "a number of seconds above 0"),
        ),
    )
    max_refused_share: float = field(
        default=0.05,
        metadata=declare(
            "share of the requests that the endpoint may refuse for good before the evaluation fails",
            number(lambda value: 0 <= value <= 1, "a number from 0 to 1"),
        ),
    )

    # The evaluation file's own key; its values are sent with every request.
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def api_key(self) -> str:
        """The key from the environment, or a placeholder if it has none, because a local server needs no key."""
        # A key that was read from a file often ends with a line break.
        return os.environ.get(self.api_key_env, "").strip() or "none"

    @property
    def shown_url(self) -> str:
        """The URL without its secrets, for messages and files."""
        return mask_secrets(self.base_url)

    def masked(self, text: str) -> str:
        """Return `text` without the endpoint's secrets, which the endpoint may have repeated in a message."""
        url = urlsplit(self.base_url)
        user, password = unquote(url.username or ""), unquote(url.password or "")
        # A URL with only a token has it in place of the user name. Clients send both encoded in base64.
        secrets = [self.api_key, password or user, base64.b64encode(f"{user}:{password}".encode()).decode()]
        for secret in [*secrets, *(value for _, value in parse_qsl(url.query))]:
            if len(secret) >= _MIN_SECRET_CHARS:
                text = text.replace(secret, "***")
        return mask_secrets(text)


def parse_endpoint(raw: Mapping[str, Any], *, base_url: str | None, model: str) -> EndpointSettings:
    """Check the settings of an endpoint.

    Args:
        raw: The evaluation file's `endpoint`, such as `{max_concurrent: 8}`.
        base_url: The endpoint's address.
        model: The name of the model at the endpoint.

    Returns:
        The settings.

    Raises:
        ConfigError: The address cannot be used, or a setting is unknown or has a value that is not allowed.
    """
    if not base_url or not base_url.startswith(("http://", "https://")) or not _has_host(base_url):
        raise ConfigError(
            f"model_path openai://{model} needs the endpoint's address, but base_url is {_shown(base_url)}; "
            "set base_url to an address such as http://localhost:8000/v1"
        )
    keys = keys_of(EndpointSettings)
    for name, value in raw.items():
        if name not in keys:
            raise ConfigError(f"endpoint has no setting {name!r}; {choose_from(name, keys)}")
        keys[name].check(value, prefix="endpoint's ")
    return EndpointSettings(base_url, model, **raw)


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:  # an invalid port, or unmatched brackets
        return False


def _shown(url: str | None) -> str:
    # Without a scheme, the password would not be recognised.
    return repr(url) if not url else repr(mask_secrets(f"none://{url}").removeprefix("none://"))
