"""Keep rollouts of a run in its folder `rollouts/`, in compressed files with an index.

Each block of the files is one gzip member with a JSON line per group. `zcat FILE` therefore prints a whole file. The
index has a JSON line per block. A block counts only once its line is written, so an interrupted write leaves no trace.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rgtrain.files import write_atomically

ROLLOUTS = "rollouts"
INDEX = "index.jsonl"
TRAINING, VALIDATION = "training", "validation"
# Training steps per file. The oldest file is deleted as a whole if the folder becomes too large.
_STEPS_PER_FILE = 20
# Larger blocks are damaged: 4,000 answers of 100,000 characters each fit.
_MAX_BLOCK_BYTES = 1 << 29


@dataclass(frozen=True)
class KeptCompletion:
    """A completion with its reward.

    Attributes:
        text: The text without special tokens.
        answer: The extracted answer, or None if there is none.
        reward: The total reward.
        details: The details of the reward by name, for example `acc` and `reward_PART`.
        num_tokens: The length in tokens.
        finish_reason: `length` if the completion was cut off, else `stop`.
        advantage: The mean advantage of its tokens. None in validation.
        mean_log_prob: The mean log-probability of its tokens in vLLM, in nats. None if unknown.
        rollout_gap: The mean absolute difference of that from the engine's log-probability, in nats. None if unknown.
    """

    text: str
    answer: str | None
    reward: float
    details: Mapping[str, float]
    num_tokens: int
    finish_reason: Literal["stop", "length"]
    advantage: float | None = None
    mean_log_prob: float | None = None
    rollout_gap: float | None = None


@dataclass(frozen=True)
class KeptGroup:
    """A prompt with all its completions.

    Attributes:
        dataset: The dataset of the problem.
        level: The level in the dataset's curriculum. None without a curriculum.
        digest: The digest of the problem, as in `trained_problems.txt`.
        prompt: The whole prompt with special tokens.
        expected_answer: The answer of the problem's entry, of which other answers may be right too.
        chosen_as: The reasons for which the group was kept: `first`, `random`, `best`, `worst`. Empty in validation.
        completions: The completions in the order of their numbers.
    """

    dataset: str
    level: int | None
    digest: str
    prompt: str
    expected_answer: str
    chosen_as: Sequence[str]
    completions: Sequence[KeptCompletion]


@dataclass(frozen=True)
class RolloutBlock:
    """The groups of one step in a file.

    Attributes:
        step: The training step. In validation, the step after which it ran.
        split: `training` or `validation`.
        file: The name of the file.
        offset: The position of the first byte.
        num_bytes: The compressed size.
        num_groups: The number of groups.
    """

    step: int
    split: str
    file: str
    offset: int
    num_bytes: int
    num_groups: int


class RolloutFiles:
    """Writes rollouts. Opening the folder removes those of steps that the run will repeat.

    Args:
        folder: The folder, which is created if necessary.
        max_bytes: The maximum size of all files. The oldest training files are deleted first, then the oldest files of
            validations. The newest file always stays.
        first_step: The first step that this start of the run will write.
    """

    def __init__(self, folder: Path, *, max_bytes: int, first_step: int):
        self._folder = folder
        self._max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._blocks = [block for block in read_index(folder) if block.step < first_step]
        self._write_index()
        self._remove_unlisted()

    def append(self, groups: Sequence[KeptGroup], *, step: int, split: str) -> None:
        """Write the groups of a step. They replace those that were written for the same step and split.

        Args:
            groups: The groups.
            step: The training step.
            split: `training` or `validation`.

        Raises:
            OSError: The files cannot be written, for example because the disk is full.
        """
        if any((block.step, block.split) == (step, split) for block in self._blocks):
            self._blocks = [block for block in self._blocks if (block.step, block.split) != (step, split)]
            self._write_index()
        name = self._file_of(step, split)
        lines = "".join(json.dumps(_fields(group), ensure_ascii=False) + "\n" for group in groups)
        # Lone surrogates cannot be encoded.
        block_bytes = gzip.compress(lines.encode("utf-8", "replace"), compresslevel=6, mtime=0)
        # Bytes behind the last listed block are left from an interrupted write.
        offset = max((block.offset + block.num_bytes for block in self._blocks if block.file == name), default=0)
        path = self._folder / name
        path.touch()
        with path.open("r+b") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(block_bytes)
        block = RolloutBlock(step, split, name, offset, len(block_bytes), len(groups))
        with (self._folder / INDEX).open("a", encoding="utf-8") as index:
            index.write(json.dumps(asdict(block)) + "\n")
        self._blocks.append(block)
        self._limit_size()

    def _file_of(self, step: int, split: str) -> str:
        if split == TRAINING:
            step = (step - 1) // _STEPS_PER_FILE * _STEPS_PER_FILE + 1
        return f"{split}-{step:06}.jsonl.gz"

    def _limit_size(self) -> None:
        """Delete the oldest files until the others fit."""
        newest, sizes = self._blocks[-1].file, self._sizes()
        oldest_first = sorted(sizes, key=lambda name: (name.startswith(VALIDATION), name))
        deleted = set()
        for name in oldest_first:
            if sum(sizes.values()) <= self._max_bytes:
                break
            if name != newest:
                deleted.add(name)
                del sizes[name]
        if deleted:
            self._blocks = [block for block in self._blocks if block.file not in deleted]
            self._write_index()
            self._remove_unlisted()

    def _sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for block in self._blocks:
            sizes[block.file] = sizes.get(block.file, 0) + block.num_bytes
        return sizes

    def _write_index(self) -> None:
        lines = "".join(json.dumps(asdict(block)) + "\n" for block in self._blocks)
        write_atomically(self._folder / INDEX, lines)

    def _remove_unlisted(self) -> None:
        listed = self._sizes()
        for path in self._folder.glob("*.jsonl.gz"):
            if path.name not in listed:
                path.unlink(missing_ok=True)


def read_index(folder: Path) -> list[RolloutBlock]:
    """Return the blocks of a folder in the order of writing, without damaged lines.

    Args:
        folder: The folder `rollouts/` of a run. If it does not exist, there are no blocks.

    Returns:
        The blocks.
    """
    try:
        lines = (folder / INDEX).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [block for line in lines if (block := _block(line)) is not None]


def _block(line: str) -> RolloutBlock | None:
    try:
        block = RolloutBlock(**json.loads(line))
    # Brackets nested too deeply raise RecursionError.
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = (block.step, block.offset, block.num_bytes, block.num_groups)
    is_sound = all(type(number) is int and number >= 0 for number in numbers) and block.num_bytes <= _MAX_BLOCK_BYTES
    # A name with a separator could lead out of the folder.
    is_plain = isinstance(block.file, str) and Path(block.file).name == block.file
    return block if is_sound and is_plain and block.split in (TRAINING, VALIDATION) else None


def read_rollouts(folder: Path, blocks: Sequence[RolloutBlock]) -> Iterator[tuple[RolloutBlock, list[KeptGroup]]]:
    """Read blocks one at a time. Damaged blocks are skipped.

    Args:
        folder: The folder `rollouts/` of a run.
        blocks: Some blocks of `read_index`.

    Yields:
        Each block and its groups.
    """
    for block in blocks:
        try:
            with (folder / block.file).open("rb") as file:
                file.seek(block.offset)
                text = _decompressed(file.read(block.num_bytes)).decode("utf-8", "replace")
            # Texts may contain other line separators than this one.
            groups = [_group(json.loads(line)) for line in text.split("\n") if line]
        except (OSError, zlib.error, ValueError, TypeError, KeyError, RecursionError):
            continue
        if len(groups) == block.num_groups:
            yield block, groups


def _decompressed(member: bytes) -> bytes:
    reader = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    return reader.decompress(member, _MAX_BLOCK_BYTES)


def _fields(group: KeptGroup) -> dict[str, Any]:
    # `asdict` copies every value, which takes longer than all the rest.
    return {**vars(group), "completions": [vars(completion) for completion in group.completions]}


def _group(fields: Mapping[str, Any]) -> KeptGroup:
    completions = [KeptCompletion(**completion) for completion in fields["completions"]]
    return KeptGroup(**{**fields, "completions": completions})
