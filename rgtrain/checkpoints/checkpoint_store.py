"""The checkpoints of a run on disk: written atomically, verified before a resume, pruned to the last and the best.

The folder holds one `global_step_N` per saved step, each with a manifest of its files. verl reads the last step in the
file LAST. BEST_SCORE is the only record of the best step: one file, so that its step and score belong together.
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
from rgtrain.files import flush, remove_leftovers, write_whole

# verl reads the step to resume from in this file.
LAST = "latest_checkpointed_iteration.txt"
BEST_SCORE = "best_score.json"
MANIFEST = "manifest.json"
# No reader of checkpoints takes a name that begins with this for a step.
_STAGING = ".saving"
_REMOVED = f"{_STAGING}_removed"
_DAMAGED, _SET_ASIDE = "damaged_", "set_aside_"
_BLOCK = 1 << 22
# A disk with less free space than this is full: a checkpoint consists of larger files.
_FULL_DISK_BYTES = 1 << 20


@dataclass(frozen=True)
class Best:
    """The step with the best validation so far. Step 0 is the model before training, which has no checkpoint."""

    step: int
    score: float
    # None in a record of an older version, which averaged several metrics.
    metric: str | None


class CheckpointStore:
    """The checkpoints in `root`.

    Args:
        root: The folder of the checkpoints, which need not exist yet.
        keep: How many of the latest steps to keep, besides the best; None keeps all.
        say: Called with one line about each checkpoint that is passed over, set aside or cannot be removed.
    """

    def __init__(self, root: Path, *, keep: int | None, say: Callable[[str], None]):
        self.root = root
        self._keep = keep
        self._say = say
        self._said: set[str] = set()

    @contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """Yield a folder to write `global_step_{step}` into, and publish that step when the block ends.

        If the block raises, or the step cannot be published, nothing of it is left.

        Raises:
            OSError: The disk is full. Other errors of the block are raised as they are.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._remove_staging()
        staging = self._unused(_STAGING)
        staging.mkdir()
        try:
            yield staging
            self._publish(staging / f"global_step_{step}", step)
        except Exception as error:
            # torch reports a full disk as an error of its file format. The space is free again once staging is removed.
            if shutil.disk_usage(staging).free < _FULL_DISK_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.root)) from error
            raise
        finally:
            self._remove(staging)
        self.prune()

    def _publish(self, written: Path, step: int) -> None:
        write_whole(written / MANIFEST, json.dumps(_sums(written, _files(written)), indent=1) + "\n")
        for path in [*written.rglob("*"), written]:
            flush(path)
        final, replaced = self.root / written.name, self._unused(_REMOVED)
        if os.path.lexists(final):
            final.rename(replaced)
        written.rename(final)
        flush(self.root)
        write_whole(self.root / LAST, str(step))
        self._remove(replaced)

    def mark_best(self, best: Best) -> None:
        """Record `best`, whose step is saved or 0, and remove the checkpoint of the best before it."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_whole(self.root / BEST_SCORE, json.dumps(asdict(best)) + "\n")
        self.prune()

    def best(self) -> Best | None:
        """The best step on record, None if there is no sound record."""
        try:
            return recorded_best(self.root)
        except ConfigError as error:
            self._say_once(f"{error}; the best step is chosen anew")
            return None

    def last_usable(self) -> int | None:
        """The latest step whose files are as they were saved. LAST names it afterwards.

        Returns:
            The step, or None if none was ever saved.

        Raises:
            ConfigError: There are checkpoints, but none can be used.
        """
        if self.root.is_symlink() and not self.root.exists():
            raise ConfigError(
                f"the checkpoint folder {str(self.root)!r} is a link to {str(self.root.readlink())!r}, which does not "
                "exist: mount that disk, or remove the link to start anew"
            )
        steps = self.steps()
        for step in sorted(steps, reverse=True):
            if not (wrong := problems(steps[step])):
                if recorded_last(self.root) != step:
                    write_whole(self.root / LAST, str(step))
                return step
            self._say(f"checkpoint global_step_{step} is passed over: {'; '.join(wrong[:3])}")
        if steps:
            raise ConfigError(
                f"no checkpoint in {str(self.root)!r} can be resumed from: restore one from a copy, set another "
                "run_dir, or set trainer.resume_mode=disable to start anew"
            )
        (self.root / LAST).unlink(missing_ok=True)
        return None

    def steps(self) -> dict[int, Path]:
        """The folders of all steps, complete or not, including links whose target does not exist."""
        matches = ((re.fullmatch(r"global_step_(\d+)", path.name), path) for path in self.root.glob("global_step_*"))
        return {int(match[1]): path for match, path in matches if match and (path.is_dir() or path.is_symlink())}

    def begin_after(self, step: int, *, later_are_damaged: bool) -> None:
        """Make the folder that of a run which continues after `step`. Call it once, before the first save.

        Removes leftovers of interrupted writes. Renames the checkpoints of later steps, because this run writes these
        steps anew. Drops the record of the best if its checkpoint is gone.

        Args:
            step: The step that the run resumes from, 0 for a new run.
            later_are_damaged: Checkpoints of later steps are damaged. They are removed once the run has passed their
                step. Otherwise they are from another run, and are kept until a second one of their step takes the name.
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
            self._say_once(f"{folder} is not part of this run and cannot be renamed ({error.strerror}): move it away")
        else:
            self._say(f"{folder.name} is not part of this run from here on; it is now {aside}")

    def prune(self) -> None:
        """Remove the steps up to LAST, except the latest ones and the best."""
        last = recorded_last(self.root)
        if last is None:
            return
        for path in self.root.glob(f"{_DAMAGED}global_step_*"):
            if (match := re.fullmatch(rf"{_DAMAGED}global_step_(\d+)", path.name)) and int(match[1]) <= last:
                self._remove(path)
        if self._keep is None:
            return
        # A later step must not push out the last one.
        steps = {step: folder for step, folder in self.steps().items() if step <= last}
        best = self.best()
        kept = {*sorted(steps)[-self._keep :], last, best and best.step}
        for step in set(steps) - kept:
            if steps[step].is_symlink():
                self._say(f"removing the link {steps[step].name}; the files at {steps[step].readlink()} remain")
            # The step disappears as a whole before its first file is deleted.
            removed = self._unused(_REMOVED)
            try:
                steps[step].rename(removed)
            except OSError as error:
                self._say_once(f"{steps[step]} is not needed any more and cannot be removed: {error.strerror}")
            else:
                self._remove(removed)

    def _remove_staging(self) -> None:
        for path in self.root.glob(f"{_STAGING}*"):
            self._remove(path)

    def _remove(self, path: Path) -> None:
        """Remove a folder, a file or a link (not its target). If that fails, say so; no save may fail because of it."""
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            self._say_once(f"{path} cannot be removed: {error.strerror}; delete it to free space")

    def _unused(self, name: str) -> Path:
        names = (name if number == 0 else f"{name}_{number}" for number in count())
        return next(path for name in names if not os.path.lexists(path := self.root / name))

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)


def recorded_last(root: Path) -> int | None:
    """The step that LAST in `root` names, None if there is no such file or no number in it."""
    try:
        return int((root / LAST).read_text())
    except (OSError, ValueError):
        return None


def recorded_best(root: Path) -> Best | None:
    """The record of the best step in `root`, None if there is none.

    Raises:
        ConfigError: The record is damaged.
    """
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
            f"{str(path)!r} is damaged: it is no JSON object with a step and a score. Give the number of a step, or "
            "delete the file"
        ) from None
    return best


def problems(folder: Path) -> list[str]:
    """Compare the files of a checkpoint with its manifest.

    Returns:
        One sentence per missing, truncated or damaged file; empty for a sound checkpoint. A checkpoint of another
        program has no manifest and is sound if LAST names it.
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
        return [] if is_last else ["it has no manifest: saving it was interrupted"]
    except (ValueError, RecursionError):
        return [f"{MANIFEST} is damaged"]
    if not _is_manifest(expected):
        return [f"{MANIFEST} is damaged: it lists no files with their sizes and checksums"]
    missing = [f"{name} is missing" for name in expected if not (folder / name).is_file()]
    if missing:
        return missing
    sizes = {name: (folder / name).stat().st_size for name in expected}
    cut = [f"{name} has {sizes[name]} bytes of {size}" for name, (size, _) in expected.items() if sizes[name] != size]
    if cut:
        return cut
    found = _sums(folder, expected)
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
    """The relative paths of all files in `folder` except the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return [path.relative_to(folder).as_posix() for path in paths]


def _sums(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Size and CRC-32 of the files called `names` in `folder`."""
    paths = {name: folder / name for name in names}
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(_crc, paths.values()))
    return {name: [path.stat().st_size, crc] for (name, path), crc in zip(paths.items(), sums, strict=True)}


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
