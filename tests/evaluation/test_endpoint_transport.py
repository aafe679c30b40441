"""Replies as they arrive: slow, cut, endless, chunked, redirected, and through proxies."""

import asyncio
import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.scripted_endpoint import completion, scripted

from rgtrain.errors import ConfigError
from rgtrain.evaluation import endpoint_transport
from rgtrain.evaluation.endpoint_replies import Answered, HttpReply, read_reply
from rgtrain.evaluation.endpoint_settings import EndpointSettings
from rgtrain.evaluation.endpoint_transport import EndpointTransport, NoReply, check_connection, find_proxy, join_url

BODY = json.dumps(completion()).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")


@pytest.fixture(scope="module")
def server():
    with scripted() as running:
        yield running


def exchanges(base_url: str, *, times: int = 1, timeout_s: float = 5.0) -> list[HttpReply]:
    async def send() -> list[HttpReply]:
        async with EndpointTransport(EndpointSettings(base_url, "m")) as transport:
            return [
                await transport.exchange("chat/completions", {"n": number}, timeout_s=timeout_s)
                for number in range(times)
            ]

    return asyncio.run(send())


def chunked(body: bytes) -> bytes:
    chunks = b"".join(b"%x;name=value\r\n%s\r\n" % (len(part), part) for part in (body[:10], body[10:]))
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nTrailer: x\r\n\r\n"


def drip(*, head: bytes = HEAD + b"\r\n") -> Iterator[bytes]:
    yield head
    for _ in range(20):
        time.sleep(0.1)
        yield b" "


WHOLE = {
    "a length": (200, BODY),
    "chunks": chunked(BODY),
    "the end of the connection": HEAD + b"\r\n" + BODY,
    "gzip that was not requested": (200, gzip.compress(BODY), {"Content-Encoding": "gzip"}),
    "an early hint": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HEAD + b"\r\n" + BODY,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_body_has_several_forms(server, name):
    server.script(lambda asked: WHOLE[name])
    [reply] = exchanges(server.base_url)
    assert isinstance(read_reply(reply), Answered)


BROKEN = {
    "no reply": b"",
    "not HTTP": b"hello\r\n\r\n",
    "half of the headers": HEAD,
    "a cut body": HEAD + b"Content-Length: 999\r\n\r\n" + BODY,
    "a cut chunk": chunked(BODY)[:-30],
    "an invalid length": HEAD + b"Content-Length: many\r\n\r\n" + BODY,
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + BODY,
    "endless headers": HEAD + b"X: " + b"x" * (1 << 20),
    "a long body": (200, bytes(1 << 17)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_reply_is_no_reply(server, monkeypatch, name):
    monkeypatch.setattr(endpoint_transport, "MAX_REPLY_BYTES", 1 << 16)
    server.script(lambda asked: BROKEN[name])
    with pytest.raises(NoReply, match=": |the reply has more than 64 KB"):
        exchanges(server.base_url)


@pytest.mark.parametrize("head", [HEAD + b"\r\n", b"HTTP/1.1 200 OK\r\nX: "], ids=["body", "headers"])
def test_the_deadline_is_for_the_whole_reply(server, head):
    server.script(lambda asked: drip(head=head))
    started = time.monotonic()
    with pytest.raises(NoReply, match=r"^no complete reply within 0.4 s$"):
        exchanges(server.base_url, timeout_s=0.4)
    assert time.monotonic() - started < 1.5


def test_a_body_longer_than_its_length_does_not_disturb_the_next_reply(server):
    server.script(lambda asked: (200, BODY + b"HTTP/1.1 200 OK\r\n", {"Content-Length": str(len(BODY))}))
    [first] = exchanges(server.base_url)
    server.script(lambda asked: (200, BODY))
    [second] = exchanges(server.base_url)
    assert first.body == second.body == BODY


def test_a_connection_that_the_server_closed_is_opened_again(server):
    server.script(lambda asked: HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
    assert [reply.body for reply in exchanges(server.base_url, times=3)] == [BODY] * 3


@contextmanager
def closing_at_request(number: int) -> Iterator[tuple[str, list[int]]]:
    """Run a server that closes each connection at its request of a number, and answers the earlier ones.

    Yields:
        The base URL, and the numbers of the requests on their connections as they arrive.
    """
    received = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        count = 0

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.count += 1
            received.append(self.count)
            if self.count == number:
                self.close_connection = True
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", received
        server.shutdown()


def test_a_request_that_meets_the_end_of_an_idle_connection_is_sent_again():
    with closing_at_request(2) as (base_url, received):
        assert [reply.body for reply in exchanges(base_url, times=3)] == [BODY] * 3
    assert received == [1, 2, 1, 2, 1]


def test_a_request_on_a_new_connection_is_sent_once():
    with closing_at_request(1) as (base_url, received), pytest.raises(NoReply, match="without sending a response"):
        exchanges(base_url)
    assert received == [1]


def test_a_connection_is_used_again(server):
    server.script(lambda asked: (200, BODY))
    assert len(exchanges(server.base_url, times=3)) == 3
    assert [asked.body["n"] for asked in server.asked] == [0, 1, 2]


def test_a_request_has_the_key_and_asks_for_no_compression(server):
    server.script(lambda asked: (200, BODY))
    exchanges(f"{server.base_url}/")
    exchanges(server.base_url.replace("://", "://me:pa55@") + "?api-version=1")
    first, second = server.asked
    assert (first.target, first.headers["authorization"]) == ("/v1/chat/completions", "Bearer secret-key")
    assert (first.headers["accept-encoding"], first.headers["content-type"]) == ("identity", "application/json")
    assert second.target == "/v1/chat/completions?api-version=1"
    assert second.headers["authorization"].startswith("Basic ")


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_on_the_same_server_keeps_the_request(server, status):
    moved = (status, "", {"Location": "/v2/chat/completions"})
    server.script(lambda asked: (200, BODY) if asked.target.startswith("/v2") else moved)
    assert [reply.status for reply in exchanges(server.base_url)] == [200]
    assert [(asked.method, asked.body) for asked in server.asked] == [("POST", {"n": 0})] * 2


@pytest.mark.parametrize(
    ("status", "location"),
    [(301, "/v2"), (302, "/v2"), (303, "/v2"), (307, "http://localhost:1/"), (308, "https://x/")],
)
def test_a_redirect_that_changes_the_request_or_the_server_is_not_followed(server, status, location):
    server.script(lambda asked: (status, "", {"Location": location}))
    [reply] = exchanges(server.base_url)
    assert (reply.status, reply.headers["location"]) == (status, location)
    assert len(server.asked) == 1


def test_a_circle_of_redirects_ends(server):
    server.script(lambda asked: (307, "", {"Location": asked.target}))
    assert exchanges(server.base_url)[0].status == 307
    assert len(server.asked) == 3


PROXY = "http://proxy:3128"
PROXIES = [
    ("http://host/v1", {"http_proxy": PROXY}, PROXY),
    ("http://host/v1", {"HTTP_PROXY": PROXY}, PROXY),
    ("http://host/v1", {"https_proxy": PROXY}, None),
    ("https://host/v1", {"HTTPS_PROXY": PROXY}, PROXY),
    ("https://host/v1", {"http_proxy": PROXY}, None),
    ("https://host/v1", {"all_proxy": PROXY}, PROXY),
    ("http://host/v1", {"ALL_PROXY": "socks5://proxy:1080"}, "socks5://proxy:1080"),
    ("http://host/v1", {"http_proxy": "proxy:3128"}, PROXY),
    ("http://host/v1", {"http_proxy": ""}, None),
    ("http://localhost:8000/v1", {"http_proxy": PROXY}, None),
    ("http://LOCALHOST./v1", {"all_proxy": PROXY}, None),
    ("http://model.localhost/v1", {"all_proxy": PROXY}, None),
    ("http://127.0.0.1:8000/v1", {"http_proxy": PROXY}, None),
    ("http://127.9.9.9/v1", {"http_proxy": PROXY}, None),
    ("http://0.0.0.0:8000/v1", {"http_proxy": PROXY}, None),
    ("http://[::1]:8000/v1", {"http_proxy": PROXY}, None),
    ("http://[::ffff:127.0.0.1]/v1", {"http_proxy": PROXY}, None),
    ("http://localhost.example/v1", {"http_proxy": PROXY}, PROXY),
    ("http://host/v1", {"http_proxy": PROXY, "no_proxy": "*"}, None),
    ("http://host/v1", {"http_proxy": PROXY, "NO_PROXY": "other, host"}, None),
    ("http://a.host/v1", {"http_proxy": PROXY, "no_proxy": ".host"}, None),
    ("http://a.host/v1", {"http_proxy": PROXY, "no_proxy": "*.HOST"}, None),
    ("http://a.host/v1", {"http_proxy": PROXY, "no_proxy": "host"}, None),
    ("http://ahost/v1", {"http_proxy": PROXY, "no_proxy": "host"}, PROXY),
    ("http://host:8000/v1", {"http_proxy": PROXY, "no_proxy": "host:8000"}, None),
    ("http://host:8001/v1", {"http_proxy": PROXY, "no_proxy": "host:8000"}, PROXY),
    ("http://10.1.2.3/v1", {"http_proxy": PROXY, "no_proxy": "10.0.0.0/8"}, None),
    ("http://11.1.2.3/v1", {"http_proxy": PROXY, "no_proxy": "10.0.0.0/8,,x/y"}, PROXY),
    ("http://[fd00::1]/v1", {"http_proxy": PROXY, "no_proxy": "fd00::/8"}, None),
]


@pytest.mark.parametrize(("url", "environment", "proxy"), PROXIES)
def test_the_environment_names_a_proxy_but_not_for_loopback(monkeypatch, url, environment, proxy):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_proxy(url) == proxy


def test_a_request_goes_through_the_proxy(server, monkeypatch):
    server.script(lambda asked: (200, BODY))
    monkeypatch.setenv("http_proxy", server.origin)
    exchanges("http://models.example/v1")
    assert server.asked[0].target == "http://models.example/v1/chat/completions"


def test_a_proxy_that_refuses_a_connection_is_no_reply(server, monkeypatch):
    server.script(lambda asked: (403, "blocked"))
    monkeypatch.setenv("https_proxy", server.origin)
    with pytest.raises(NoReply, match="403"):
        exchanges("https://models.example/v1")
    assert server.asked[0].method == "CONNECT"


def test_loopback_is_reached_without_the_proxy(server, monkeypatch):
    server.script(lambda asked: (200, BODY))
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert exchanges(server.base_url)[0].status == 200


def test_the_error_for_a_proxy_that_cannot_be_used_shows_no_password(monkeypatch):
    monkeypatch.setenv("all_proxy", "gopher://me:pa55word@proxy:1")
    with pytest.raises(
        ConfigError, match=r"proxy gopher://\*\*\*@proxy:1 cannot be used .* add host to no_proxy"
    ) as error:
        check_connection(EndpointSettings("http://host/v1", "m"))
    assert "pa55word" not in str(error.value)


def test_certificates_that_cannot_be_read_are_an_error(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    endpoint_transport._ssl_context.cache_clear()
    with pytest.raises(ConfigError, match="SSL_CERT_FILE or SSL_CERT_DIR cannot be read"):
        check_connection(EndpointSettings("https://host/v1", "m"))


@pytest.mark.parametrize("key", ["sec\nret", "“secret”", "sec\x00ret"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setattr(EndpointSettings, "api_key", key)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY has characters that can't be sent") as error:
        check_connection(EndpointSettings("http://host/v1", "m"))
    assert key not in str(error.value) and "sec" not in str(error.value)


def test_a_line_break_at_the_end_of_a_key_is_no_part_of_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret\n")
    assert EndpointSettings("http://host/v1", "m").api_key == "secret"


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("http://h", "http://h/models"),
        ("http://h/", "http://h/models"),
        ("http://h/v1//", "http://h/v1/models"),
        ("http://h/v1?key=1#part", "http://h/v1/models?key=1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1/models"),
    ],
)
def test_a_path_is_appended_to_the_base_url(base_url, url):
    assert join_url(base_url, "models") == url
