"""Write a run's checkpoints atomically, verify them before a resume, and prune them to the last steps and the best.

The folder holds one `global_step_N` folder per saved step, each with a manifest of its files. The file LAST, which verl
reads, names the last step. BEST_SCORE records the best step. It is one file, so its step and score always match.
"""

import errno
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path, PurePosixPath

from rgtrain.errors import ConfigError
from rgtrain.files import flush, remove_leftovers, write_atomically

# The file from which verl reads the step to resume from.
LAST = "latest_checkpointed_iteration.txt"
BEST_SCORE = "best_score.json"
MANIFEST = "manifest.json"
# Readers of checkpoints ignore names with this prefix.
_STAGING = ".saving"
_REMOVED = f"{_STAGING}_removed"
_DAMAGED, _SET_ASIDE = "damaged_", "set_aside_"
_BLOCK_BYTES = 1 << 22
# A disk counts as full below this: checkpoint files are larger.
_FULL_DISK_BYTES = 1 << 20


@dataclass(frozen=True)
class Best:
    """The step with the best validation score so far. Step 0 is the initial model, which has no checkpoint."""

    step: int
    score: float
    # None in records of older versions, which averaged several metrics.
    metric: str | None


class CheckpointStore:
    """The checkpoints in `root`.

    Args:
        root: The checkpoint folder, which need not exist yet.
        keep: The number of latest steps to keep in addition to the best; None keeps all.
        say: Called with one line for each checkpoint that is skipped, set aside or cannot be removed.
    """

    def __init__(self, root: Path, *, keep: int | None, say: Callable[[str], None]):
        self.root = root
        self._keep = keep
        self._say = say
        self._said: set[str] = set()

    @contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """Write a checkpoint atomically: it appears when the block ends, and not at all if the block raises.

        Args:
            step: The step of the checkpoint.

        Yields:
            A folder in which to create `global_step_{step}`.

        Raises:
            OSError: The disk is full. Other errors of the block are raised unchanged.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._remove_staging()
        staging = self._unused(_STAGING)
        staging.mkdir()
        try:
            yield staging
            self._publish(staging / f"global_step_{step}", step)
        except Exception as error:
            # torch reports a full disk as a file format error. Check the space before removing the staging folder.
            if shutil.disk_usage(staging).free < _FULL_DISK_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.root)) from error
            raise
        finally:
            self._remove(staging)
        self.prune()

    def _publish(self, written: Path, step: int) -> None:
        write_atomically(
            written / MANIFEST, json.dumps(_sizes_and_checksums(written, _files(written)), indent=1) + "\n"
        )
        for path in [*written.rglob("*"), written]:
            flush(path)
        final, replaced = self.root / written.name, self._unused(_REMOVED)
        if os.path.lexists(final):
            final.rename(replaced)
        written.rename(final)
        flush(self.root)
        write_atomically(self.root / LAST, str(step))
        self._remove(replaced)

    def mark_best(self, best: Best) -> None:
        """Record `best`, whose step is saved or 0, and remove the checkpoint of the previous best."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomically(self.root / BEST_SCORE, json.dumps(asdict(best)) + "\n")
        self.prune()

    def best(self) -> Best | None:
        """Return the recorded best step, or None if there is no valid record."""
        try:
            return recorded_best(self.root)
        except ConfigError as error:
            self._say_once(f"{error}. The next validation starts a new record")
            return None

    def last_usable(self) -> int | None:
        """Find the latest step whose files match their manifest, and record it in LAST.

        Returns:
            The step, or None if there are no checkpoints.

        Raises:
            ConfigError: There are checkpoints, but all are damaged.
        """
        if self.root.is_symlink() and not self.root.exists():
            raise ConfigError(
                f"the checkpoint folder {str(self.root)!r} is a link to {str(self.root.readlink())!r}, which does not "
                "exist: mount that disk, or remove the link to start a new run"
            )
        steps = self.steps()
        for step in sorted(steps, reverse=True):
            if not (wrong := problems(steps[step])):
                if recorded_last(self.root) != step:
                    write_atomically(self.root / LAST, str(step))
                return step
            self._say(f"skipping checkpoint global_step_{step}: {'; '.join(wrong[:3])}")
        if steps:
            raise ConfigError(
                f"all checkpoints in {str(self.root)!r} are unusable: restore one from a copy, choose another run_dir, "
                "or set trainer.resume_mode=disable to start a new run"
            )
        (self.root / LAST).unlink(missing_ok=True)
        return None

    def steps(self) -> dict[int, Path]:
        """Return the folders of all steps by number, including incomplete ones and broken links."""
        matches = ((re.fullmatch(r"global_step_(\d+)", path.name), path) for path in self.root.glob("global_step_*"))
        return {int(match[1]): path for match, path in matches if match and (path.is_dir() or path.is_symlink())}

    def begin_after(self, step: int, *, later_are_damaged: bool) -> None:
        """Prepare the folder for a run that continues after `step`. Call this once, before the first save.

        This removes temporary files of interrupted writes, renames the checkpoints of later steps, which the run will
        write again, and deletes the record of the best step if its checkpoint is gone.

        Args:
            step: The step that the run resumes from, 0 for a new run.
            later_are_damaged: Whether the checkpoints of later steps are damaged. If so, they are deleted once the run
                has passed their step. Otherwise they belong to another run and are kept until a checkpoint of the same
                step has to be set aside.
        """
        if not self.root.is_dir():
            return
        self._remove_staging()
        remove_leftovers(self.root, (LAST, BEST_SCORE))
        for later, folder in sorted(self.steps().items()):
            if later > step:
                self._set_aside(folder, _DAMAGED if later_are_damaged else _SET_ASIDE)
        best = self.best()
        if step == 0 or best is None or best.step not in {0, *self.steps()}:
            self._remove(self.root / BEST_SCORE)
        if step == 0:
            self._remove(self.root / LAST)

    def _set_aside(self, folder: Path, prefix: str) -> None:
        aside = self.root / f"{prefix}{folder.name}"
        self._remove(aside)
        try:
            folder.rename(aside)
        except OSError as error:
            self._say_once(
                f"{folder} does not belong to this run and cannot be renamed ({error.strerror}); move it away"
            )
        else:
            self._say(f"{folder.name} is later than the step that this run continues from and was renamed to {aside}")

    def prune(self) -> None:
        """Remove all steps up to LAST except the latest `keep` and the best."""
        last = recorded_last(self.root)
        if last is None:
            return
        for path in self.root.glob(f"{_DAMAGED}global_step_*"):
            if (match := re.fullmatch(rf"{_DAMAGED}global_step_(\d+)", path.name)) and int(match[1]) <= last:
                self._remove(path)
        if self._keep is None:
            return
        # Later steps belong to another run and must not displace the last step of this one.
        steps = {step: folder for step, folder in self.steps().items() if step <= last}
        best = self.best()
        kept = {*sorted(steps)[-self._keep :], last, best and best.step}
        for step in set(steps) - kept:
            if steps[step].is_symlink():
                self._say(f"removing the link {steps[step].name}; the files at {steps[step].readlink()} remain")
            # Rename the folder first, so that a crash while deleting leaves no incomplete step.
            removed = self._unused(_REMOVED)
            try:
                steps[step].rename(removed)
            except OSError as error:
                self._say_once(f"{steps[step]} is no longer needed but cannot be removed ({error.strerror})")
            else:
                self._remove(removed)

    def _remove_staging(self) -> None:
        for path in self.root.glob(f"{_STAGING}*"):
            self._remove(path)

    def _remove(self, path: Path) -> None:
        """Remove a folder, a file or a link (not its target). Report a failure, because no save may fail over it."""
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            self._say_once(f"{path} cannot be removed ({error.strerror}); delete it to free space")

    def _unused(self, name: str) -> Path:
        names = (name if number == 0 else f"{name}_{number}" for number in count())
        return next(path for name in names if not os.path.lexists(path := self.root / name))

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)


def recorded_last(root: Path) -> int | None:
    """Return the step that LAST in `root` names, or None if there is no such file or no number in it."""
    try:
        return int((root / LAST).read_text())
    except (OSError, ValueError):
        return None


def recorded_best(root: Path) -> Best | None:
    """Return the recorded best step in `root`, or None if there is none. Raise ConfigError if the record is damaged."""
    path = root / BEST_SCORE
    try:
        record = json.loads(path.read_text())
        best = Best(record["step"], record["score"], record.get("metric"))
        types = (int, int | float, str | None)
        is_sound = all(isinstance(value, kind) for value, kind in zip(asdict(best).values(), types, strict=True))
        if not is_sound or isinstance(best.step, bool) or best.step < 0 or not math.isfinite(best.score):
            raise ValueError("it needs a step and a score")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        raise ConfigError(
            f"{str(path)!r} is damaged: it must be a JSON object with a step and a score. Give a step by number, or "
            "delete the file"
        ) from None
    return best


def problems(folder: Path) -> list[str]:
    """Compare the files of a checkpoint with its manifest.

    Args:
        folder: A `global_step_N` folder.

    Returns:
        One sentence per missing, truncated or damaged file; empty for an intact checkpoint. A checkpoint without a
        manifest (saved by another program) counts as intact if LAST names it.
    """
    try:
        return _problems(folder)
    except OSError as error:
        return [f"it cannot be read: {error.strerror}"]


def _problems(folder: Path) -> list[str]:
    if folder.is_symlink() and not folder.exists():
        return [f"it is a link to {folder.readlink()}, which does not exist"]
    try:
        expected = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        is_last = folder.name == f"global_step_{recorded_last(folder.parent)}"
        return [] if is_last else ["it has no manifest because saving it was interrupted"]
    except (ValueError, RecursionError):
        return [f"{MANIFEST} is damaged"]
    if not _is_manifest(expected):
        return [f"{MANIFEST} is damaged: it must list files with their sizes and checksums"]
    missing = [f"{name} is missing" for name in expected if not (folder / name).is_file()]
    if missing:
        return missing
    sizes = {name: (folder / name).stat().st_size for name in expected}
    cut = [f"{name} has {sizes[name]} bytes of {size}" for name, (size, _) in expected.items() if sizes[name] != size]
    if cut:
        return cut
    found = _sizes_and_checksums(folder, expected)
    return [f"{name} is damaged" for name, sums in expected.items() if found.get(name) != sums]


def _is_manifest(content: object) -> bool:
    if not isinstance(content, dict) or not content:
        return False
    for name, sums in content.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            return False
        if not isinstance(sums, list) or len(sums) != 2 or not all(type(number) is int for number in sums):
            return False
    return True


def _files(folder: Path) -> list[str]:
    """Return the relative paths of all files in `folder` except the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return [path.relative_to(folder).as_posix() for path in paths]


def _sizes_and_checksums(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Return the size and CRC-32 of the files called `names` in `folder`."""
    paths = {name: folder / name for name in names}
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(_crc32, paths.values()))
    return {name: [path.stat().st_size, crc] for (name, path), crc in zip(paths.items(), sums, strict=True)}


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc
