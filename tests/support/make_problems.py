"""Make problems of every dataset in a separate process: `python make_problems.py forward|backward OUT`.

`backward` makes them in the opposite order, with problems of other seeds and parameters between them. OUT receives the
problems and, by dataset, the side effects of its generator (see `Watch`).
"""

import os
import pickle
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path

import reasoning_gym
from reasoning_gym.factory import DATASETS

from rgtrain.problems import DatasetSpec, Problem
from rgtrain.problems.mixture import MAX_SPLIT_SIZE, ProblemSource, Split

# This file is also run as a script, which cannot import its neighbours.
NAMES = sorted(name for name in DATASETS if name != "composite" and "/" not in name)
# These take up to three seconds per problem.
SLOW = ("futoshiki", "knight_swap", "sokoban")
# These draw from global random generators, so they are tested with more problems.
GLOBAL_RANDOM = ("codeio", "list_functions")


# Modules that call `exec` on code that they generate themselves, which is not a program of a dataset.
TRUSTED = (sysconfig.get_path("stdlib"), str(Path(reasoning_gym.__file__).parents[1] / "sympy"))
SIDE_EFFECTS = (
    *("subprocess.", "socket.", "shutil.", "tempfile.", "urllib.", "ctypes.dlopen", "sqlite3.", "_thread.", "os.fork"),
    *("os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "os.putenv", "os.unsetenv", "os.chdir"),
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod"),
)


class Watch:
    """Records side effects of the process while it makes problems of the dataset `current`.

    Side effects are executing text as a program, if the program uses any name, opening a file for writing, and the
    audit events in `SIDE_EFFECTS`.
    """

    def __init__(self) -> None:
        self.current: str | None = None
        self.events: dict[str, set[str]] = defaultdict(set)
        # Otherwise imports would write compiled files.
        sys.dont_write_bytecode = True
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if self.current is None:
            return
        if event.startswith(SIDE_EFFECTS):
            self.events[self.current].add(event)
        elif event == "open" and isinstance(arguments[2], int):
            if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.events[self.current].add(f"opens {arguments[0]} for writing")
        elif event == "exec":
            code, caller = arguments[0], sys._getframe(1).f_code.co_filename
            is_text = code.co_filename.startswith("<") and not caller.startswith(("<", *TRUSTED))
            if is_text and (code.co_names or any(hasattr(value, "co_code") for value in code.co_consts)):
                self.events[self.current].add(f"runs a program in {Path(caller).name}")


def indices_of(name: str) -> list[int]:
    if name in SLOW:
        return [0, MAX_SPLIT_SIZE - 1]
    return [*range(30 if name in GLOBAL_RANDOM else 2), MAX_SPLIT_SIZE - 1]


def make(name: str, *, backward: bool, watch: Watch) -> list[Problem]:
    watch.current = name
    source = ProblemSource(DatasetSpec(name), seed=Split.TRAIN.base_seed(0))
    indices = indices_of(name)
    if not backward:
        made = [source[index] for index in indices]
        watch.current = None
        return made
    other = ProblemSource(DatasetSpec(name, params={"difficulty": 6} if name == "codeio" else {}), seed=5, size=100)
    problems = []
    for index in reversed(indices):
        if name not in SLOW:
            other[3]
        problems.append(source[index])
    watch.current = None
    return problems[::-1]


def main(order: str, out: str) -> None:
    backward = order == "backward"
    names = NAMES[::-1] if backward else NAMES
    watch = Watch()
    problems = {name: make(name, backward=backward, watch=watch) for name in names}
    Path(out).write_bytes(pickle.dumps((problems, dict(watch.events))))


if __name__ == "__main__":
    main(*sys.argv[1:])
