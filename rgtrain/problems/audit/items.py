"""Make items of many datasets in another process with a given hash seed, so that no dataset can stop the audit.

`make_items` runs this file as `python -m rgtrain.problems.audit.items REQUEST`. That process has a temporary folder and
no credentials in its environment. It forks once per dataset, and prints the name of each finished dataset.
"""

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from rgtrain.problems.entries import dump_entry, load_entry
from rgtrain.problems.isolated_problems import clean_environment
from rgtrain.problems.mixture import DatasetSpec, Problem, ProblemSource, Split
from rgtrain.problems.plugins import import_plugins, imported_plugins

# An item takes up to three seconds, so a process that exceeds its budget by this much hangs.
_GRACE_S = 60.0


@dataclass(frozen=True)
class MadeItem:
    """A problem, its serialised entry for comparisons, and the CPU seconds that it took."""

    problem: Problem
    dumped: str
    seconds: float


@dataclass(frozen=True)
class MadeItems:
    """The items that a dataset made within its time limit, and the error that stopped it, if any."""

    items: Sequence[MadeItem]
    error: str | None = None


def make_items(
    names: Sequence[str],
    *,
    seeds: Sequence[int],
    num_items: int,
    budget_s: float,
    hash_seed: int,
    on_step: Callable[[str], None],
) -> dict[str, MadeItems]:
    """Make items of datasets in a new process.

    Args:
        names: The datasets.
        seeds: Training seeds. Items are made in turn from each of them.
        num_items: Maximum number of items per dataset.
        budget_s: Time limit in seconds for the items of a dataset.
        hash_seed: PYTHONHASHSEED of the process.
        on_step: Called with the name of each finished dataset.

    Returns:
        The items by dataset.

    Raises:
        RuntimeError: The process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = {"folder": folder, "names": names, "seeds": seeds, "num_items": num_items, "budget_s": budget_s}
        request["plugins"] = imported_plugins()
        reading, writing = os.pipe()
        with os.fdopen(reading) as finished:
            with os.fdopen(writing, "wb") as theirs:
                maker = subprocess.Popen(
                    [sys.executable, "-W", "ignore", "-m", __name__, json.dumps(request)],
                    cwd=folder,
                    env=clean_environment(folder) | {"PYTHONHASHSEED": str(hash_seed)},
                    stdout=theirs,
                )
            with maker:
                for line in finished:
                    on_step(line.rstrip("\n"))
        if maker.returncode:
            raise RuntimeError(
                f"the process that makes items exited with status {maker.returncode}; see its error above"
            )
        return {name: _read(name, _file_of(name, folder)) for name in names}


def _file_of(name: str, folder: str) -> Path:
    # A name may have a slash, as in sound/puzzle24.
    return Path(folder) / f"{quote(name.lstrip('.'), safe='')}.jsonl"


def _read(name: str, path: Path) -> MadeItems:
    items: list[MadeItem] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "error" in record:
            return MadeItems(items, record["error"])
        entry = load_entry(record["entry"])
        problem = Problem(name, record["seed"], record["index"], entry["question"], entry)
        items.append(MadeItem(problem, record["entry"], record["seconds"]))
    return MadeItems(items)


def _make_all(folder: str, names: Sequence[str], budget_s: float, *, plugins: Sequence[str], **settings: Any) -> None:
    import_plugins(plugins)
    # Fork for each dataset, so that side effects and crashes do not affect the next one.
    context = multiprocessing.get_context("fork")
    for name in names:
        path = _file_of(name, folder)
        process = context.Process(target=_make, args=(name, path), kwargs={"budget_s": budget_s, **settings})
        process.start()
        process.join(budget_s + _GRACE_S)
        hangs = process.is_alive()
        process.kill()
        process.join()
        if process.exitcode:
            with path.open("a", encoding="utf-8") as file:
                _write(file, error="hangs" if hangs else f"its process exited with status {process.exitcode}")
        print(name, flush=True)


def _make(name: str, path: Path, *, seeds: Sequence[int], num_items: int, budget_s: float) -> None:
    # Discard the output of bf and codeio.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with path.open("a", encoding="utf-8") as file:
        try:
            sources = [ProblemSource(DatasetSpec(name), seed=Split.TRAIN.base_seed(seed)) for seed in seeds]
            deadline = time.monotonic() + budget_s
            in_turn = ((index, source) for index in itertools.count() for source in sources)
            for index, source in itertools.islice(in_turn, num_items):
                # Measure CPU time, because the machine may be busy.
                started = time.process_time()
                # This process is already isolated, and the CPU time of another process would not be measured.
                problem = source.make_here(index)
                seconds = time.process_time() - started
                _write(file, seed=problem.seed, index=index, seconds=seconds, entry=dump_entry(dict(problem.entry)))
                if time.monotonic() > deadline:
                    break
        except Exception as error:  # Any error of a dataset is a finding.
            _write(file, error=f"{type(error).__name__}: {error}")


def _write(file: TextIO, **record: Any) -> None:
    # Flush each line, so that it is kept if the next item never ends. JSON escapes can represent lone surrogates.
    file.write(json.dumps(record) + "\n")
    file.flush()


if __name__ == "__main__":
    _make_all(**json.loads(sys.argv[1]))
