"""Read the state of another process on this machine."""

import time
from pathlib import Path

# Number of the kernel clock for the CPU time of a process; the process id is in the upper bits.
_SCHEDULED_CPU_TIME = 2
# From linux/sched.h. The kernel sets it before an exiting process closes its files.
_PF_EXITING = 0x4


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that process `pid` has used, in seconds; 0 if the process is gone."""
    try:
        return time.clock_gettime(~pid << 3 | _SCHEDULED_CPU_TIME)
    except OSError:
        return 0.0


def run_state(pid: int) -> str:
    """Return the kernel's letter for the state of process `pid`, such as R, S, D, T or Z, or X if it is gone."""
    return _stat(pid)[0]


def is_exiting(pid: int) -> bool:
    """Return whether process `pid` is exiting, has exited or is gone."""
    state, *_, flags = _stat(pid)[:7]
    return state in "ZX" or bool(int(flags) & _PF_EXITING)


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ["X", "0", "0", "0", "0", "0", "0"]
    # Only the name of the program may contain spaces and parentheses, so split after it.
    return text.rpartition(")")[2].split()
