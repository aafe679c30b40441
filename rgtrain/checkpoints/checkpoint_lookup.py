"""Find the checkpoint that a user refers to by a run folder, a checkpoint folder or a step."""

import logging
from pathlib import Path

from rgtrain.checkpoints.checkpoint_store import BEST_SCORE, LAST, recorded_best
from rgtrain.checkpoints.metrics_file import METRICS, read_metrics, validation_score
from rgtrain.checkpoints.shards.checkpoint import STEP_FOLDER, Checkpoint, complete_checkpoint, is_model_folder
from rgtrain.checkpoints.untrusted_files import read_bounded
from rgtrain.errors import ConfigError

_MAX_TRACKER_BYTES = 100

logger = logging.getLogger(__name__)


def find_checkpoint(checkpoint_dir: Path, *, step: str | int | None = None) -> Checkpoint:
    """Find the sharded model in a folder of rank files, in a `global_step_N` folder, or in a run folder.

    Args:
        checkpoint_dir: A folder of rank files, a `global_step_N` folder (its actor is used), a run folder, or the run's
            `checkpoints` folder.
        step: The step of a run: a number, "best" (recorded in BEST_SCORE) or "last" (recorded in LAST). None means
            "last". If the last step is missing or incomplete, the highest complete step is used, and a warning lists
            the skipped steps.

    Returns:
        A checkpoint with all its rank files.

    Raises:
        ConfigError: There is no complete checkpoint. The message lists the missing files of each candidate.
    """
    if not checkpoint_dir.is_dir():
        raise ConfigError(
            f"there is no checkpoint folder {str(checkpoint_dir)!r}: give a global_step_N folder or the run folder"
        )
    for folder in (checkpoint_dir, checkpoint_dir / "actor"):
        if is_model_folder(folder):
            return _check_step(complete_checkpoint(folder), step)
    # Check the unresolved name too, because a link called global_step_N to the run folder would recurse forever.
    if any(STEP_FOLDER.fullmatch(folder.name) for folder in (checkpoint_dir, checkpoint_dir.resolve())):
        raise ConfigError(
            f"{str(checkpoint_dir)!r} has no model_world_size_W_rank_R.pt files, and neither has its actor/ folder"
        )
    for root in (checkpoint_dir, checkpoint_dir / "checkpoints"):
        if steps := _steps(root):
            return _last_complete(root, steps) if step in (None, "last") else _find_step(root, steps, step)
    raise ConfigError(
        f"there is no sharded checkpoint in {str(checkpoint_dir)!r}: give a folder with model_world_size_W_rank_R.pt "
        "files, a global_step_N folder or a run folder"
    )


def _check_step(found: Checkpoint, step: str | int | None) -> Checkpoint:
    if step not in (None, "last") and str(step) != str(found.step):
        raise ConfigError(
            f"{str(found.folder)!r} is the folder of one step: to choose step {step}, give the run folder"
        )
    return found


def _find_step(root: Path, steps: dict[int, Path], step: str | int) -> Checkpoint:
    available = f"{str(root)!r} has steps {', '.join(map(str, sorted(steps)))}"
    number = _best_step(root, steps, available) if step == "best" else step
    if not str(number).isdecimal():
        raise ConfigError(f"unknown step {step!r}; give best, last or a number ({available})")
    if int(number) not in steps:
        raise ConfigError(f"there is no step {number}: {available}")
    return find_checkpoint(steps[int(number)])


def _best_step(root: Path, steps: dict[int, Path], available: str) -> int:
    best = recorded_best(root)
    if best is None:
        raise ConfigError(
            f"the best step of this run is not recorded (there is no {BEST_SCORE}): give a step by number ({available})"
        )
    if best.step:
        return best.step
    scores = [
        (score[0], record["step"])
        for record in read_metrics(root.parent / METRICS)[0]
        if record["step"] in steps and (score := validation_score(record)) and best.metric in (None, score[1])
    ]
    saved = "no saved step was validated"
    if scores:
        saved = "the best saved step is {1} with {0:.3f}".format(*max(scores))
    raise ConfigError(
        f"no step is better than the initial model ({best.score:.3f} at step 0, {saved}): use that model itself, "
        f"or give --step last or a number ({available})"
    )


def _last_complete(root: Path, steps: dict[int, Path]) -> Checkpoint:
    tracked = _recorded_step(root / LAST)
    problems = []
    if tracked is not None and tracked not in steps:
        problems.append(f"{LAST} names step {tracked}, which does not exist")
    for step in sorted(steps, key=lambda step: (step == tracked, step), reverse=True):
        try:
            found = find_checkpoint(steps[step])
        except ConfigError as error:
            problems.append(str(error))
        else:
            if problems:
                logger.warning("using global_step_%d: %s", step, "; ".join(problems))
            elif step < max(steps):
                logger.warning(
                    "using global_step_%d, as recorded in %s, although step %d exists", step, LAST, max(steps)
                )
            return found
    raise ConfigError(f"no step in {str(root)!r} is complete: {'; '.join(problems)}")


def _steps(root: Path) -> dict[int, Path]:
    if not root.is_dir():
        return {}
    matches = ((STEP_FOLDER.fullmatch(path.name), path) for path in root.iterdir() if path.is_dir())
    return {int(match[1]): path for match, path in matches if match}


def _recorded_step(path: Path) -> int | None:
    try:
        return int(read_bounded(path, max_bytes=_MAX_TRACKER_BYTES))
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        raise ConfigError(f"{str(path)!r} holds no step number: give a global_step_N folder instead") from None
