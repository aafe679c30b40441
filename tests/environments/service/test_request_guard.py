"""The guard of the service ends slow requests."""

import asyncio
import json
import socket
import threading
import time

import pytest
import uvicorn

from rgtrain.environments.service.request_guard import HeaderDeadlineProtocol, RequestGuard, ServiceLimits


async def echo(scope, receive, send):
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def never(scope, receive, send):
    await receive()
    await asyncio.sleep(60)


def replies(application, events, *, limits, headers=(), token=None, silent=False, path="/scores") -> list[dict]:
    """Return the replies of a guard around `application` to a request with these events."""
    sent = []
    waiting = list(events)

    async def receive():
        if not waiting:
            await asyncio.sleep(60)
        return waiting.pop(0)

    async def send(event):
        sent.append(event)
        if silent:
            await asyncio.sleep(60)

    scope = {"type": "http", "path": path, "headers": list(headers)}
    asyncio.run(RequestGuard(application, token=token, limits=limits)(scope, receive, send))
    return sent


def request(body: bytes, *, more_body: bool = False) -> dict:
    return {"type": "http.request", "body": body, "more_body": more_body}


def test_a_body_arrives_whole():
    events = [request(b"ab", more_body=True), request(b"c")]
    _, body = replies(echo, events, limits=ServiceLimits(max_body_bytes=3))
    assert body["body"] == b"abc"


@pytest.mark.parametrize(
    ("application", "events", "status"),
    [
        (never, [request(b"")], 504),
        (echo, [request(b"a", more_body=True)], 504),
        (echo, [request(b"ab", more_body=True), request(b"cd")], 413),
    ],
    ids=["slow application", "slow body", "large body in parts"],
)
def test_a_slow_or_large_request_gets_an_error(application, events, status):
    start, body = replies(application, events, limits=ServiceLimits(max_body_bytes=3, deadline_s=0.05))
    assert start["status"] == status
    assert json.loads(body["body"])["error"]


@pytest.mark.parametrize("length", [b"4", b"-1", b"x", b"9" * 5000, "²".encode()])
def test_a_wrong_length_is_refused_before_the_body_is_read(length):
    start, _ = replies(echo, [], limits=ServiceLimits(max_body_bytes=3), headers=[(b"content-length", length)])
    assert start["status"] == 413


def test_a_busy_service_answers_probes_without_a_token_and_without_their_body():
    limits = ServiceLimits(max_concurrent=0)
    assert replies(echo, [], limits=limits, token="secret", path="/health")[0]["status"] == 200
    assert replies(echo, [], limits=limits, token="secret")[0]["status"] == 401
    assert replies(echo, [], limits=limits)[0]["status"] == 503


def test_a_client_that_does_not_read_its_reply_is_left():
    [start] = replies(echo, [request(b"a")], limits=ServiceLimits(deadline_s=0.05), silent=True)
    assert start["status"] == 200


def test_a_client_that_goes_away_gets_no_reply():
    assert replies(echo, [{"type": "http.disconnect"}], limits=ServiceLimits()) == []


def test_connections_without_the_head_of_a_request_are_closed():
    class Impatient(HeaderDeadlineProtocol):
        headers_timeout_s = 0.3

    server = uvicorn.Server(uvicorn.Config(echo, http=Impatient, ws="none", lifespan="off", log_level="error"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        begun = [socket.create_connection(listener.getsockname(), timeout=20) for _ in range(3)]
        head = b"GET / HTTP/1.1\r\nhost: x\r\n"
        # The first sends nothing, the second half a head, the third a whole request and then half a head.
        begun[1].sendall(head)
        begun[2].sendall(head + b"\r\n")
        assert begun[2].recv(1000).startswith(b"HTTP/1.1 200")
        begun[2].sendall(head)
        # A request that has begun is not cut off.
        patient = socket.create_connection(listener.getsockname(), timeout=20)
        patient.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n")
        assert [connection.recv(1000) for connection in begun] == [b"", b"", b""]
        time.sleep(0.4)
        patient.sendall(b"a")
        assert patient.recv(1000).startswith(b"HTTP/1.1 200")
        for connection in (*begun, patient):
            connection.close()
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
