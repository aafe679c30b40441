"""Hostile answers, and traps that show whether one of them escaped from its process.

Nine scorers run an answer as Python; all others read it as text. The answers do no harm even if they succeed. They
write files only into the folder of the traps, and they send SIGURG, which processes ignore by default.
"""

import ctypes
import functools
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

Entry = Mapping[str, Any]
HostileAnswer = str | Callable[[Entry], str]

_SECRET = "canary7d41f0"
_SECRET_NAME = "RGTRAIN_BENCHMARK_CANARY"
_PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Traps:
    """Traps for answers that escape: files, a listening socket and a signal handler. A context manager."""

    folder: Path = field(init=False)
    signals: list[int] = field(default_factory=list, init=False)

    def __enter__(self) -> "Traps":
        self._temporary = tempfile.TemporaryDirectory(prefix="rgtrain-traps-")
        self.folder = Path(self._temporary.name)
        self.canary.write_text(_SECRET)
        self._as_they_were = self._files()
        os.environ[_SECRET_NAME] = _SECRET
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._handler_before = signal.signal(signal.SIGURG, lambda number, _: self.signals.append(number))
        # Orphaned descendants become children of this process, so that they can be found.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        signal.signal(signal.SIGURG, self._handler_before)
        self._listener.close()
        del os.environ[_SECRET_NAME]
        self._temporary.cleanup()

    @property
    def canary(self) -> Path:
        """A file that holds a secret."""
        return self.folder / "canary"

    @property
    def port(self) -> int:
        """The port on the loopback device at which this process listens."""
        return self._listener.getsockname()[1]

    def sprung(self) -> list[str]:
        """Return the traps sprung since the last call: "file", "connection", "signal"."""
        found = []
        if self._files() != self._as_they_were:
            found.append("file")
            self._as_they_were = self._files()
        if self._was_connected_to():
            found.append("connection")
        if self.signals:
            found.append("signal")
            self.signals.clear()
        return found

    def is_revealed_by(self, error: str | None) -> bool:
        """Return whether the error of an answer contains the secret."""
        return error is not None and _SECRET in error

    def _files(self) -> dict[str, tuple[int, bytes]]:
        return {path.name: (path.stat().st_mode, path.read_bytes()) for path in self.folder.iterdir()}

    def _was_connected_to(self) -> bool:
        try:
            self._listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True


def code_answers(traps: Traps) -> dict[str, HostileAnswer]:
    """Return answers that do harm if they are executed, by name."""
    words = {
        "FOLDER": str(traps.folder),
        "CANARY": str(traps.canary),
        "SECRET_NAME": _SECRET_NAME,
        "PORT": str(traps.port),
        "PARENT": str(os.getpid()),
    }
    answers: dict[str, HostileAnswer] = {}
    for name, source in _ACTS.items():
        for word, value in words.items():
            source = source.replace(word, value)
        answers[f"code: {name}"] = f"exec({_PRELUDE + source!r}, {{}})"
    path = str(traps.canary)
    answers["code: canary revealed by the score"] = lambda entry: f"{_right(entry)} if open({path!r}).read() else 0"
    for name, text in _FROM_THE_ENTRY.items():
        answers[f"code: own score by reading {name}"] = text
    answers["code: random state set"] = "__import__('random').seed(0) or __import__('numpy').random.seed(0)"
    return answers


def text_answers() -> dict[str, HostileAnswer]:
    """Return answers that are hard to read or expensive to evaluate, by name."""
    answers: dict[str, HostileAnswer] = {f"text: {name}": answer for name, answer in _TEXTS.items()}
    return answers | {f"long: {name}": make(_LONG_CHARS) for name, make in LONG_TEXTS.items()}


def hostile_answers(traps: Traps) -> dict[str, HostileAnswer]:
    """Return all hostile answers by name."""
    return code_answers(traps) | text_answers()


def written(answer: HostileAnswer, entry: Entry) -> str:
    """Return the text of `answer` for the problem of `entry`."""
    return answer if isinstance(answer, str) else answer(entry)


def forging_answers(traps: Traps) -> dict[str, HostileAnswer]:
    """Return the `code_answers` that try to set their score, by name."""
    return {name: answer for name, answer in code_answers(traps).items() if name.startswith("code: own score")}


def _right(entry: Entry) -> str:
    """Return the right answer as a Python expression."""
    match entry["metadata"]:
        case {"source_dataset": "n_queens"}:
            return repr([line.split() for line in entry["answer"].splitlines()])
        case {"solution": solution}:
            return repr(solution)
    return str(entry["answer"])


_PRELUDE = """
import ctypes, gc, itertools, mmap, os, resource, signal, socket, subprocess, sys, threading, time
def tell(text): raise type(str(text), (BaseException,), {})
def of_worker(name):
    frame = sys._getframe()
    while frame.f_code.co_name != "work": frame = frame.f_back
    return frame.f_locals[name]
"""

_ACTS = {
    # Programs and processes
    "shell": "os.system('touch FOLDER/shell')",
    "program": "subprocess.Popen(['touch', 'FOLDER/program'])",
    "program in place of this one": "os.execv('/bin/sh', ['sh', '-c', 'touch FOLDER/exec'])",
    "program by posix_spawn": "os.posix_spawn('/bin/touch', ['touch', 'FOLDER/spawn'], {})",
    "fork": "os.fork() or time.sleep(600)",
    "fork bomb": "while True:\n try: os.fork()\n except OSError: pass",
    "fork through ctypes": "ctypes.CDLL(None).fork(); open('FOLDER/fork', 'w')",
    "thread": "threading.Thread(target=lambda: open('FOLDER/thread', 'w')).start()",
    "threads without end": "while True:\n try: threading.Thread(target=time.sleep, args=(600,)).start()\n"
    " except RuntimeError: pass",
    # Files
    "file written": "open('FOLDER/written', 'w').write('here')",
    "file changed": "open('CANARY', 'a').write('more')",
    "file deleted": "os.unlink('CANARY')",
    "file renamed": "os.rename('CANARY', 'FOLDER/renamed')",
    "file's mode changed": "os.chmod('CANARY', 0o777)",
    "link made": "os.symlink('CANARY', 'FOLDER/link')",
    "folder made": "os.mkdir('FOLDER/folder')",
    "canary revealed by the error": "tell(open('CANARY').read())",
    "canary revealed through ctypes": "libc = ctypes.CDLL(None); text = ctypes.create_string_buffer(64)\n"
    "libc.read(libc.open(b'CANARY', 0), text, 63); tell(text.value.decode())",
    # The environment and other processes
    "environment": "tell(os.environ.get('SECRET_NAME'))",
    "environment through ctypes": "libc = ctypes.CDLL(None); libc.getenv.restype = ctypes.c_char_p\n"
    "tell(libc.getenv(b'SECRET_NAME'))",
    "environment of the parent": "tell(open('/proc/PARENT/environ').read().partition('SECRET_NAME=')[2][:12])",
    "memory of the parent": "open('/proc/PARENT/mem', 'r+b')",
    "ptrace of the parent": "ctypes.CDLL(None).ptrace(16, PARENT, 0, 0)\nwhile True: pass",
    "signal to the parent": "os.kill(PARENT, signal.SIGURG)",
    "signal to whoever started it": "os.kill(os.getppid(), signal.SIGURG)",
    "signal to all": "os.kill(-1, signal.SIGURG)",
    "signal to the group": "os.killpg(0, signal.SIGURG)",
    # The network
    "connection": "socket.create_connection((b'127.0.0.1', PORT))",
    "connection through ctypes": "libc = ctypes.CDLL(None)\n"
    "libc.connect(libc.socket(2, 1, 0), (2).to_bytes(2, 'little') + (PORT).to_bytes(2, 'big') + bytes([127, 0, 0, 1])"
    " + bytes(8), 16)",
    "server": "socket.create_server(('', 0))",
    # Memory
    "8 GB": "x = bytearray(1 << 33)",
    "8 GB written": "x = b'x' * (1 << 33)",
    "memory bit by bit": "x = []\nwhile True: x.append(b'x' * (1 << 20))",
    "memory mapped": "x = []\nwhile True: x.append(mmap.mmap(-1, 1 << 26))",
    "memory bit by bit, errors caught": "x = []\nwhile True:\n try: x.append(b'x' * (1 << 20))\n"
    " except MemoryError: pass",
    "shared memory grown": "for _ in range(256): os.write(of_worker('table').fd, bytes(1 << 20))",
    # Time
    "loop": "while True: pass",
    "loop that catches everything": "while True:\n try:\n  while True: pass\n except BaseException: pass",
    "loop in a generator": "all(itertools.count(1))",
    "loop with signals ignored": "for n in range(1, 65):\n try: signal.signal(n, signal.SIG_IGN)\n"
    " except (OSError, ValueError): pass\nwhile True: pass",
    "loop with signals blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
    "loop behind a forged start": "while True: of_worker('table').begin(0)",
    "sleep": "time.sleep(60)",
    "deadlock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "waiting for a message": "os.read(of_worker('channel').fileno(), 1)",
    "limits raised": "for name in ('CPU', 'AS'): resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (-1, -1))",
    "catastrophic regular expression": "import re; re.match('(a+)+b', 'a' * 64)",
    # Ending
    "exit": "exit()",
    "sys.exit": "sys.exit(0)",
    "os._exit": "os._exit(0)",
    "os.abort": "os.abort()",
    "segmentation fault": "ctypes.string_at(0)",
    "stack overflow": "sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "stack overflow in C": "x = []\nfor _ in range(10**6): x = [x]\nrepr(x); x == x",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "an exception with a hostile name": "raise type('\\x1b[31m\\n' + 'x' * 99, (BaseException,), {})",
    "an exception whose class lies": "class Meta(type):\n __name__ = property(lambda self: 1 / 0)\n"
    "class Lie(BaseException, metaclass=Meta): pass\nraise Lie",
    "an exception that never ends": "class Stays(BaseException):\n def __del__(self):\n  while True: pass\nraise Stays",
    # Output and descriptors
    "printing without end": "while True: print('flood' * 1000)",
    "printing to every descriptor": "while True:\n for fd in range(3): os.write(fd, b'flood' * 1000)",
    "escape sequences": "print('\\x1b[2J\\x1b]0;owned\\x07', flush=True)",
    "all descriptors closed": "os.closerange(0, 4096)\nwhile True: pass",
    "garbage to all descriptors": "for fd in range(64):\n try: os.write(fd, os.urandom(64))\n except OSError: pass",
    "garbage without end": "fd = of_worker('channel').fileno()\nwhile True: os.write(fd, bytes(1 << 16))",
    "batch said to be done": "os.write(of_worker('channel').fileno(), b'D')\nwhile True: pass",
    # State that affects how other answers are judged
    "score_answer rebound": "from reasoning_gym.factory import DATASETS\n"
    "for cls, _ in DATASETS.values(): cls.score_answer = lambda *_: 1.0",
    "builtins rebound": "import builtins\nbuiltins.float = builtins.isinstance = builtins.len = lambda *_: 1.0",
    "builtins deleted": "import builtins\nfor name in list(vars(builtins)): delattr(builtins, name)",
    "modules deleted": "sys.modules.clear(); gc.collect()",
    "decimal precision set": "import decimal; decimal.getcontext().prec = 1",
    "clock rebound": "time.monotonic = time.process_time = lambda: -1e9",
    "worker's functions rebound": "import rgtrain.problems.scoring.scoring_worker as w\nw._judge = lambda *_: None\n"
    "w.receive = lambda fd: [(0, '', {})]",
    "memory overwritten": "ctypes.memset(id(int) + 16, 255, 4096)",
    # The answer's score, which executed text can always set
    "own score in the table": "of_worker('table').judged(0, 1.0, 0.0)\nos.write(of_worker('channel').fileno(), b'D')\n"
    "while True: pass",
    "own score by rebinding the table": "table = type(of_worker('table')); judged = table.judged\n"
    "table.judged = lambda self, position, *_: judged(self, position, 1.0, 0.0)",
    "own score by rebinding sympy": "import sympy\nsympy.simplify = sympy.diff = lambda *_, **__: sympy.Integer(0)\n"
    "sympy.Integer.__eq__ = lambda *_: True",
    "own score out of range": "table = type(of_worker('table')); judged = table.judged\n"
    "table.judged = lambda self, position, *_: judged(self, position, 1e9, 0.0)",
    "own score not a number, in no time": "of_worker('table').judged(0, float('nan'), float('nan'))\n"
    "os.write(of_worker('channel').fileno(), b'D')\nwhile True: pass",
}

# `eval` sees the local variables of the scorer that calls it.
_FROM_THE_ENTRY = {
    "valid_solutions": "[line.split() for line in list(valid_solutions)[0].splitlines()]",
    "oracle_answer": "oracle_answer.split()",
    "the solution": "entry['metadata']['solution']",
}

_TEXTS: dict[str, HostileAnswer] = {
    # Numbers
    "1e309": "1e309",
    "nan": "nan",
    "minus infinity": "-inf",
    "complex overflow": "1.7e308+1.7e308j",
    "1 and 400 zeros": "1" + "0" * 400,
    "5,000 digits": "9" * 5000,
    "20,000 digits": "9" * 20_000,
    "1e100000000": "1e100000000",
    "1e1000000000": "1e1000000000",
    "9**9**9": "9**9**9",
    "9**9**9**9": "9**9**9**9",
    "10**10**10": "10**10**10",
    "factorial": "factorial(10**7)",
    "division by zero": "1/0",
    "shift": "1<<(1<<40)",
    "product of sines": "*".join(f"sin({n}*x+1)" for n in range(1, 33)),
    "nested powers": "((x+1)**99+1)**99",
    "integral": "Integral(exp(x**x)*sin(x)/log(x), x).doit()",
    "range": "range(10**10)",
    "list of 10**10": "[0]*10**10",
    "string of 10**10": "'x'*10**10",
    "generator": "(x for x in iter(int, 1))",
    "sum of a generator": "sum(1 for _ in iter(int, 1))",
    # Nesting
    "6,000 brackets": "[" * 3000 + "]" * 3000,
    "20,000 parentheses": "(" * 10_000 + ")" * 10_000,
    "nested objects": '{"a":' * 3000 + "1" + "}" * 3000,
    "open brackets": "[" * 20_000,
    "1,100 negations": "¬" * 1100 + "P",
    "minus signs": "-" * 19_999 + "1",
    "long sum": "1+" * 9_999 + "1",
    "lambdas": "lambda:" * 2000 + "0",
    "20 atoms": "∧".join("abcdefghijklmnopqrst"),
    "deep arrows": " → ".join(["P"] * 1500),
    # Bytes
    "10 MB": "x" * 10_000_000,
    "10 MB of digits": "7" * 10_000_000,
    "null bytes": "\0" * 1000,
    "null byte in a number": "1\x002",
    "lone surrogate": "\ud800",
    "escape sequences": "\x1b[2J\x1b]0;owned\x07\x1b[31m",
    "right-to-left and zero-width": "\u202e\u200b42\u200d\u2066",
    "combining characters": "a" + "\u0301" * 5000,
    "other digits": "٤٢ \uff14\uff12 四十二 ²",
    "blank but not empty": "\u3000\u00a0",
    "line breaks": "\n" * 19_999 + "1",
    "commas": "," * 20_000,
    "tags": "<answer>" * 2000,
    "percent and braces": "%s%n%d{0}{1.__class__}${HOME}" * 100,
    "JSON that is not": '{"a": NaN, "b": Infinity, "a": 1e999}',
    "empty object": "{}",
    "empty list": "[]",
    "None": "None",
    # Texts for the regular expressions and moves of single scorers
    "long word": "a" * 19_999 + "!",
    "spaces": "x" + " " * 19_990 + "x",
    "boxnet moves": "move(" + ", " * 9_000,
    "rush hour move": "A+1000000000",
    "cube turns": "R1000000",
    "more cube turns": "R100000000",
    "dates": "99999-99-99 25:61:61",
    "SQL and shell": "'; DROP TABLE scores; -- $(reboot) `reboot`",
    "pickle": "\x80\x04\x95cos\nsystem\n(S'true'\ntR.",
    # Code without exec
    "import": "__import__('os').getcwd()",
    "attribute walk": "().__class__.__base__.__subclasses__()",
    "iterator without end": "__import__('itertools').repeat('x')",
    "walrus": "[y := 1, [y := y + 1 for _ in range(10**9)]]",
    "right answer in another form": lambda entry: f"  {entry['answer']}  ".replace("1", "\uff11"),
    "right answer, then much": lambda entry: f"{entry['answer']}" + " " * 19_000 + "x",
    "right answer, then prose": lambda entry: f"{entry['answer']} is the answer",
    "right answer, then an exclamation": lambda entry: f"{entry['answer']}!",
    "right answer, then an explanation": lambda entry: f"{entry['answer']}, because 2 + 2 = 4. " * 400,
}

# Length of the long texts as answers. Scorers are not linear in their input, so many of them run into the time limit.
_LONG_CHARS = 20_000


def _repeated(unit: str, num_chars: int, *, head: str = "", tail: str = "") -> str:
    length = num_chars - len(head) - len(tail)
    return head + (unit * (length // len(unit) + 1))[:length] + tail


def _nested(opening: str, closing: str, num_chars: int) -> str:
    depth = num_chars // (len(opening) + len(closing))
    return opening * depth + closing * depth


def _long(unit: str, *, head: str = "", tail: str = "") -> Callable[[int], str]:
    return functools.partial(_repeated, unit, head=head, tail=tail)


# Makers of texts of a given length on which a pattern or parser that is not linear takes long, by name.
LONG_TEXTS: dict[str, Callable[[int], str]] = {
    # Numbers
    "digits": _long("1"),
    "digits and a foreign tail": _long("1", tail="!"),
    "digits and prose": _long("7", tail=" is the answer"),
    "digits in groups": _long("123,", tail="!"),
    "decimals and a foreign tail": _long("1.5", tail="!"),
    "exponents and a foreign tail": _long("1e5", tail="!"),
    "signed exponents and a foreign tail": _long("1e+1e-", tail="!"),
    "dots": _long("."),
    "dots and digits": _long(".5", tail="."),
    "Arabic digits and a foreign tail": _long("\u0663", tail="!"),
    "digits of two alphabets": _long("1\uff11", tail="\u00b2"),
    "superscript digits": _long("\u00b2"),
    "signs": _long("-", tail="1"),
    "fractions": _long("1/", tail="!"),
    # Formulas and words
    "polynomial and prose": _long("3*x**2 + ", tail="is the answer"),
    "letters and a foreign tail": _long("a", tail="!"),
    "single letters": _long("x y ", tail="!"),
    "function names": _long("sin cos ", tail="!"),
    "function names without spaces": _long("asinh", tail="!"),
    "underscores": _long("_", tail="!"),
    "alternations": _long("(a|a)*"),
    "bars": _long("|", tail="!"),
    "quotes": _long("'"),
    "two kinds of quotes": _long("\"'"),
    "quoted words and code": _long("'ab', ", tail="x.y"),
    "words behind quotes": _long("'abc", tail="!"),
    "backslashes": _long("\\"),
    # Brackets
    "open brackets": _long("["),
    "closed brackets": _long("]"),
    "nested brackets": functools.partial(_nested, "[", "]"),
    "nested parentheses": functools.partial(_nested, "(", ")"),
    "brackets of all kinds": functools.partial(_nested, "([{", "}])"),
    "pairs of brackets": _long("[]"),
    "nested objects": functools.partial(_nested, '{"a":', "}"),
    "nested fractions": functools.partial(_nested, "\\frac{1}{", "}"),
    # White space
    "spaces": _long(" "),
    "a word, spaces and a word": _long(" ", head="x", tail="x"),
    "line breaks": _long("\n", tail="1"),
    "tabs and returns": _long("\t\r", tail="!"),
    "other white space": _long("\u3000\u00a0\u2028", tail="!"),
    # Tags
    "opened answers": _long("<answer>"),
    "closed answers": _long("</answer>"),
    "nested answers": functools.partial(_nested, "<answer>", "</answer>"),
    "many answers": _long("<answer>1</answer>"),
    "answers behind thoughts": _long("</think><answer>1</answer>"),
    "thoughts": _long("<think></think>"),
    "broken tags": _long("<answer</think"),
    "opening angles": _long("<"),
    "markup": _long("<b>&amp;"),
    "templates": _long("{{ 7 * 7 }}{% if x %}"),
    # Terminals and logs
    "colours": _long("\x1b[31m"),
    "a colour without end": _long("0;", head="\x1b["),
    "colours without end": _long("\x1b[0;"),
    "parameters and spaces": functools.partial(_nested, "\x1b[0", " "),
    "escapes": _long("\x1b"),
    "a window title without end": _long("x", head="\x1b]"),
    "window titles without end": _long("\x1b]0;"),
    "control characters": _long("\x00\x07"),
    "progress marks": _long("[rgtrain] "),
    "keys without values": _long("token="),
    "keys and open quotes": _long("api_key='a\""),
    "a key and spaces": _long(" ", head="password"),
    "addresses": _long("http://a:b"),
    "an address without end": _long("a", head="http://"),
    "options": _long(" --a-", tail="token"),
    # Unicode
    "combining marks": _long("\u0301", head="a"),
    "lone surrogates": _long("\ud800"),
    "lone surrogates between letters": _long("a\ud800"),
    "zero-width and right-to-left": _long("\u200b\u202e"),
    "joined emoji": _long("\U0001f469\u200d"),
}
