"""The folder of one evaluation's results: every answer kept as soon as it is judged, none lost, doubled or mixed in."""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.evaluating.answers import Answer
from rgtrain.files import write_whole

# What a crash of the machine (not of this process) may cost.
_SECONDS_BETWEEN_SYNCS = 1.0


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
        """Continue or begin the evaluation that `identity`, plain JSON values, tells apart from all others.

        Raises ConfigError where the folder can't be written, holds another evaluation, or is being written to now.
        """
        with self._locked():
            self._check_identity(json.loads(json.dumps(identity)))
            if not self._identity.is_file():
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
        there = json.loads(self._identity.read_text(encoding="utf-8"))
        changed = sorted(key for key in wanted.keys() | there.keys() if wanted.get(key) != there.get(key))
        if changed:
            told = (f"{key} ({_short(there.get(key))} there, {_short(wanted.get(key))} now)" for key in changed)
            raise ConfigError(
                f"{self.path} holds the results of another evaluation, with other {', '.join(told)}; "
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
        os.fsync(self._file)
        os.close(self._file)

    def add(self, answer: Answer) -> None:
        """Keep one more answer. It outlives this process at once, and a crash of the machine within a second or so."""
        line = answer.to_line()
        # A line in one write is whole or, where the disk is full, an error; a torn one is dropped when continuing.
        if os.write(self._file, line) != len(line):
            raise OSError(f"the disk of {self._folder.results} is full; the same command continues")
        self.answers.append(answer)
        if time.monotonic() - self._synced_at > _SECONDS_BETWEEN_SYNCS:
            os.fsync(self._file)
            self._synced_at = time.monotonic()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Put the answers in their problems' order; the summary comes last, so where it is, all is."""
        self.answers.sort(key=lambda answer: answer.key)
        write_whole(self._folder.results, (answer.to_line() for answer in self.answers))
        write_whole(self._folder.summary, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def read_answers(path: Path) -> list[Answer]:
    """The answers in a results.jsonl. Raises ConfigError where it can't be read or holds anything else."""
    try:
        lines = path.read_bytes().split(b"\n")
        return [Answer.from_line(line) for line in lines if line]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no results.jsonl of evaluate_model.py: {error!r:.200}") from error


def _recover(path: Path) -> list[Answer]:
    """The answers in `path`, from which the end is cut off that was being written when its writer was killed."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    # Behind the last end of line comes nothing, or a line that was not written whole.
    lines.pop()
    answers = [_parse(line) for line in lines]
    # A crash of the machine may leave more lines unwritten, but only at the end.
    while answers and answers[-1] is None:
        answers.pop()
    length = sum(len(line) + 1 for line in lines[: len(answers)])
    if length < path.stat().st_size:
        os.truncate(path, length)
    keys = {answer.key for answer in answers if answer}
    if len(keys) < len(answers):
        raise ConfigError(
            f"{path} is damaged: {answers.count(None)} of its {len(answers)} lines are no answers, and "
            f"{len(answers) - answers.count(None) - len(keys)} stand twice; delete {path.parent} and begin again"
        )
    return answers


def _parse(line: bytes) -> Answer | None:
    try:
        return Answer.from_line(line)
    except (ValueError, TypeError):
        return None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
