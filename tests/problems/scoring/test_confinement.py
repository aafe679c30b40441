"""Try to escape from a worker from the inside, by an answer to n_queens, which its scorer executes.

Signals are sent as SIGURG, which processes ignore by default. If confinement failed, the test would fail without
further harm.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rgtrain.problems import DatasetSpec, Scorer
from rgtrain.problems.mixture import ProblemSource
from rgtrain.problems.scoring import confinement

TIMEOUT_S = 1.0
SECRET = "canary-5e1f"

# Code that runs before every action. `call` calls a function of the C library and raises OSError if it returns -1.
PRELUDE = """
import ctypes, errno, mmap, os, resource, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)

def call(function, *arguments):
    result = getattr(libc, function)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), function)
    return result

def of_worker(name):
    frame = sys._getframe()
    while frame.f_code.co_name != "work":
        frame = frame.f_back
    return frame.f_locals[name]
"""
# The outcome is returned as the name of an exception that no scorer catches.
BODY = """
outcome = "done"
try:
    exec(act)
except OSError as error:
    outcome = errno.errorcode.get(error.errno, type(error).__name__)
except BaseException as error:
    outcome = type(error).__name__
raise type(str(outcome), (BaseException,), {})
"""


def answer_executing(act: str) -> str:
    """Return an answer that executes `act` and reports its outcome."""
    return f"exec({PRELUDE + f'act = {act!r}' + BODY!r}, {{}})"


def outcome_of(scorer: Scorer, act: str) -> str:
    """Return the outcome of `act`: "done", a value that it set, the name of an error, or the exit of the worker."""
    error = scorer.score(answer_executing(act), queens_entry()).error
    return "no outcome" if error is None else error.removeprefix("exception: ")


def queens_entry() -> dict[str, Any]:
    return ProblemSource(DatasetSpec("n_queens"), seed=0, size=1)[0].entry


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    """A pool whose parent has a secret in its environment and an inheritable open file."""
    with pytest.MonkeyPatch.context() as patch, open(os.devnull) as file:  # noqa: PTH123
        patch.setenv("WANDB_API_KEY", SECRET)
        os.set_inheritable(file.fileno(), True)
        with Scorer(num_workers=2, timeout_s=TIMEOUT_S, memory_mb=128) as scorer:
            yield scorer


@pytest.mark.parametrize(
    "act",
    [
        "of_worker('table')",
        "bytearray(1 << 20)",
        "mmap.mmap(-1, 1 << 20)",
        "os.write(2, b'hello')",
        "call('getrandom', ctypes.create_string_buffer(8), 8, 0)",
    ],
)
def test_computing_is_allowed(scorer, act):
    assert outcome_of(scorer, act) == "done"


@pytest.mark.parametrize(
    ("act", "outcome"),
    [
        ("outcome = os.waitstatus_to_exitcode(os.system('touch FILE'))", "127"),
        ("call('popen', b'touch FILE', b'r'); outcome = errno.errorcode[ctypes.get_errno()]", "EPERM"),
        ("subprocess.run(['touch', 'FILE'])", "EPERM"),
        ("os.execv('/usr/bin/touch', ['touch', 'FILE'])", "EPERM"),
        ("os.execve('/usr/bin/touch', ['touch', 'FILE'], {})", "EPERM"),
        ("os.posix_spawn('/usr/bin/touch', ['touch', 'FILE'], {})", "EPERM"),
        ("os.fork()", "EPERM"),
        ("os.forkpty()", "EPERM"),
        ("call('vfork')", "EPERM"),
        ("threading.Thread(target=print).start()", "RuntimeError"),
    ],
)
def test_programs_processes_and_threads_cannot_start(scorer, tmp_path, act, outcome):
    assert outcome_of(scorer, act.replace("FILE", str(tmp_path / "made"))) == outcome
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "act",
    [
        "open('FILE')",
        "os.open('FILE', os.O_RDONLY)",
        "os.open('FILE', os.O_PATH)",
        "open('/etc/passwd')",
        "open('README.md')",
        "open('../../etc/passwd')",
        "open('/proc/self/environ')",
        "open('/proc/self/mem', 'r+b')",
        "open('/proc/self/maps')",
        "open('/proc/PARENT/environ')",
        "open('/proc/PARENT/mem', 'rb')",
        "open('/dev/mem', 'rb')",
        "os.listdir('/')",
        "os.stat('FILE')",
        "os.readlink('/proc/self/exe')",
        "os.getcwd()",
        "os.getxattr('FILE', 'user.any')",
        "os.pread(of_worker('table').fd, 1, 0)",
        "os.statvfs('/')",
    ],
)
def test_files_cannot_be_read_or_listed(scorer, tmp_path, act):
    (tmp_path / "secret").write_text(SECRET)
    act = act.replace("FILE", str(tmp_path / "secret")).replace("PARENT", str(os.getpid()))
    assert outcome_of(scorer, act) == "EPERM"


@pytest.mark.parametrize(
    "act",
    [
        "open('NEW', 'w')",
        "open('FILE', 'a')",
        "open('FILE', 'r+')",
        "os.open('NEW', os.O_CREAT | os.O_WRONLY)",
        "os.mkdir('NEW')",
        "os.mkfifo('NEW')",
        "os.mknod('NEW')",
        "os.symlink('FILE', 'NEW')",
        "os.link('FILE', 'NEW')",
        "os.rename('FILE', 'NEW')",
        "os.unlink('FILE')",
        "os.rmdir('FOLDER')",
        "os.truncate('FILE', 0)",
        "os.chmod('FILE', 0o777)",
        "os.chown('FILE', 1, 1)",
        "os.utime('FILE', (0, 0))",
        "os.setxattr('FILE', 'user.any', b'')",
        "os.chdir('FOLDER')",
        "os.chroot('FOLDER')",
        "call('mount', b'none', b'FOLDER', b'tmpfs', 0, None)",
    ],
)
def test_files_cannot_be_created_or_changed(scorer, tmp_path, act):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("as it was")
    folder.mkdir()
    before = file.stat()
    for word, path in (("NEW", tmp_path / "new"), ("FILE", file), ("FOLDER", folder)):
        act = act.replace(word, str(path))
    assert outcome_of(scorer, act) == "EPERM"
    assert sorted(tmp_path.iterdir()) == [file, folder]
    assert file.read_text() == "as it was"
    assert (file.stat().st_mode, file.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("act", "outcome"),
    [
        ("socket.create_connection((b'127.0.0.1', PORT))", "EPERM"),
        ("socket.socket()", "EPERM"),
        ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "EPERM"),
        ("socket.socket(socket.AF_INET6)", "EPERM"),
        ("socket.socket(socket.AF_UNIX)", "EPERM"),
        ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "EPERM"),
        ("socket.socketpair()", "EPERM"),
        ("socket.getaddrinfo(b'localhost', 80)", "gaierror"),
        ("of_worker('channel').connect('/run/any')", "EPERM"),
        ("of_worker('channel').send(b'D')", "EPERM"),
        ("of_worker('channel').recv(1)", "EPERM"),
        ("socket.send_fds(of_worker('channel'), [b'D'], [of_worker('table').fd])", "EPERM"),
    ],
)
def test_the_network_cannot_be_used(scorer, act, outcome):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        assert outcome_of(scorer, act.replace("PORT", str(listener.getsockname()[1]))) == outcome
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    "act",
    [
        "os.kill(PARENT, signal.SIGURG)",
        "os.kill(-1, signal.SIGURG)",
        "os.kill(0, signal.SIGURG)",
        "os.killpg(PARENT, signal.SIGURG)",
        "call('tgkill', PARENT, PARENT, int(signal.SIGURG))",
        "call('sigqueue', PARENT, int(signal.SIGURG), 0)",
        "os.pidfd_open(PARENT)",
        "signal.raise_signal(signal.SIGURG)",
        "signal.setitimer(signal.ITIMER_REAL, 0.01)",
        "call('ptrace', 16, PARENT, 0, 0)",
        "call('process_vm_readv', PARENT, 0, 0, 0, 0, 0)",
        "call('process_vm_writev', PARENT, 0, 0, 0, 0, 0)",
        "os.setpriority(os.PRIO_PROCESS, PARENT, 19)",
        "os.sched_setaffinity(PARENT, {0})",
        "resource.prlimit(PARENT, resource.RLIMIT_CPU)",
    ],
)
def test_other_processes_cannot_be_signalled_or_traced(scorer, act):
    arrived = []
    before = signal.signal(signal.SIGURG, lambda *_: arrived.append(act))
    try:
        assert outcome_of(scorer, act.replace("PARENT", str(os.getpid()))) == "EPERM"
    finally:
        signal.signal(signal.SIGURG, before)
    assert arrived == []


@pytest.mark.parametrize(
    ("act", "outcome"),
    [
        ("call('prctl', 1, 0, 0, 0, 0)", "EPERM"),
        ("call('prctl', 22, 0, 0, 0, 0)", "EPERM"),
        ("resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))", "ValueError"),
        ("resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "ValueError"),
        ("call('unshare', 0x10000000)", "EPERM"),
        ("call('setns', 0, 0)", "EPERM"),
        ("call('personality', 0x400000)", "EPERM"),
        ("os.setuid(0)", "EPERM"),
        ("os.setsid()", "EPERM"),
        ("os.nice(-1)", "EPERM"),
        ("os.memfd_create('any')", "EPERM"),
        ("os.pipe()", "EPERM"),
        ("os.dup(0)", "EPERM"),
        ("time.sleep(60)", "EPERM"),
        ("time.clock_settime(time.CLOCK_REALTIME, time.time())", "EPERM"),
        ("socket.sethostname('any')", "EPERM"),
    ],
)
def test_limits_and_privileges_cannot_be_raised(scorer, act, outcome):
    assert outcome_of(scorer, act) == outcome


@pytest.mark.parametrize(
    "act",
    [
        "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
        "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)",
        "mmap.mmap(of_worker('table').fd, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
        "page = mmap.mmap(-1, 4096); address = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "call('mprotect', ctypes.c_void_p(address), 4096, 7)",
        "call('pkey_mprotect', None, 0, 4, -1)",
    ],
)
def test_memory_cannot_become_executable(scorer, act):
    assert outcome_of(scorer, act) == "EPERM"


def test_all_other_system_calls_are_refused(scorer):
    column = 0 if os.uname().machine == "x86_64" else 1
    conditional = (confinement._MMAP, confinement._MREMAP, confinement._MPROTECT, confinement._MADVISE)
    allowed = {numbers[column] for numbers in (*confinement._ALLOWED.values(), *conditional)}
    # The kernel exempts uretprobe and uprobe from filters, and only its own trampolines may call them.
    allowed |= {335, 336}
    # With bit 30 set, a number on x86_64 belongs to the x32 ABI.
    numbers = f"(n | high for high in (0, 1 << 30) for n in range(1024) if high or n not in {allowed})"
    act = f"""
refused = lambda n: libc.syscall(ctypes.c_long(n), 0, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == errno.EPERM
outcome = next((n for n in {numbers} if not refused(n)), 'all refused')
"""
    assert outcome_of(scorer, act) == "all?refused"


def test_a_worker_has_only_descriptors_for_its_channel_its_table_and_devnull(scorer):
    act = """
def is_open(fd):
    try:
        os.write(fd, b"")
    except OSError as error:
        return error.errno != errno.EBADF
    return True
outcome = {fd for fd in range(4096) if is_open(fd)} == {0, 1, 2, of_worker("channel").fileno(), of_worker("table").fd}
"""
    assert outcome_of(scorer, act) == "True"


@pytest.mark.parametrize(
    "act",
    [
        "outcome = 'WANDB_API_KEY' in os.environ",
        "libc.getenv.restype = ctypes.c_char_p; outcome = libc.getenv(b'WANDB_API_KEY') is not None",
        "import gc; outcome = any('SECRET' in map(str, d.values()) for d in gc.get_objects() if type(d) is dict)",
    ],
)
def test_a_worker_has_no_secret_of_the_environment(scorer, act):
    assert os.environ["WANDB_API_KEY"] == SECRET
    # Join the secret inside the worker, so that the text of the action does not contain it.
    assert outcome_of(scorer, act.replace("'SECRET'", f"{SECRET[:4]!r} + {SECRET[4:]!r}")) == "False"


@pytest.mark.parametrize(
    ("act", "outcome"),
    [
        ("bytearray(1 << 33)", "memory"),
        ("'x' * (1 << 33)", "memory"),
        ("mmap.mmap(-1, 1 << 40)", "memory"),
        ("bytearray(1 << 26)\nbytearray((1 << 27) + 1)", "memory"),
        ("kept = []\nwhile True: kept.append(bytearray(1 << 16))", "MemoryError"),
        ("kept = []\nwhile True: kept.append(mmap.mmap(-1, 1 << 24))", "ENOMEM"),
    ],
)
def test_memory_is_limited_for_single_and_repeated_allocations(scorer, act, outcome):
    assert outcome_of(scorer, act) == outcome


def test_memory_is_the_error_even_if_the_scorer_catches_it(scorer):
    answer = "[bytearray(1 << 16) for _ in range(10**9)]"
    assert scorer.score(answer, queens_entry()).error == "memory"


def test_shared_memory_cannot_grow(scorer):
    act = "for _ in range(64): os.write(of_worker('table').fd, bytes(1 << 20))"
    assert outcome_of(scorer, act) in ("EFBIG", "EPERM")


def test_shared_pages_cannot_be_disabled(scorer):
    harmful = "call('madvise', ctypes.c_void_p(0), 4096, ADVICE)"
    assert [outcome_of(scorer, harmful.replace("ADVICE", advice)) for advice in ("100", "101")] == ["EPERM", "EPERM"]


@pytest.mark.parametrize(
    "act",
    [
        "while True: pass",
        "9 ** 9 ** 9",
        "[call('signal', number, 1) for number in range(1, 65) if number not in (9, 19, 32, 33)]\nwhile True: pass",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        "os.read(of_worker('channel').fileno(), 1)",
        "lock = threading.Lock(); lock.acquire(); lock.acquire()",
        "while True:\n try:\n  while True: pass\n except BaseException: pass",
        "of_worker('table').begin(10**9)\nwhile True: of_worker('table').begin(0)",
    ],
)
def test_the_time_limit_is_enforced(scorer, act):
    assert outcome_of(scorer, act) == "timeout"


@pytest.mark.parametrize(
    "act",
    [
        "os._exit(0)",
        "ctypes.string_at(0)",
        "libc.abort()",
        "os.closerange(0, 4096)\nwhile True: pass",
        "for fd in range(3, 64):\n try: os.write(fd, b'garbage')\n except OSError: pass\nwhile True: pass",
        "os.write(of_worker('channel').fileno(), b'D')\nwhile True: pass",
        "while True: os.write(of_worker('channel').fileno(), bytes(1 << 16))",
    ],
)
def test_a_worker_that_exits_or_sends_false_messages_is_a_crash(scorer, act):
    assert outcome_of(scorer, act) == "crash"


@pytest.mark.parametrize("seconds", ["float('nan')", "float('inf')", "-1e308", "1e308"])
def test_a_forged_time_is_ignored(scorer, seconds):
    act = f"of_worker('table').judged(0, 1.0, {seconds})\nos.write(of_worker('channel').fileno(), b'D')\nos.read(3, 1)"
    assert 0.0 <= scorer.score(answer_executing(act), queens_entry()).seconds < 60.0


def test_the_pool_still_scores_correctly_after_all_attacks(scorer):
    entry = queens_entry()
    right = entry["metadata"]["valid_answers"][0]
    assert [score.accuracy for score in scorer.score_many([(right, entry), ("no board", entry)] * 8)] == [1.0, 0.0] * 8


# The following tests start pools in separate processes.

OWNER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_confinement import *

with Scorer(num_workers=1, timeout_s=TIMEOUT) as scorer:
    print("started", flush=True)
    for act in ACTS:
        print(outcome_of(scorer, act), flush=True)
"""


def start_owner(*acts: str, timeout_s: float = TIMEOUT_S, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a process with a separate pool, which prints "started" and the outcome of each of `acts`."""
    return subprocess.Popen(
        [*launcher, sys.executable, "-c", OWNER.replace("TIMEOUT", str(timeout_s)).replace("ACTS", repr(acts))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def test_the_output_of_a_worker_is_discarded():
    with start_owner(
        "print('LOUD', flush=True); print('LOUD', file=sys.stderr, flush=True)",
        "[os.write(fd, b'LOUD') for fd in (0, 1, 2)]",
        "libc.puts(b'LOUD'); libc.fflush(None)",
        "ctypes.string_at(0)",
    ) as owner:
        out, err = owner.communicate(timeout=60)
    assert (out.split(), err) == (["started", "done", "done", "done", "crash"], "")


USERS = {
    "root without capabilities": ("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
    "nobody": ("--no-new-privs", "--reuid=65534", "--regid=65534", "--clear-groups"),
}


@pytest.mark.parametrize("user", USERS)
def test_confinement_needs_no_privileges(user):
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip(
            "only root can change users with setpriv; without root, all other tests already run as an ordinary user"
        )
    # setpriv still has the privileges of root when it starts a program, but a program started by env does not.
    launcher = ("setpriv", *USERS[user], "env")
    probe = [*launcher, sys.executable, "-c", "import reasoning_gym, sys; open(sys.argv[1]).close()", __file__]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip(f"{user} may not read this Python's files")
    forbidden = ("open('/etc/passwd')", "socket.socket()", "os.fork()", "os.kill(os.getpid(), 0)")
    with start_owner(*forbidden, "bytearray(1 << 33)", "while True: pass", launcher=launcher) as owner:
        out, err = owner.communicate(timeout=60)
    assert out.split() == ["started", *["EPERM"] * 4, "memory", "timeout"], err


def descendants(pid: int) -> set[int]:
    """Return `pid` and all its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


def wait_until_gone(pids: set[int], *, seconds: float) -> set[int]:
    """Wait for processes to exit, and return those that still run after `seconds`."""
    until = time.monotonic() + seconds
    while (left := {pid for pid in pids if Path(f"/proc/{pid}").exists()}) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def test_no_processes_or_descriptors_are_left_after_the_with_block(scorer):
    others, fds = descendants(os.getpid()), len(list(Path("/proc/self/fd").iterdir()))
    with Scorer(num_workers=2, timeout_s=60) as other:
        assert outcome_of(other, "1") == "done"
        unfinished = other.submit(answer_executing("while True: pass"), queens_entry())
        started = descendants(os.getpid()) - others
        assert len(started) >= 3
    assert wait_until_gone(started, seconds=0) == set()
    assert len(list(Path("/proc/self/fd").iterdir())) == fds
    with pytest.raises(RuntimeError, match="closed while answers were waiting"):
        unfinished.result(timeout=1)


def test_no_processes_are_left_if_the_parent_is_killed():
    hang = "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass"
    with start_owner(hang, timeout_s=60) as owner:
        assert owner.stdout.readline() == "started\n"
        time.sleep(0.3)
        started = descendants(owner.pid)
        owner.kill()
    assert len(started) >= 2
    assert wait_until_gone(started, seconds=5) == set()


# Simulate a kernel without seccomp by a filter that refuses further filters.
REFUSING_KERNEL = """
import platform, sys
from rgtrain.errors import ConfigError
from rgtrain.problems import DatasetSpec, Scorer
from rgtrain.problems.mixture import ProblemSource
from rgtrain.problems.scoring import confinement as c

prctl = {"x86_64": 157, "aarch64": 167}[platform.machine()]
refuse = [(c._LOAD, 0, 0, c._ARGUMENTS_AT), (c._IF_EQUAL, 0, 1, c._PR_SET_SECCOMP), (c._RETURN, 0, 0, c._REFUSE)]
c._install([(c._LOAD, 0, 0, c._NUMBER_AT), *c._on_call(prctl, refuse), (c._RETURN, 0, 0, c._ALLOW)])

entry = ProblemSource(DatasetSpec("n_queens"), seed=0, size=1)[0].entry
right = entry["metadata"]["valid_answers"][0]
print(c.refusal_reason())
try:
    Scorer(num_workers=1).__enter__()
except ConfigError as error:
    print(error)
with Scorer(num_workers=1, timeout_s=0.5, allow_unconfined=True) as scorer:
    fork = "__import__('os').fork() and __import__('os')._exit(0) or __import__('time').sleep(3)"
    hostile = ("exec('while True: pass')", "9**9**9", fork)
    pairs = [(answer, entry) for answer in (right, *hostile, right)]
    print([(score.accuracy, score.error) for score in scorer.score_many(pairs)])
"""


def test_if_the_kernel_refuses_confinement_the_scorer_judges_only_with_allow_unconfined():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", REFUSING_KERNEL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refusal, error, scores = done.stdout.splitlines()
    assert refusal == "the kernel refuses seccomp filters: Operation not permitted"
    assert refusal in error and "allow_unconfined=true" in error
    assert scores == "[(1.0, None), (0.0, 'timeout'), (0.0, 'timeout'), (0.0, 'crash'), (1.0, None)]"
