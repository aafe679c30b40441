"""The state of another process on this machine: its CPU time, whether it runs, and whether it is ending."""

import time
from pathlib import Path

# In the kernel's numbering, the clock of all CPU time of the process whose id is in the upper bits.
_SCHEDULED_CPU_TIME = 2
# linux/sched.h: set before an ending process closes its files.
_PF_EXITING = 0x4


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that process `pid` has used, in seconds; 0 if the process is gone."""
    try:
        return time.clock_gettime(~pid << 3 | _SCHEDULED_CPU_TIME)
    except OSError:
        return 0.0


def run_state(pid: int) -> str:
    """Return the kernel's letter for the state of process `pid`, such as R, S, D, T or Z; X if the process is gone."""
    return _stat(pid)[0]


def is_exiting(pid: int) -> bool:
    """Return whether process `pid` is ending, has ended or is gone."""
    state, *_, flags = _stat(pid)[:7]
    return state in "ZX" or bool(int(flags) & _PF_EXITING)


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ["X", "0", "0", "0", "0", "0", "0"]
    # A program's name may hold spaces and brackets; the fields after it do not.
    return text.rpartition(")")[2].split()
