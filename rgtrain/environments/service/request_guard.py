"""Check the token, the size and the time of each request before the application reads it."""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_Event = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]
_Application = Callable[[_Event, _Receive, _Send], Awaitable[None]]
# Replies of these paths reveal no problem, and probes of an orchestrator send no token.
_OPEN_PATHS = frozenset({"/health", "/openapi.json"})


@dataclass(frozen=True)
class ServiceLimits:
    """The limits of the service.

    Attributes:
        max_body_bytes: The largest body of a request.
        max_batch: The most problems, completions or groups in a request.
        max_completion_chars: The longest completion in characters.
        max_concurrent: The most requests at a time.
        deadline_s: Seconds for a request, from its headers to the end of its reply.
    """

    max_body_bytes: int = 32 << 20
    max_batch: int = 1024
    max_completion_chars: int = 1_000_000
    max_concurrent: int = 64
    deadline_s: float = 60.0


class _Refused(Exception):
    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


class RequestGuard:
    """An ASGI application that refuses requests or passes them on with their whole body.

    Args:
        application: Receives the requests that are in order.
        token: The token that requests must carry, or None.
        limits: The limits of the service.
    """

    def __init__(self, application: _Application, *, token: str | None, limits: ServiceLimits):
        self._application = application
        self._token = None if token is None else token.encode()
        self._limits = limits
        self._num_running = 0

    async def __call__(self, scope: _Event, receive: _Receive, send: _Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            return
        has_started = False

        async def watched_send(event: _Event) -> None:
            nonlocal has_started
            has_started = True
            await send(event)

        # Open paths take no body and no place among the running requests. So strangers cannot use up the places, and a
        # busy service answers the probe of its orchestrator.
        is_open = scope["path"] in _OPEN_PATHS
        self._num_running += not is_open
        try:
            if not is_open:
                self._check(scope)
            async with asyncio.timeout(self._limits.deadline_s):
                body = b"" if is_open else await self._body(receive)
                if body is not None:
                    await self._application(scope, _replay(body, receive), watched_send)
        except _Refused as refusal:
            await _send_error(send, refusal)
        except TimeoutError:
            # A reply that a client does not read cannot be replaced by an error. The server closes the connection.
            if not has_started:
                await _send_error(
                    send,
                    _Refused(
                        504, f"the request took more than {self._limits.deadline_s:g} s; send less, or try again later"
                    ),
                )
        finally:
            self._num_running -= not is_open

    def _check(self, scope: _Event) -> None:
        headers = dict(scope["headers"])
        if self._token is not None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            # The time of the comparison does not depend on the position of the first difference.
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
                raise _Refused(
                    401,
                    "the token is missing or wrong; send the header `Authorization: Bearer TOKEN`",
                    connection="close",
                )
        if self._num_running > self._limits.max_concurrent:
            raise _Refused(
                503,
                f"{self._limits.max_concurrent} requests are running already; try again later",
                **{"retry-after": "1"},
            )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self._limits.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> _Refused:
        return _Refused(
            413, f"a body has at most {self._limits.max_body_bytes} bytes; send smaller batches", connection="close"
        )

    async def _body(self, receive: _Receive) -> bytes | None:
        """Return the whole body, or None if the client has gone away."""
        chunks, size = [], 0
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                return None
            chunk = event.get("body", b"")
            size += len(chunk)
            if size > self._limits.max_body_bytes:
                raise self._too_large()
            chunks.append(chunk)
            if not event.get("more_body"):
                return b"".join(chunks)


def _replay(body: bytes, receive: _Receive) -> _Receive:
    is_given = False

    async def receive_body() -> _Event:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_body


async def _send_error(send: _Send, refusal: _Refused) -> None:
    body = json.dumps({"error": refusal.message}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


class HeaderDeadlineProtocol(H11Protocol):
    """uvicorn's protocol, which also closes connections that do not complete the headers of a request in time.

    uvicorn itself has a limit only between two requests, so slow clients could use up all connections.
    """

    headers_timeout_s = 10.0
    _headers_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer of the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Stop the timer if the headers are complete, or start it if they have begun."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        super().connection_lost(exc)
        if self._headers_timer is not None:
            self._headers_timer.cancel()

    def _watch(self) -> None:
        is_waiting = self.conn.their_state is h11.IDLE
        if is_waiting and self._headers_timer is None:
            self._headers_timer = self.loop.call_later(self.headers_timeout_s, self._close_if_waiting)
        elif not is_waiting and self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _close_if_waiting(self) -> None:
        self._headers_timer = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()
