"""A server on loopback whose replies a test writes, down to the bytes on the connection."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request: its method, the target in its first line, its lower-case headers, and its JSON body."""

    method: str
    target: str
    headers: dict[str, str]
    body: Any


# A reply is a status with a JSON value, text or bytes, and perhaps headers. It may also be the raw bytes of the whole
# reply, perhaps in several pieces, after which the connection is closed.
Reply = tuple[Any, ...] | bytes | Iterator[bytes]


class ScriptedServer(ThreadingHTTPServer):
    """Answers each request with `respond`, and records the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ScriptedHandler)
        self.respond: Callable[[Asked], Reply] = lambda asked: (404, "not scripted")
        self.asked: list[Asked] = []

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def base_url(self) -> str:
        return f"{self.origin}/v1"

    def script(self, respond: Callable[[Asked], Reply]) -> None:
        """Answer with `respond` from now on, and forget earlier requests."""
        self.respond, self.asked = respond, []

    def handle_error(self, *_: object) -> None:
        """Keep the tests' output free of connections that the client closed."""


@contextmanager
def scripted() -> Iterator[ScriptedServer]:
    """Run a server in a background thread."""
    with ScriptedServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def completion(content: Any = "4", **changes: Any) -> dict[str, Any]:
    """Return a valid completion, with `changes` to its message."""
    message = {"role": "assistant", "content": content} | changes
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"object": "chat.completion", "choices": [choice], "usage": {"completion_tokens": 7}}


class _ScriptedHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def log_message(self, *_: object) -> None:
        """Keep the tests' output free of requests."""

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def do_CONNECT(self) -> None:
        self._answer(None)

    def _answer(self, body: Any) -> None:
        asked = Asked(self.command, self.path, {key.lower(): value for key, value in self.headers.items()}, body)
        self.server.asked.append(asked)
        reply = self.server.respond(asked)
        if isinstance(reply, tuple):
            self._send(*reply)
            return
        self.close_connection = True
        for piece in [reply] if isinstance(reply, bytes) else reply:
            self.wfile.write(piece)
            self.wfile.flush()

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        if not isinstance(content, bytes):
            content = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
