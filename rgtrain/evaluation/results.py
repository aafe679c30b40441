"""The folder of one evaluation's results. Every answer is kept as soon as it is judged; none is lost or doubled."""

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.files import write_whole
from rgtrain.provenance import masked_values

# The last seconds of answers that a crash of the machine (not of this process) may cost.
_SECONDS_BETWEEN_SYNCS = 1.0
# Damaged lines that a message lists.
_MAX_LISTED = 5


class ResultsNotWritten(RuntimeError):
    """The disk takes no more results."""


class ResultsFolder:
    """A folder with `evaluation.json` (what is asked, of which model), `results.jsonl` (every answer) and, when all
    answers are there, `summary.json`."""

    def __init__(self, path: Path):
        self.path = path
        self.results = path / "results.jsonl"
        self.summary = path / "summary.json"
        self._identity = path / "evaluation.json"

    @contextmanager
    def writing(self, identity: Mapping[str, Any]) -> Iterator["ResultsWriter"]:
        """Continue or begin an evaluation.

        Args:
            identity: Plain JSON values that no other evaluation shares. Secrets in them are masked, so that a new
                password does not make another evaluation.

        Raises:
            ConfigError: The folder cannot be written, holds another evaluation or damaged files, or is in use.
        """
        with self._locked():
            identity = masked_values(json.loads(json.dumps(identity)))
            self._check_identity(identity)
            if not self._identity.is_file():
                with _disk_errors(self._identity):
                    write_whole(self._identity, json.dumps(identity, indent=2, ensure_ascii=False) + "\n")
            with ResultsWriter(self) as writer:
                yield writer

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_CREAT | os.O_WRONLY, 0o644)
        except OSError as error:
            raise ConfigError(
                f"cannot write results into {self.path}: {error.strerror}; give another output_dir"
            ) from error
        try:
            # The kernel frees it however this process ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise ConfigError(f"another process is writing into {self.path}; wait for it or end it") from None
        finally:
            os.close(lock)

    def _check_identity(self, wanted: Mapping[str, Any]) -> None:
        if not self._identity.is_file():
            if self.results.exists() or self.summary.exists():
                raise ConfigError(
                    f"{self.path} holds results, but no evaluation.json that says of what; "
                    "give another output_dir or delete that folder"
                )
            return
        there = masked_values(
            read_results_json(self._identity, fix=f"restore it, or delete {self.path} and evaluate the model again")
        )
        changed = sorted(key for key in wanted.keys() | there.keys() if wanted.get(key) != there.get(key))
        if changed:
            listed = (f"{key} ({_short(there.get(key))} there, {_short(wanted.get(key))} now)" for key in changed)
            raise ConfigError(
                f"{self.path} holds the results of another evaluation, with other {', '.join(listed)}; "
                "give another output_dir or delete that folder"
            )


class ResultsWriter:
    """Appends answers to a folder's results.jsonl; `answers` are all that are there, in the order of writing."""

    def __init__(self, folder: ResultsFolder):
        self._folder = folder
        self.answers = _recover(folder.results)
        self._file = os.open(folder.results, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        self._synced_at = time.monotonic()

    def __enter__(self) -> "ResultsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with _disk_errors(self._folder.results):
            try:
                os.fsync(self._file)
            finally:
                os.close(self._file)

    def add(self, answer: Answer) -> None:
        """Keep one more answer. It outlives this process at once, and a crash of the machine within a second or so.

        Raises:
            ResultsNotWritten: The disk is full or broken.
        """
        line = answer.to_line()
        with _disk_errors(self._folder.results):
            # A line in one write is whole, or an error if the disk is full. A torn one is dropped when continuing.
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.answers.append(answer)
            if time.monotonic() - self._synced_at > _SECONDS_BETWEEN_SYNCS:
                os.fsync(self._file)
                self._synced_at = time.monotonic()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Put the answers in their problems' order, then write the summary: if it exists, all is complete."""
        self.answers.sort(key=lambda answer: answer.key)
        with _disk_errors(self._folder.results):
            write_whole(self._folder.results, (answer.to_line() for answer in self.answers))
        with _disk_errors(self._folder.summary):
            write_whole(self._folder.summary, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResultsNotWritten(
            f"cannot write {path}: {error.strerror}; make room or give another output_dir"
        ) from error


def read_results_json(path: Path, *, fix: str) -> dict[str, Any]:
    """Read the mapping in a JSON file of a results folder.

    Args:
        path: The file.
        fix: The user's way out if it is damaged, for the message.

    Raises:
        ConfigError: The file cannot be read or holds anything else.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error!s:.100}); {fix}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is damaged (it holds a {type(value).__name__} instead of a mapping); {fix}")
    return value


def read_answers(path: Path) -> list[Answer]:
    """Read the answers in a results.jsonl.

    Raises:
        ConfigError: The file cannot be read, or one of its lines is no answer.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    answers = []
    for number, line in enumerate(lines, start=1):
        try:
            # The file ends with an end of line, which split leaves as an empty last item.
            if line or number < len(lines):
                answers.append(Answer.from_line(line))
        except ValueError as error:
            raise ConfigError(
                f"{path} is damaged in line {number}: {error}; remove that line and the folder's summary.json, and the "
                "same evaluate_model.py command asks for this answer again"
            ) from error
    return answers


def _recover(path: Path) -> list[Answer]:
    """The answers in `path`, without an unfinished end, which a killed writer leaves."""
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    # The last item is empty, or a line that was not written whole.
    lines.pop()
    parsed = [_parse(line) for line in lines]
    # A crash of the machine may leave more lines unwritten, but only at the end.
    while parsed and parsed[-1] is None:
        parsed.pop()
    length = sum(len(line) + 1 for line in lines[: len(parsed)])
    if length < path.stat().st_size:
        os.truncate(path, length)
    answers: list[Answer] = []
    keys: set[tuple[int, int]] = set()
    unusable = []
    for number, answer in enumerate(parsed, start=1):
        if answer is None:
            unusable.append(f"line {number} is no answer")
        elif answer.key in keys:
            unusable.append(f"line {number} repeats an earlier answer")
        else:
            keys.add(answer.key)
            answers.append(answer)
    if unusable:
        more = f" and {len(unusable) - _MAX_LISTED} more" if len(unusable) > _MAX_LISTED else ""
        raise ConfigError(
            f"{path} is damaged: {', '.join(unusable[:_MAX_LISTED])}{more}; remove these lines, and the same command "
            "asks for the missing answers again"
        )
    return answers


def _parse(line: bytes) -> Answer | None:
    try:
        return Answer.from_line(line)
    except ValueError:
        return None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
