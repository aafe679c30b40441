"""Send requests to an endpoint: proxies, deadlines, limits of size, and redirects."""

import asyncio
import functools
import ipaddress
import ssl
import urllib.request
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from rgtrain.errors import ConfigError
from rgtrain.evaluation.endpoint_replies import MAX_REPLY_BYTES, HttpReply
from rgtrain.evaluation.endpoint_settings import EndpointSettings
from rgtrain.provenance import mask_secrets

_MAX_REDIRECTS = 3


class NoReply(Exception):
    """No complete reply arrived. The message is the cause, not masked yet."""


class NoReplyInTime(NoReply):
    """No complete reply arrived before the deadline."""


class EndpointTransport:
    """An HTTP client for one endpoint. Use it as an asynchronous context manager, within one event loop.

    Attributes:
        proxy: The proxy's address, or None.
    """

    def __init__(self, settings: EndpointSettings):
        self._settings = settings
        self.proxy = find_proxy(settings.base_url)
        most = settings.max_concurrent
        self._client = httpx.AsyncClient(
            # Without a transport, the client would use the environment's proxies also for loopback.
            transport=httpx.AsyncHTTPTransport(
                verify=_ssl_context(),
                proxy=self.proxy,
                limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
            ),
            timeout=None,
            headers={"Accept-Encoding": "identity", "Authorization": f"Bearer {settings.api_key}"},
        )

    async def __aenter__(self) -> "EndpointTransport":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def exchange(
        self, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float, base_url: str | None = None
    ) -> HttpReply:
        """Send one request and return the whole reply.

        Args:
            path: The path behind the base URL, such as "chat/completions".
            body: The JSON body of a POST request; None for a GET request.
            timeout_s: The time for everything, until the last byte of the reply.
            base_url: In place of the settings' base URL.

        Returns:
            The reply, with any status.

        Raises:
            NoReply: The connection failed, or the reply was cut off or too long.
            NoReplyInTime: The reply was too slow.
        """
        url = join_url(base_url or self._settings.base_url, path)
        try:
            async with asyncio.timeout(timeout_s):
                request = self._client.build_request("GET" if body is None else "POST", url, json=body)
                for _ in range(_MAX_REDIRECTS):
                    reply, redirected = await self._send(request)
                    if redirected is None:
                        break
                    request = redirected
                return reply
        except TimeoutError as error:
            raise NoReplyInTime(f"no complete reply within {timeout_s:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
            raise NoReply(f"{type(error).__name__}: {error}") from error

    async def _send(self, request: httpx.Request) -> tuple[HttpReply, httpx.Request | None]:
        response = await self._begin(request)
        try:
            parts, num_bytes = [], 0
            async for part in response.aiter_raw():
                parts.append(part)
                num_bytes += len(part)
                if num_bytes > MAX_REPLY_BYTES:
                    raise NoReply(f"the reply has more than {MAX_REPLY_BYTES >> 10} KB")
        finally:
            await response.aclose()
        reply = HttpReply(response.status_code, b"".join(parts), dict(response.headers))
        follow = response.next_request
        # 301 to 303 would turn a POST into a GET, and another server must not receive the key.
        is_same = follow is not None and _origin(follow.url) == _origin(request.url)
        keeps_method = request.method == "GET" or response.status_code in (307, 308)
        return reply, follow if is_same and keeps_method else None

    async def _begin(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the response when its headers have arrived."""
        opened: list[str] = []

        async def note(event: str, _: Mapping[str, Any]) -> None:
            if event.startswith("connection.connect_"):
                opened.append(event)

        request.extensions["trace"] = note
        # A server may close an idle connection just as it is used again. The request is then repeated, at the latest on
        # a new connection.
        while True:
            try:
                return await self._client.send(request, stream=True)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if opened:
                    raise


def check_connection(settings: EndpointSettings) -> None:
    """Check that requests to an endpoint can be sent, without sending one.

    Args:
        settings: The endpoint.

    Raises:
        ConfigError: The address, the key, or the environment's proxy or certificates cannot be used.
    """
    if not (settings.api_key.isascii() and settings.api_key.isprintable()):
        raise ConfigError(
            f"the key in the environment variable {settings.api_key_env} has characters that can't be sent, such as a "
            "line break or a typographic quote; export it again"
        )
    try:
        _ssl_context()
    except OSError as error:
        raise ConfigError(
            f"the certificates in SSL_CERT_FILE or SSL_CERT_DIR cannot be read ({error}); give a PEM file, or unset "
            "the variable"
        ) from error
    proxy = find_proxy(settings.base_url)
    try:
        httpx.AsyncHTTPTransport(verify=_ssl_context(), proxy=proxy)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        shown = mask_secrets(str(proxy))
        raise ConfigError(
            f"the environment's proxy {shown} cannot be used ({mask_secrets(str(error))}); set http_proxy or "
            "https_proxy to an address such as http://HOST:PORT, or add "
            f"{urlsplit(settings.base_url).hostname} to no_proxy"
        ) from error
    try:
        httpx.URL(join_url(settings.base_url, "models"))
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(
            f"base_url {settings.shown_url} cannot be used ({settings.masked(str(error))}); give an "
            "address such as http://localhost:8000/v1"
        ) from error


def find_proxy(url: str) -> str | None:
    """Return the address of the environment's proxy for a URL.

    Args:
        url: The endpoint's URL.

    Returns:
        The value of `http_proxy` or `https_proxy`, by the URL's scheme, otherwise of `all_proxy`, in lower or upper
        case; None if there is none, if `no_proxy` names the host or its network, or if the host is on loopback.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or is_loopback(host) or _bypasses(host, parts.port, proxies.get("no", "")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine: `localhost`, a name below it, or an address of the loopback network."""
    address = _address(host)
    if address is None:
        return host.lower().rstrip(".") == "localhost" or host.lower().rstrip(".").endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return mapped.is_loopback or mapped.is_unspecified


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Return the context that verifies servers, also by the certificates in SSL_CERT_FILE."""
    return httpx.create_ssl_context()


def _bypasses(host: str, port: int | None, no_proxy: str) -> bool:
    """Return whether `no_proxy` names a host: by its name, a domain above it, its address or a network, or as `*`."""
    address = _address(host)
    for entry in no_proxy.lower().split(","):
        name = entry.strip()
        if name == "*":
            return True
        if port is not None:
            name = name.removesuffix(f":{port}")
        name = name.removeprefix("*").lstrip(".").strip("[]")
        if name and (host == name or host.endswith(f".{name}")):
            return True
        try:
            if address is not None and address in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:
            continue
    return False


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def join_url(base_url: str, path: str) -> str:
    """Return a URL below a base URL.

    Args:
        base_url: The base URL, with or without a slash at its end. Its query is kept.
        path: The path below it, without a slash at its start.

    Returns:
        The URL, without a fragment.
    """
    parts = urlsplit(base_url)
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{path}", parts.query, ""))


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
