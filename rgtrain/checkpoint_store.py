"""A run's checkpoints on the disk: written beside, seen only when published, checked before they are continued from.

The folder holds `global_step_N` folders, each with a manifest of its files, and two files with a step's number.
"""

import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from rgtrain.errors import ConfigError
from rgtrain.files import flush, write_whole

# The last complete step, under the name that verl gives it, and the best so far.
LAST = "latest_checkpointed_iteration.txt"
BEST = "best_checkpointed_iteration.txt"
MANIFEST = "manifest.json"
BEST_SCORE = "best_score.json"
# A name that no reader of checkpoints takes for a step.
_STAGING = ".saving"
_BLOCK = 1 << 22


class CheckpointStore:
    """The checkpoints in `root`, of which `keep` (None: all) and the best are kept.

    `say` is told in a line each what is passed over or removed.
    """

    def __init__(self, root: Path, *, keep: int | None, say: Callable[[str], None]):
        self.root = root
        self._keep = keep
        self._say = say

    @contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """A folder to write `global_step_{step}` into, which `publish` then shows; if this raises, nothing is left."""
        staging = self.root / _STAGING
        for left_behind in self.root.glob(f"{_STAGING}*"):
            shutil.rmtree(left_behind)
        staging.mkdir(parents=True)
        with self._removed_on_failure():
            yield staging

    def publish(self, step: int) -> None:
        """Have what was written for `step` in `root`, whole and on the disk, or, if this raises, nothing of it."""
        with self._removed_on_failure():
            self._show(self.root / _STAGING / f"global_step_{step}", step)
        shutil.rmtree(self.root / _STAGING)
        self._prune()

    @contextmanager
    def _removed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            shutil.rmtree(self.root / _STAGING, ignore_errors=True)
            raise

    def _show(self, written: Path, step: int) -> None:
        sums = _sums(written)
        write_whole(written / MANIFEST, json.dumps(sums, indent=1) + "\n")
        for path in [*written.rglob("*"), written]:
            flush(path)
        final = self.root / written.name
        # Of an earlier attempt that was found damaged.
        shutil.rmtree(final, ignore_errors=True)
        written.rename(final)
        flush(self.root)
        write_whole(self.root / LAST, str(step))

    def mark_best(self, step: int, score: float) -> None:
        """Keep `step`, which is saved, as the best so far."""
        write_whole(self.root / BEST_SCORE, json.dumps({"step": step, "score": score}) + "\n")
        write_whole(self.root / BEST, str(step))
        self._prune()

    def best_score(self) -> float | None:
        """The score of the best step so far."""
        try:
            return json.loads((self.root / BEST_SCORE).read_text())["score"]
        except FileNotFoundError:
            return None

    def last_usable(self) -> int | None:
        """The latest step whose files are what was saved; the tracker then names it. None where none was ever saved.

        Raises ConfigError where there are checkpoints but none that can be used.
        """
        steps = self.steps()
        for step in sorted(steps, reverse=True):
            if not (wrong := problems(steps[step])):
                write_whole(self.root / LAST, str(step))
                return step
            self._say(f"checkpoint global_step_{step} is passed over: {'; '.join(wrong[:3])}")
        if steps:
            raise ConfigError(
                f"no checkpoint in {str(self.root)!r} can be continued from: bring one back from a copy, set another "
                "run_dir, or trainer.resume_mode=disable to begin anew"
            )
        return None

    def steps(self) -> dict[int, Path]:
        """The folders of all steps that are there, complete or not."""
        matches = ((re.fullmatch(r"global_step_(\d+)", path.name), path) for path in self.root.glob("global_step_*"))
        return {int(match[1]): path for match, path in matches if match and path.is_dir()}

    def _prune(self) -> None:
        if self._keep is None:
            return
        steps = self.steps()
        kept = {*sorted(steps)[-self._keep :], _recorded(self.root / BEST)}
        for step in set(steps) - kept:
            # Not a step any more before its first file is gone.
            removed = steps[step].rename(self.root / f"{_STAGING}_removed")
            shutil.rmtree(removed)


def problems(folder: Path) -> list[str]:
    """What is wrong with a checkpoint's files, each named; empty for one that is as it was saved.

    A checkpoint without a manifest, by another program, is taken if its tracker names it.
    """
    try:
        expected = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        tracked = _recorded(folder.parent / LAST)
        return [] if folder.name == f"global_step_{tracked}" else ["it has no manifest: saving it was interrupted"]
    except ValueError:
        return [f"{MANIFEST} is damaged"]
    missing = [f"{name} is missing" for name in expected if not (folder / name).is_file()]
    if missing:
        return missing
    sizes = {name: (folder / name).stat().st_size for name in expected}
    cut = [f"{name} has {sizes[name]} bytes of {size}" for name, (size, _) in expected.items() if sizes[name] != size]
    if cut:
        return cut
    found = _sums(folder)
    return [f"{name} is damaged" for name, sums in expected.items() if found.get(name) != sums]


def _sums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file in `folder` but the manifest, by its relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(_crc, paths))
    return {str(path.relative_to(folder)): [path.stat().st_size, crc] for path, crc in zip(paths, sums, strict=True)}


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def _recorded(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
