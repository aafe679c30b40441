"""The results folder of an evaluation. Every completion is written as soon as it is received, and again when judged."""

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rgtrain.errors import ConfigError
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.received_completions import ReceivedCompletion
from rgtrain.files import remove_leftovers, write_atomically
from rgtrain.provenance import masked_values

# A crash of the machine, unlike one of this process, may lose the answers of this time.
_SECONDS_BETWEEN_SYNCS = 1.0

_Record = TypeVar("_Record", Answer, ReceivedCompletion)
# Returns whether an answer belongs to the evaluation, given its key and fingerprint.
_Belongs = Callable[[tuple[int, int], str], bool]


class ResultsNotWritten(RuntimeError):
    """Results could not be written to the disk."""


class ResultsFolder:
    """The results folder of one evaluation.

    It holds `evaluation.json`, which identifies the problems, prompts, settings and model, and `results.jsonl` with
    every answer. Until the evaluation is complete, `received.jsonl` has the completions that are not judged yet.

    Attributes:
        path: The folder.
        results: The file with the answers.
        received: The file with the completions that are not judged yet.
        damaged: The file with lines of the other two that were damaged.
        summary: The file `summary.json`, which exists exactly if all answers are there.
        report: The page `report.html`, which shows the progress until it becomes the report.
    """

    def __init__(self, path: Path):
        self.path = path
        self.results = path / "results.jsonl"
        self.received = path / "received.jsonl"
        self.damaged = path / "damaged.jsonl"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self._identity = path / "evaluation.json"

    @contextmanager
    def writing(
        self,
        identity: Mapping[str, Any],
        *,
        belongs: _Belongs = lambda key, fingerprint: True,
        with_limit: Callable[[Any], Mapping[str, Any] | None] = lambda limit: None,
    ) -> Iterator["ResultsWriter"]:
        """Begin an evaluation or continue it, and lock the folder for other processes.

        Args:
            identity: Plain JSON values that identify the evaluation. Secrets in them are masked, so that a changed
                password does not change the identity.
            belongs: Returns whether an answer belongs to this evaluation, given its key and fingerprint.
            with_limit: Given the value of `limit` in the folder's identity, returns the identity that this evaluation
                has with it if it is lower, otherwise None. The folder's answers are then kept.

        Yields:
            The writer of answers.

        Raises:
            ConfigError: The folder cannot be written, holds another evaluation or a damaged evaluation.json, or is in
                use.
            ResultsNotWritten: The disk is full or broken.
        """
        with self._locked():
            identity = _written(identity)
            if self._check_identity(identity, with_limit) != identity:
                with _disk_errors(self._identity):
                    write_atomically(self._identity, json.dumps(identity, indent=2, ensure_ascii=False) + "\n")
            written = (self.results, self.received, self.summary, self.report)
            remove_leftovers(self.path, [path.name for path in written])
            with ResultsWriter(self, belongs) as writer:
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

    def _check_identity(
        self, wanted: Mapping[str, Any], with_limit: Callable[[Any], Mapping[str, Any] | None]
    ) -> Mapping[str, Any] | None:
        """Return the identity in the folder, None if it has none, and raise ConfigError for another evaluation."""
        if not self._identity.is_file():
            if self.results.exists() or self.summary.exists():
                raise ConfigError(
                    f"{self.path} holds results but no evaluation.json to identify them; "
                    "give another output_dir or delete that folder"
                )
            return None
        there = masked_values(
            read_results_json(self._identity, fix=f"restore it, or delete {self.path} and evaluate the model again")
        )
        lower = with_limit(there.get("limit"))
        wanted = wanted if lower is None else _written(lower)
        changed = sorted(key for key in wanted.keys() | there.keys() if wanted.get(key) != there.get(key))
        if changed and self._has_answers():
            listed = (f"{key} ({_short(there.get(key))} there, {_short(wanted.get(key))} now)" for key in changed)
            raise ConfigError(
                f"{self.path} holds the results of another evaluation, which differs in {', '.join(listed)}; "
                "give another output_dir or delete that folder"
            )
        return there

    def _has_answers(self) -> bool:
        """Return whether the folder has answers. Without them, the identity of a failed start does not matter."""
        files = [path for path in (self.results, self.received) if path.is_file()]
        return self.summary.is_file() or any(path.stat().st_size for path in files)


def _written(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity as it is read back."""
    return masked_values(json.loads(json.dumps(identity)))


class ResultsWriter:
    """Appends completions to the received.jsonl of a folder, and their answers to its results.jsonl.

    Attributes:
        answers: All answers in results.jsonl, in the order of writing.
        unjudged: The completions of an earlier process that have no answer yet.
        dropped: Descriptions of the lines that were moved to damaged.jsonl. Their answers are missing again.
    """

    def __init__(self, folder: ResultsFolder, belongs: _Belongs):
        self._folder = folder
        self.dropped: list[str] = []
        self.answers = self._recover(folder.results, Answer.from_line, belongs)
        answered = {answer.key for answer in self.answers}
        received = self._recover(folder.received, ReceivedCompletion.from_line, belongs)
        self.unjudged = [completion for completion in received if completion.key not in answered]
        self._waiting = {completion.key for completion in self.unjudged}
        with _disk_errors(folder.path):
            self._results = _open_to_append(folder.results)
            self._received = _open_to_append(folder.received)
        self._synced_at = time.monotonic()

    def __enter__(self) -> "ResultsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with _disk_errors(self._folder.results):
            try:
                os.fsync(self._results)
                os.fsync(self._received)
            finally:
                os.close(self._results)
                os.close(self._received)
        if not self._waiting:
            self._folder.received.unlink(missing_ok=True)

    def receive(self, completion: ReceivedCompletion) -> None:
        """Write a completion before it is judged, so that it is not lost if this process ends.

        Args:
            completion: The completion.

        Raises:
            ResultsNotWritten: The disk is full or broken.
        """
        with _disk_errors(self._folder.received):
            _append(self._received, completion.to_line())
        self._waiting.add(completion.key)

    def add(self, answer: Answer) -> None:
        """Write one more answer. A crash of the process can't lose it, and one of the machine only within a second.

        Args:
            answer: The answer.

        Raises:
            ResultsNotWritten: The disk is full or broken.
        """
        line = answer.to_line()
        with _disk_errors(self._folder.results):
            _append(self._results, line)
            self.answers.append(answer)
            self._waiting.discard(answer.key)
            if time.monotonic() - self._synced_at > _SECONDS_BETWEEN_SYNCS:
                os.fsync(self._results)
                self._synced_at = time.monotonic()
            if not self._waiting:
                # All completions in this file are judged.
                os.ftruncate(self._received, 0)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Sort the answers by problem, then write the summary, whose existence marks the evaluation as complete."""
        self.answers.sort(key=lambda answer: answer.key)
        with _disk_errors(self._folder.results):
            write_atomically(self._folder.results, (answer.to_line() for answer in self.answers))
        with _disk_errors(self._folder.summary):
            write_atomically(self._folder.summary, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")

    def _recover(self, path: Path, parse: Callable[[bytes], _Record], belongs: _Belongs) -> list[_Record]:
        """Return the records in `path`, after moving unusable lines to damaged.jsonl.

        A killed writer or a crash of the machine leaves such lines at the end of the file, a broken disk or an editor
        anywhere.

        Raises:
            ConfigError: The file cannot be read.
        """
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        usable: dict[tuple[int, int], tuple[bytes, _Record]] = {}
        unusable = []
        # The last item is empty, or a line that was cut off.
        for number, line in enumerate(lines if lines[-1] else lines[:-1], start=1):
            fault = "it is cut off" if number == len(lines) else None
            try:
                record = parse(line)
                if record.key in usable:
                    fault = "it repeats an earlier answer"
                elif not belongs(record.key, record.fingerprint):
                    fault = f"answer {record.repeat} to problem {record.problem} does not belong to this evaluation"
            except ValueError as error:
                fault = fault or str(error)
            if fault is None:
                usable[record.key] = line, record
            else:
                unusable.append(line)
                self.dropped.append(f"line {number} of {path} is not usable ({fault})")
        if unusable:
            with _disk_errors(self._folder.damaged), self._folder.damaged.open("ab") as damaged:
                damaged.writelines(line + b"\n" for line in unusable)
            with _disk_errors(path):
                write_atomically(path, (line + b"\n" for line, _ in usable.values()))
        return [record for _, record in usable.values()]


def _open_to_append(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)


def _append(file: int, line: bytes) -> None:
    # A full disk may cut a line short. Such a line is dropped when the evaluation is continued.
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
                f"{path} is damaged in line {number} ({error}); "
                "the same evaluate_model.py command asks for this answer again"
            ) from error
    return answers


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
