"""The child process that makes problems whose generators run programs, with one fork per problem.

`isolated_problems` starts this process and sends it requests.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rgtrain.problems.entries import dump_entry, load_entry
from rgtrain.problems.mixture import DatasetSpec, ProblemSource
from rgtrain.problems.plugins import import_plugins
from rgtrain.problems.scoring.confinement import NotConfined, block_network_and_exec, limit_resources

# Limits for one problem. The slowest of codeio's 3,002 programs takes 2.3 s of CPU time.
_CPU_SECONDS = 60
_WALL_SECONDS = 300
_MEMORY_BYTES = 2 << 30
# Larger than any entry. It stops a program that writes into the result pipe from filling the memory.
_MAX_RESULT_BYTES = 64 << 20
_FOLDER_PLACEHOLDER = "/home/program"
# Number of cached sources. Each one holds the data file of its dataset.
_MAX_SOURCES = 16
# Modules that many programs import. They are imported once, and forks inherit them.
_PRELOADED = (
    *("numpy.fft", "numpy.linalg", "numpy.polynomial", "numpy.random", "queue", "secrets", "statistics"),
    *("sympy.combinatorics", "sympy.physics.units"),
)


def serve(fd: int, *, plugins: Sequence[str] = ()) -> None:
    """Make problems until the other end of the socket `fd` closes.

    Args:
        fd: The file descriptor of the socket.
        plugins: Packages to import first (see `import_plugins`).
    """
    import_plugins(plugins)
    # Schedulers send SIGTERM to all processes of a job. The parent decides when this process exits.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder = Path.cwd()
    for module in _PRELOADED:
        importlib.import_module(module)
    sources: dict[tuple[Any, ...], ProblemSource] = {}
    with socket.socket(fileno=fd) as connection, connection.makefile("rwb") as stream:
        for line in stream:
            request = json.loads(line)
            index = request.pop("index")
            key = tuple(request.values())
            if key not in sources:
                if len(sources) == _MAX_SOURCES:
                    del sources[next(iter(sources))]
                spec = DatasetSpec(request["dataset"], params=load_entry(request["params"]))
                sources[key] = ProblemSource(spec, seed=request["seed"], size=request["size"])
                # Keep garbage collection in forks from touching these objects, which would copy their pages.
                gc.freeze()
            reply = make_in_fork(sources[key], index, connection)
            if reply is None:
                break
            stream.write(reply)
            stream.flush()
    shutil.rmtree(folder, ignore_errors=True)


def make_in_fork(source: ProblemSource, index: int, connection: socket.socket, *, num_tries: int = 3) -> bytes | None:
    """Make one problem in a forked process.

    Args:
        source: Makes the problem.
        index: The index of the problem.
        connection: The connection to the parent.
        num_tries: Number of tries if the forked process is killed from outside.

    Returns:
        A line of JSON with the entry or an error, or None if the parent closed the connection.
    """
    reading, writing = os.pipe()
    folder = tempfile.mkdtemp(dir=Path.cwd())
    pid = os.fork()
    if pid == 0:
        _become_maker(source, index, folder, writing)
    os.close(writing)
    # The child sets this too, but possibly only after the group is killed.
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)
    waiter = select.poll()
    waiter.register(reading, select.POLLIN)
    waiter.register(connection, select.POLLIN)
    reply, waited, before, failure = bytearray(), 0.0, time.monotonic(), None
    try:
        while not reply.endswith(b"\n"):
            ready = [fd for fd, _ in waiter.poll(1000)]
            now = time.monotonic()
            # Do not count the time in which this process was suspended, for example by a scheduler.
            waited += min(now - before, 2.0)
            before = now
            if connection.fileno() in ready:
                return None
            part = os.read(reading, 1 << 20) if reading in ready else None
            reply += part or b""
            if part == b"":
                break
            if waited > _WALL_SECONDS or len(reply) > _MAX_RESULT_BYTES:
                failure = f"it exceeds {_WALL_SECONDS} s or {_MAX_RESULT_BYTES >> 20} MB"
                break
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        shutil.rmtree(folder, ignore_errors=True)
    if failure is None and reply.endswith(b"\n"):
        return bytes(reply)
    exit_code = os.waitstatus_to_exitcode(status)
    if failure is None and exit_code == -signal.SIGKILL and num_tries > 1:
        # It was killed from outside, for example by the kernel's out-of-memory killer.
        return make_in_fork(source, index, connection, num_tries=num_tries - 1)
    if failure is None and exit_code == -signal.SIGXCPU:
        failure = f"it exceeds {_CPU_SECONDS} s of CPU time"
    return json.dumps({"error": failure or f"its process exited with status {exit_code}"}).encode() + b"\n"


def _become_maker(source: ProblemSource, index: int, folder: str, writing: int) -> NoReturn:
    """Make the problem in this process, write the reply and exit."""
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        devnull = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(devnull, fd)
        os.closerange(3, writing)
        os.closerange(writing + 1, os.sysconf("SC_OPEN_MAX"))
        os.chdir(folder)
        os.environ |= {"HOME": folder, "TMPDIR": folder}
        tempfile.tempdir = None
        limit_resources(memory_bytes=_MEMORY_BYTES, cpu_seconds=_CPU_SECONDS)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_RESULT_BYTES,) * 2)
        with contextlib.suppress(NotConfined):
            block_network_and_exec()
        try:
            # A program may output the name of its folder, which is different each time.
            reply = {"entry": dump_entry(dict(source.make_here(index).entry)).replace(folder, _FOLDER_PLACEHOLDER)}
        except BaseException as error:  # A program may also call sys.exit or raise KeyboardInterrupt.
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        line = memoryview(json.dumps(reply).encode() + b"\n")
        while line:
            line = line[os.write(writing, line) :]
    finally:
        os._exit(0)
