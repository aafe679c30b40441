"""Where an OpenAI-compatible endpoint is and how it is asked."""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from rgtrain.config.value_rules import Rule
from rgtrain.errors import ConfigError, choose_from
from rgtrain.evaluation.declared_keys import TEXT, declare, keys_of, number, whole_number
from rgtrain.provenance import mask_secrets

# A shorter secret may also be an ordinary word of a message.
_MIN_SECRET_CHARS = 6


@dataclass(frozen=True)
class EndpointSettings:
    """An endpoint and one of its models. Declared fields are keys of the evaluation file's `endpoint`.

    A failed request is tried again, first after 0.5 s and later after up to 8 s.
    """

    base_url: str
    model: str
    api_key_env: str = field(
        default="OPENAI_API_KEY",
        metadata=declare(
            "the environment variable with the key, which never stands in a file",
            Rule("the name of an environment variable", TEXT.allows),
        ),
    )
    max_concurrent: int = field(default=64, metadata=declare("requests that are in flight at a time", whole_number(1)))
    max_retries: int = field(
        default=20,
        metadata=declare(
            "how often a request is tried again after status 408, 409, 429 or 5xx, a lost connection or a timeout",
            whole_number(0),
        ),
    )
    timeout_s: float = field(
        default=600.0,
        metadata=declare(
            "a request has failed if it has no answer after this time",
            number(lambda value: value > 0, "seconds above 0"),
        ),
    )

    @property
    def api_key(self) -> str:
        """The key in the environment, or a placeholder if there is none: a local server asks for none."""
        return os.environ.get(self.api_key_env) or "none"

    @property
    def shown_url(self) -> str:
        """The URL without its secrets, for messages and files."""
        return mask_secrets(self.base_url)

    def masked(self, text: str) -> str:
        """`text` without the endpoint's secrets, even if the endpoint sent them back."""
        url = urlsplit(self.base_url)
        user, password = unquote(url.username or ""), unquote(url.password or "")
        # A token alone stands in the place of the user. Both travel in base64.
        secrets = [self.api_key, password or user, base64.b64encode(f"{user}:{password}".encode()).decode()]
        for secret in [*secrets, *(value for _, value in parse_qsl(url.query))]:
            if len(secret) >= _MIN_SECRET_CHARS:
                text = text.replace(secret, "***")
        return mask_secrets(text)


def parse_endpoint(raw: Mapping[str, Any], *, base_url: str | None, model: str) -> EndpointSettings:
    """Settings from an evaluation file's `endpoint: {max_concurrent: 8}`, checked. Raises ConfigError on others."""
    if not base_url or not base_url.startswith(("http://", "https://")) or not _has_host(base_url):
        raise ConfigError(
            f"model_path is openai://{model}, so base_url has to say where it is, not {_shown(base_url)}; "
            "write base_url: http://localhost:8000/v1"
        )
    keys = keys_of(EndpointSettings)
    for name, value in raw.items():
        if name not in keys:
            raise ConfigError(f"endpoint has no setting {name!r}; {choose_from(name, keys)}")
        keys[name].check(value, of="endpoint's ")
    return EndpointSettings(base_url, model, **raw)


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:  # of a port that is no number, or of brackets that do not match
        return False


def _shown(url: str | None) -> str:
    # Without a scheme, the part with a password would not be recognised.
    return repr(url) if not url else repr(mask_secrets(f"none://{url}").removeprefix("none://"))
