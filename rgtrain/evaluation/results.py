"""The results folder of an evaluation. Every answer is written as soon as it is judged, exactly once."""

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
from rgtrain.files import write_atomically
from rgtrain.provenance import masked_values

# A crash of the machine, unlike one of this process, may lose the answers of this time.
_SECONDS_BETWEEN_SYNCS = 1.0
# The number of damaged lines that a message lists.
_MAX_LISTED = 5


class ResultsNotWritten(RuntimeError):
    """Results could not be written to the disk."""


class ResultsFolder:
    """The results folder of one evaluation.

    It holds `evaluation.json`, which identifies the problems, prompts, settings and model, and `results.jsonl` with
    every answer.

    Attributes:
        path: The folder.
        results: The file with the answers.
        summary: The file `summary.json`, which exists exactly if all answers are there.
    """

    def __init__(self, path: Path):
        self.path = path
        self.results = path / "results.jsonl"
        self.summary = path / "summary.json"
        self._identity = path / "evaluation.json"

    @contextmanager
    def writing(self, identity: Mapping[str, Any]) -> Iterator["ResultsWriter"]:
        """Begin an evaluation or continue it, and lock the folder for other processes.

        Args:
            identity: Plain JSON values that identify the evaluation. Secrets in them are masked, so that a changed
                password does not change the identity.

        Yields:
            The writer of answers.

        Raises:
            ConfigError: The folder cannot be written, holds another evaluation or damaged files, or is in use.
            ResultsNotWritten: The disk is full or broken.
        """
        with self._locked():
            identity = masked_values(json.loads(json.dumps(identity)))
            self._check_identity(identity)
            if not self._identity.is_file():
                with _disk_errors(self._identity):
                    write_atomically(self._identity, json.dumps(identity, indent=2, ensure_ascii=False) + "\n")
            with ResultsWriter(self) as writer:
                yield writer

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_CREAT | os.O_WRONLY, 0o644)
        except OSError as error:
            raise ConfigError(
                f"cannot write results into {self.path} ({error.strerror}); give another output_dir"
            ) from error
        try:
            # The kernel releases the lock however this process ends.
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
                    f"{self.path} holds results but no evaluation.json to identify them; "
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
                f"{self.path} holds the results of another evaluation, which differs in {', '.join(listed)}; "
                "give another output_dir or delete that folder"
            )


class ResultsWriter:
    """Appends answers to the results.jsonl of a folder.

    Attributes:
        answers: All answers in the file, in the order of writing.
    """

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
        """Write one more answer. A crash of the process can't lose it, and one of the machine only within a second.

        Args:
            answer: The answer.

        Raises:
            ResultsNotWritten: The disk is full or broken.
        """
        line = answer.to_line()
        with _disk_errors(self._folder.results):
            _append(self._file, line)
            self.answers.append(answer)
            if time.monotonic() - self._synced_at > _SECONDS_BETWEEN_SYNCS:
                os.fsync(self._file)
                self._synced_at = time.monotonic()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Sort the answers by problem, then write the summary, whose existence marks the evaluation as complete."""
        self.answers.sort(key=lambda answer: answer.key)
        with _disk_errors(self._folder.results):
            write_atomically(self._folder.results, (answer.to_line() for answer in self.answers))
        with _disk_errors(self._folder.summary):
            write_atomically(self._folder.summary, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def _append(file: int, line: bytes) -> None:
    # A full disk may cut a line short. `_recover` drops such a line when the evaluation is continued.
    if os.write(file, line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResultsNotWritten(
            f"cannot write {path} ({error.strerror}); free some space or give another output_dir"
        ) from error


def read_results_json(path: Path, *, fix: str) -> dict[str, Any]:
    """Read a JSON file of a results folder.

    Args:
        path: The file.
        fix: Advice for a user whose file is damaged, for the error message.

    Returns:
        The mapping in the file.

    Raises:
        ConfigError: The file cannot be read, or does not hold a mapping.
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
    """Read all answers in a results.jsonl.

    Args:
        path: The file.

    Returns:
        The answers, in the order of the file.

    Raises:
        ConfigError: The file cannot be read, or one of its lines is not an answer.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    answers = []
    for number, line in enumerate(lines, start=1):
        try:
            # The file ends with a newline, which leaves an empty last item.
            if line or number < len(lines):
                answers.append(Answer.from_line(line))
        except ValueError as error:
            raise ConfigError(
                f"{path} is damaged in line {number} ({error}); remove that line and the folder's summary.json, and "
                "the same evaluate_model.py command asks for this answer again"
            ) from error
    return answers


def _recover(path: Path) -> list[Answer]:
    """Return the answers in `path`, after cutting off an incomplete end, which a killed writer leaves."""
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    # The last item is empty or an incomplete line.
    lines.pop()
    parsed = [_parse(line) for line in lines]
    # A crash of the machine may leave several damaged lines, but only at the end.
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
            unusable.append(f"line {number} is not an answer")
        elif answer.key in keys:
            unusable.append(f"line {number} repeats an earlier answer")
        else:
            keys.add(answer.key)
            answers.append(answer)
    if unusable:
        more = f" and {len(unusable) - _MAX_LISTED} more" if len(unusable) > _MAX_LISTED else ""
        raise ConfigError(
            f"{path} is damaged ({', '.join(unusable[:_MAX_LISTED])}{more}); remove these lines, and the same command "
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
