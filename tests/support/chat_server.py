"""An OpenAI-compatible server on loopback that fails with a given probability."""

import base64
import gzip
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rgtrain.evaluation.endpoint_negotiation import PROBE

MODEL = "small"
KEY = "secret"
PASSWORD = "pa55word"
_ACCEPTED = (f"Bearer {KEY}", f"Basic {base64.b64encode(f'me:{PASSWORD}'.encode()).decode()}")
# HTTP statuses, a closed connection, and a wait that exceeds the clients' timeout. A test may also choose replies that
# never end ("endless", "drip"), encodings that the client did not request ("compressed", "zstd"), and raw bytes.
FAILURES = (429, 500, 503, "close", "wait")


class ChatServer(ThreadingHTTPServer):
    """Answers each question with its length, and counts its answers, failures and concurrent requests."""

    daemon_threads = True

    def __init__(
        self,
        *,
        failing: float = 0.0,
        failures: Sequence[int | str | bytes] = FAILURES,
        max_prompt_chars: int = 10**6,
        lists_without_key: bool = False,
        seconds: float = 0.005,
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lists_without_key = lists_without_key
        self.failing = failing
        self.failures = failures
        self.max_prompt_chars = max_prompt_chars
        # The time to answer.
        self.seconds = seconds
        self.generator = random.Random(0)
        self.num_failed = self.num_answered = self.num_active = self.max_active = 0
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def serving(**settings) -> Iterator[ChatServer]:
    """Run a server in a background thread."""
    with ChatServer(**settings) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def log_message(self, *_: object) -> None:
        """Keep the tests' output free of requests."""

    def do_GET(self) -> None:
        if self.server.lists_without_key or self._key_is_right():
            self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 4096}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        if asked["messages"][-1]["content"] == PROBE:
            # The request at an evaluation's start neither fails nor counts.
            if self._key_is_right():
                self._reply(asked, None)
            return
        with server.lock:
            server.num_active += 1
            server.max_active = max(server.max_active, server.num_active)
            failure = server.generator.choice(server.failures) if server.generator.random() < server.failing else None
            server.num_failed += failure is not None
            server.num_answered += failure is None
        time.sleep(server.seconds)
        with server.lock:
            server.num_active -= 1
        if self._key_is_right():
            self._reply(asked, failure)

    def _reply(self, asked: dict, failure: int | str | bytes | None) -> None:
        question = asked["messages"][-1]["content"]
        if asked["model"] != MODEL:
            self._send(404, {"error": {"message": f"the model {asked['model']!r} does not exist"}})
        elif len(question) > self.server.max_prompt_chars:
            # A careless server repeats the request's headers, which hold the key.
            self._send(400, {"error": {"message": f"maximum context length exceeded {dict(self.headers)}"}})
        elif failure == "wait":
            time.sleep(1.5)
            self.close_connection = True
        elif failure == "close":
            self.close_connection = True
        elif failure in ("endless", "drip"):
            self._send_without_end(slowly=failure == "drip")
        elif failure == "compressed":
            self._send_body(200, gzip.compress(bytes(4 << 20)), encoding="gzip")
        elif failure == "zstd":
            self._send_body(200, b"", encoding="zstd")
        elif isinstance(failure, bytes):
            self._send_body(200, failure)
        elif failure:
            self._send(failure, {"error": {"message": "try again"}})
        else:
            message = {"role": "assistant", "content": f"<answer>{len(question)}</answer>"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17}
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL}
            self._send(200, answer | {"choices": [choice], "usage": usage})

    def _key_is_right(self) -> bool:
        if self.headers["Authorization"] in _ACCEPTED:
            return True
        self._send(401, {"error": {"message": f"wrong key {self.headers['Authorization']}"}})
        return False

    def _send(self, status: int, content: dict) -> None:
        self._send_body(status, json.dumps(content).encode())

    def _send_without_end(self, *, slowly: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.close_connection = True
        try:
            while True:
                self.wfile.write(b" " * (1 if slowly else 1 << 20))
                time.sleep(0.1 if slowly else 0)
        except OSError:
            return

    def _send_body(self, status: int, body: bytes, *, encoding: str = "identity") -> None:
        self.send_response(status)
        self.send_header("Content-Encoding", encoding)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
