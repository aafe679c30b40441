"""Hold a free port from its choice until a process listens on it.

verl and vLLM look for a free port, release it, and let torch listen on it seconds later. Meanwhile, the system may give
the port to another process, such as one of another training on the same machine.
"""

import os
import socket
from collections.abc import Callable


class HeldPort:
    """A free TCP port that the system gives to no other process while this object exists.

    Its socket is bound but does not listen. On Linux, another socket can then listen on the port only if both have
    SO_REUSEADDR and the other one asks for this very port, as torch's TCPStore does.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("", 0))

    def number(self) -> int:
        """Return the number of the port."""
        number: int = self._socket.getsockname()[1]
        return number


# They are held until this process ends.
_held: list[HeldPort] = []


def held_by_this_process() -> int:
    """Return the number of a free port, which this process holds until its end."""
    _held.append(HeldPort())
    return _held[-1].number()


def holding_open_port(original: Callable[[], int]) -> Callable[[], int]:
    """Wrap the function by which vLLM finds a free port for its process group, so that the port is held.

    Args:
        original: vLLM's function. It still searches if the user has set where to.

    Returns:
        The function to use. Its ports are held until the end of this process.
    """

    def get_open_port() -> int:
        if {"VLLM_PORT", "VLLM_DP_MASTER_PORT"} & os.environ.keys():
            return original()
        return held_by_this_process()

    return get_open_port
