"""Confine the current process with seccomp so that it can only compute.

A confined process can compute, use memory up to a limit, and read and write files that are already open. A verifier
needs no more. The process cannot open files, run programs, use the network, start processes or send signals. The filter
is an allowlist of system calls (seccomp-bpf, as in Docker). It needs neither root nor a recent kernel. Landlock or
namespaces would add no protection. The filter is assembled here because pyseccomp, the binding on PyPI, is unmaintained
and needs a system library that many machines lack.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
from collections.abc import Sequence
from pathlib import Path

# System calls that CPython, its allocator, numpy and sympy need for computing, as numbers on x86_64 and aarch64.
_ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "sched_yield": (24, 124),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getrusage": (98, 165),
    "clock_gettime": (228, 113),
    "gettimeofday": (96, 169),
    "futex": (202, 98),
    "getrandom": (318, 278),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# System calls for the network, for programs, and for the memory of other processes. io_uring can open sockets too.
_NETWORK_AND_EXEC = {
    "socket": (41, 198),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425),
}
# Higher numbers belong to the x32 ABI, which duplicates all system calls.
_LAST_NUMBER = 0x3FFFFFFF
_MMAP, _MREMAP, _MPROTECT, _MADVISE = (9, 222), (25, 216), (10, 226), (28, 233)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _IF_EQUAL, _IF_GREATER, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | 1  # EPERM
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_PROT_EXEC = 4
# Higher values let root disable pages for all processes that share them (MADV_HWPOISON, MADV_SOFT_OFFLINE).
_LAST_HARMLESS_ADVICE = 99
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 1, 22, 38, 2

# The kernel sends this signal if a process requests more memory at once than allowed.
MEMORY_SIGNAL = signal.SIGSYS


class NotConfined(Exception):
    """The kernel refuses to confine this process. The message is the reason."""


def limit_resources(*, memory_bytes: int, cpu_seconds: int) -> None:
    """Limit the resources of this process, and kill it when its parent exits.

    Args:
        memory_bytes: Address space in addition to its current use.
        cpu_seconds: CPU time after which the kernel kills it.
    """
    used = _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def confine(*, memory_bytes: int) -> None:
    """Confine this process, which must have a single thread, permanently.

    Args:
        memory_bytes: A request for more memory than this at once kills the process with `MEMORY_SIGNAL`.

    Raises:
        NotConfined: The kernel refuses confinement.
    """
    _install(_filter(platform.machine(), memory_bytes))
    try:
        os.close(os.open("/", os.O_RDONLY))
    except PermissionError:
        return
    raise NotConfined("the kernel accepts a seccomp filter but does not apply it")


def block_network_and_exec() -> None:
    """Permanently block the network and the start of programs for this process, which must have a single thread.

    Raises:
        NotConfined: The kernel has no seccomp, or its system call numbers are unknown.
    """
    column, program = _checked_architecture(platform.machine())
    program += [(_IF_GREATER, 0, 1, _LAST_NUMBER), (_RETURN, 0, 0, _REFUSE)]
    for numbers in _NETWORK_AND_EXEC.values():
        program += [(_IF_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _REFUSE)]
    _install([*program, (_RETURN, 0, 0, _ALLOW)])


def _install(program: Sequence[tuple[int, int, int, int]]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    code = _assemble(program)
    buffer = ctypes.create_string_buffer(code)
    descriptor = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer)))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, descriptor, 0, 0
    ):
        raise NotConfined(f"the kernel refuses seccomp filters: {os.strerror(ctypes.get_errno())}")


def refusal_reason() -> str | None:
    """Try to confine a new process, and return the reason if the kernel refuses, or None."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            confine(memory_bytes=1 << 30)
        except NotConfined as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    reason = os.read(reading, 4096).decode()
    os.close(reading)
    os.waitpid(pid, 0)
    return reason or None


def _address_space() -> int:
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    return num_pages * resource.getpagesize()


def _checked_architecture(machine: str) -> tuple[int, list[tuple[int, int, int, int]]]:
    """Return the column of system call numbers for `machine`, and the start of a filter, which loads the number."""
    if machine not in _ARCHITECTURES:
        raise NotConfined(f"system call numbers are known for {', '.join(_ARCHITECTURES)}, but not for {machine}")
    column, architecture = _ARCHITECTURES[machine]
    return column, [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]


def _filter(machine: str, memory_bytes: int) -> list[tuple[int, int, int, int]]:
    column, program = _checked_architecture(machine)
    for numbers in _ALLOWED.values():
        program += _on_call(numbers[column], [])
    program += _on_call(_MMAP[column], [*_kill_above(1, memory_bytes), *_refuse_executable(2)])
    program += _on_call(_MREMAP[column], _kill_above(2, memory_bytes))
    program += _on_call(_MPROTECT[column], _refuse_executable(2))
    program += _on_call(_MADVISE[column], _refuse_above(2, _LAST_HARMLESS_ADVICE))
    return [*program, (_RETURN, 0, 0, _REFUSE)]


def _on_call(number: int, checks: Sequence[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    body = [*checks, (_RETURN, 0, 0, _ALLOW)]
    return [(_IF_EQUAL, 0, len(body), number), *body]


def _kill_above(argument: int, limit: int) -> list[tuple[int, int, int, int]]:
    low_at = _ARGUMENTS_AT + 8 * argument
    high, low = limit >> 32, limit & 0xFFFFFFFF
    return [
        (_LOAD, 0, 0, low_at + 4),
        (_IF_GREATER, 3, 0, high),
        (_IF_EQUAL, 0, 3, high),
        (_LOAD, 0, 0, low_at),
        (_IF_GREATER, 0, 1, low),
        (_RETURN, 0, 0, _KILL),
    ]


def _refuse_executable(argument: int) -> list[tuple[int, int, int, int]]:
    # Refuse executable mappings, so that no machine code can be loaded.
    return [
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument),
        (_IF_ANY_BIT, 0, 1, _PROT_EXEC),
        (_RETURN, 0, 0, _REFUSE),
    ]


def _refuse_above(argument: int, limit: int) -> list[tuple[int, int, int, int]]:
    return [
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument),
        (_IF_GREATER, 0, 1, limit),
        (_RETURN, 0, 0, _REFUSE),
    ]


def _assemble(program: Sequence[tuple[int, int, int, int]]) -> bytes:
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)
