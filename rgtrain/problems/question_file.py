"""Problems from a file of questions and answers: one JSON object per line, with the keys `question` and `answer`."""

import hashlib
import importlib.util
import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from rgtrain.errors import ConfigError, choose_from
from rgtrain.paths import path_from_here
from rgtrain.problems.entries import fingerprint
from rgtrain.problems.mixture import DatasetSpec
from rgtrain.problems.plugins import PLUGIN_PREFIX
from rgtrain.problems.question_sources import SOURCES, QuestionSource
from rgtrain.problems.scoring.judges import allow_verifier
from rgtrain.problems.scoring.verifiers import VERIFIERS

MAX_BYTES = 1 << 30
MAX_ROWS = 1_000_000
_ROWS = ("all", "training", "held_out")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Number of faulty lines that a message names.
_MAX_NAMED = 3
# The share of rows from which on an answer is worth a warning, and the least rows for which a share means something.
_FREQUENT, _FEW_ROWS = 0.25, 20


@dataclass(frozen=True)
class Question:
    """A row of a file. `metadata` has its further keys."""

    question: str
    answer: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class _Content:
    """The rows of a file, and the SHA-256 of its bytes."""

    rows: Sequence[Question]
    sha256: str


class QuestionFile(QuestionSource):
    """The questions of a file, in random order and again in another order after the last one.

    A stated share of the rows is held out for validation. The content of a question decides whether it is held out, so
    the split depends neither on the order of the rows nor on a seed.

    Args:
        params: The parameters that `read` returned. With `is_shuffled`, the order is random.
        seed: The seed of the order.

    Attributes:
        rows: The selected rows, in the order of the file.
    """

    generator = "question_file"
    key = "path"
    options: ClassVar[tuple[str, ...]] = ("verifier", "held_out", "sha256")
    evaluation_options = ("rows",)

    def __init__(self, params: Mapping[str, Any], *, seed: int) -> None:
        self._params = params
        self._seed = seed
        rows = load_questions(Path(params["path"]), verifier=params["verifier"]).rows
        self.rows = select_rows(rows, params["rows"], share=params["held_out"])
        self._pass: tuple[int, Sequence[int]] = (-1, ())

    @classmethod
    def read(cls, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Read the keys `path`, `verifier`, `held_out`, `rows` and `sha256` of an entry, and check the file.

        Args:
            name: The name of the entry.
            entry: Its values.

        Returns:
            The parameters.

        Raises:
            ConfigError: A value or a row of the file cannot be used, or the file has another content than `sha256`.
        """
        where = f"dataset {name!r}"
        shares, sha256 = read_shares(entry, where=where), entry.get("sha256")
        if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
            raise ConfigError(f"{where} has sha256 {sha256!r}; leave it out, or give 64 hexadecimal digits")
        verifier = entry.get("verifier", "exact")
        allow_verifier(verifier, where=where)
        path = find_file(entry["path"], where=where)
        try:
            content = load_questions(path, verifier=verifier)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if sha256 not in (None, content.sha256):
            raise ConfigError(
                f"{where} names {path}, whose SHA-256 is {content.sha256}, but sha256 is {sha256}; restore the file, "
                "or correct sha256"
            )
        params = {"path": str(path), "verifier": verifier, **shares}
        return params | {"sha256": content.sha256}

    @classmethod
    def params_of_split(cls, params: Mapping[str, Any], *, is_training: bool) -> Mapping[str, Any]:
        """Return the parameters for the training rows or else for the held-out rows, in random order."""
        return {**params, "rows": "training" if is_training else "held_out", "is_shuffled": True}

    @property
    def num_problems(self) -> int:
        """The number of selected rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, position = divmod(index, len(self.rows))
        if self._params.get("is_shuffled"):
            if self._pass[0] != number:
                order = random.Random(f"{self._seed}/{number}").sample(range(len(self.rows)), len(self.rows))
                self._pass = number, order
            position = self._pass[1][position]
        row = self.rows[position]
        return {"question": row.question, "answer": row.answer, "metadata": dict(row.metadata)}

    def scorer(self) -> tuple[str, Mapping[str, Any]]:
        """Return the verifier, which needs no parameters."""
        return allow_verifier(self._params["verifier"], where="the file"), {}


def read_shares(entry: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return `held_out` and `rows` of an entry of a mixture, or raise ConfigError."""
    held_out, rows = entry.get("held_out", 0.1), entry.get("rows", "all")
    if isinstance(held_out, bool) or not isinstance(held_out, int | float) or not 0 < held_out < 1:
        raise ConfigError(f"{where} has held_out {held_out!r}; give the held-out share of the rows, such as 0.1")
    if rows not in _ROWS:
        raise ConfigError(f"{where} has rows {rows!r}; {choose_from(str(rows), _ROWS)}")
    return {"held_out": held_out, "rows": rows}


def find_file(given: Any, *, where: str) -> Path:
    """Return the path of a file of questions.

    Args:
        given: An absolute path, a path relative to the current folder or else to the project's root, or
            `pkg://package/FILE` for a file in a package.
        where: The owner of the file, for messages.

    Returns:
        The absolute path.

    Raises:
        ConfigError: There is no such file.
    """
    if not isinstance(given, str) or not given.strip():
        raise ConfigError(f"{where} has path {given!r}; give the path of a file of questions, such as questions.jsonl")
    if given.startswith(PLUGIN_PREFIX):
        package, _, inside = given.removeprefix(PLUGIN_PREFIX).partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"{where} has path {given!r}, but there is no package {package!r}; install it")
        path = Path(next(iter(spec.submodule_search_locations))) / inside
    else:
        path = path_from_here(given)
    if not path.is_file():
        raise ConfigError(f"{where} has path {given!r}, which is not a file (looked for {path.absolute()})")
    return path.absolute()


def load_questions(path: Path, *, verifier: str) -> _Content:
    """Read and check a file of questions. The result is cached until the file changes.

    Args:
        path: The file.
        verifier: The verifier, which may not allow every answer.

    Returns:
        The rows and the hash of the file.

    Raises:
        ConfigError: The file cannot be read or is too large, or a line cannot be used. The message names the lines.
    """
    try:
        found = path.stat()
        return _load(path, verifier, (found.st_mtime_ns, found.st_size, found.st_ino))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


@lru_cache(maxsize=8)
def _load(path: Path, verifier: str, identity: tuple[int, int, int]) -> _Content:
    if identity[1] > MAX_BYTES:
        raise ConfigError(f"{path} has {identity[1]} bytes; at most {MAX_BYTES} are allowed, so split it")
    content = path.read_bytes()
    rows: list[Question] = []
    faults: list[str] = []
    first_lines: dict[str, int] = {}
    # Only \n ends a line. A text may contain other line separators of Unicode.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _parse_row(line, verifier)
            earlier = first_lines.setdefault(fingerprint("", row.question), number)
            if earlier != number:
                raise ValueError(f"it repeats the question of line {earlier}; keep one of them")
            rows.append(row)
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        more = f"; and {len(faults) - _MAX_NAMED} more lines" if len(faults) > _MAX_NAMED else ""
        raise ConfigError(f"{path} cannot be used: {'; '.join(faults[:_MAX_NAMED])}{more}")
    if not 2 <= len(rows) <= MAX_ROWS:
        raise ConfigError(f"{path} has {len(rows)} questions; give from 2 to {MAX_ROWS}, one JSON object per line")
    return _Content(rows, hashlib.sha256(content).hexdigest())


def _parse_row(line: bytes, verifier: str) -> Question:
    """Read a line; raise ValueError with the fault and its fix."""
    try:
        row = json.loads(line.decode(), parse_constant=_refuse_constant, object_pairs_hook=_without_repeated_keys)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte 0x{line[error.start]:02x} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON ({error.msg} at column {error.colno}); write one object") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError(f"it is a {type(row).__name__}; write an object with question and answer")
    texts = {}
    for key in ("question", "answer"):
        if key not in row:
            raise ValueError(f"it has no {key!r}; {choose_from(key, row)}" if row else f"it has no {key!r}")
        value = row.pop(key)
        if key == "answer" and isinstance(value, int | float) and not isinstance(value, bool):
            value = json.dumps(value)
        if not isinstance(value, str):
            raise ValueError(f"its {key} is {value!r:.60}; write a text")
        if not value.strip():
            raise ValueError(f"its {key} is empty; write a text")
        if not value.isascii() and _SURROGATE.search(value):
            raise ValueError(f"its {key} has half of a surrogate pair, which is no character; remove it")
        texts[key] = value
    if verifier in VERIFIERS and not VERIFIERS[verifier].allows(texts["answer"]):
        needed = VERIFIERS[verifier].words
        raise ValueError(f"its answer is {texts['answer'][:60]!r}; verifier {verifier!r} needs {needed}")
    metadata = row.pop("metadata", {})
    return Question(texts["question"], texts["answer"], {**(metadata if isinstance(metadata, dict) else {}), **row})


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON; write a text")


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice; keep one of them")
        found[key] = value
    return found


def select_rows(rows: Sequence[Question], which: str, *, share: float) -> Sequence[Question]:
    """Return all, the training or the held-out rows, in the order of the file."""
    if which == "all":
        return rows
    num_held_out = min(max(1, round(share * len(rows))), len(rows) - 1)
    digests = [fingerprint("held out", row.question) for row in rows]
    limit = sorted(digests)[num_held_out - 1]
    return [row for row, digest in zip(rows, digests, strict=True) if (digest <= limit) == (which == "held_out")]


def answer_warning(spec: DatasetSpec) -> str | None:
    """Return a warning if one answer is right for so many training rows that a model may learn it.

    Args:
        spec: A mixture entry with a file.

    Returns:
        One line; None if there is no such answer, or an own function judges.
    """
    if str(spec.params["verifier"]).startswith(PLUGIN_PREFIX):
        return None
    source = QuestionFile(QuestionFile.params_of_split(spec.params, is_training=True), seed=0)
    [(answer, count)] = Counter(" ".join(row.answer.casefold().split()) for row in source.rows).most_common(1)
    share = count / source.num_problems
    if share < _FREQUENT or source.num_problems < _FEW_ROWS:
        return None
    return f"dataset {spec.name!r}: the constant answer {answer[:40]!r} is right for {share:.0%} of its training rows"


SOURCES[QuestionFile.generator] = QuestionFile
