"""A plugin that takes the port on which a run's workers meet before they do, if it is free."""

import os
import socket
from pathlib import Path

# The workers know the port before they listen on it. The other processes of a run do not know it.
if "MASTER_PORT" in os.environ:
    LISTENER = socket.socket()
    try:
        LISTENER.bind(("", int(os.environ["MASTER_PORT"])))
        LISTENER.listen()
        found = "free"
    except OSError:
        found = "held"
    (Path(os.environ["PORT_TAKER_FOLDER"]) / os.environ["RANK"]).write_text(found)
