"""No other process gets a port between its choice and the start of torch's store on it."""

import subprocess
import sys
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from rgtrain.upstream.held_ports import HeldPort, holding_open_port

LISTEN = """
import socket, sys
with socket.socket() as taker:
    taker.bind(("", int(sys.argv[1])))
    taker.listen()
"""


def listens_elsewhere(port: int) -> bool:
    """Return whether another process can listen on the port."""
    done = subprocess.run([sys.executable, "-c", LISTEN, str(port)], capture_output=True, text=True)
    assert done.returncode == 0 or "Address already in use" in done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("use_libuv", [True, False])
def test_a_store_listens_on_a_held_port_that_no_other_process_can_take(use_libuv):
    held = HeldPort()
    assert not listens_elsewhere(held.number())
    ours = {"use_libuv": use_libuv, "timeout": timedelta(seconds=30)}
    store = TCPStore("127.0.0.1", held.number(), is_master=True, wait_for_workers=False, **ours)
    store.set("key", "value")
    assert TCPStore("127.0.0.1", held.number(), **ours).get("key") == b"value"


def test_a_port_is_free_again_after_its_holder():
    held = HeldPort()
    number = held.number()
    del held
    assert listens_elsewhere(number)


def test_a_port_that_vllm_asks_for_is_held(monkeypatch):
    monkeypatch.delenv("VLLM_PORT", raising=False)
    get_open_port = holding_open_port(lambda: 1)
    assert not listens_elsewhere(get_open_port())
    monkeypatch.setenv("VLLM_PORT", "1")
    assert get_open_port() == 1
