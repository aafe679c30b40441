"""Where an OpenAI-compatible endpoint is and how it is asked."""

import base64
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from rgtrain.errors import ConfigError, choose_from
from rgtrain.provenance import mask_secrets

# A shorter secret may also be an ordinary word of a message.
_MIN_SECRET_CHARS = 6


@dataclass(frozen=True)
class EndpointSettings:
    """An endpoint and one of its models.

    api_key_env: the environment variable with the key; a key never stands in a file, nor in results.
    max_concurrent: requests under way at a time. max_retries: how often a request is tried again after 408, 409, 429,
    5xx, a lost connection or `timeout_s` seconds without an answer, waiting 0.5 s first and up to 8 s later.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    max_concurrent: int = 64
    max_retries: int = 20
    timeout_s: float = 600.0

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
    for key, value in raw.items():
        if key not in _RULES:
            raise ConfigError(f"endpoint has no setting {key!r}; {choose_from(key, _RULES)}")
        allowed, words = _RULES[key]
        if isinstance(value, bool) or not allowed(value):
            raise ConfigError(f"endpoint's {key} is {value!r}; give {words}")
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


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "api_key_env": (lambda value: isinstance(value, str) and bool(value), "the name of an environment variable"),
    "max_concurrent": (lambda value: isinstance(value, int) and value >= 1, "a whole number from 1 up"),
    "max_retries": (lambda value: isinstance(value, int) and value >= 0, "a whole number from 0 up"),
    "timeout_s": (lambda value: isinstance(value, int | float) and 0 < value < float("inf"), "seconds above 0"),
}
