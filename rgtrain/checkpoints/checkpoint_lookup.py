"""The checkpoint that is meant, found from whatever folder of a run the user names."""

import logging
from pathlib import Path

from rgtrain.checkpoints.checkpoint_store import BEST_SCORE, LAST, recorded_best
from rgtrain.checkpoints.metrics_file import METRICS, read_metrics, validation_score
from rgtrain.checkpoints.shards.checkpoint import STEP_FOLDER, Checkpoint, complete_checkpoint, is_model_folder
from rgtrain.checkpoints.untrusted_files import read_bounded
from rgtrain.errors import ConfigError

_MOST_TRACKER_BYTES = 100

logger = logging.getLogger(__name__)


def find_checkpoint(checkpoint_dir: Path, *, step: str | int | None = None) -> Checkpoint:
    """The sharded model in a folder of rank files, in a `global_step_N` (its actor), or in a run's folder.

    In a run's folder, or its folder of checkpoints, `step` chooses one: a number, "best" (the step that BEST_SCORE
    names) or "last" (also None). The last step is the one that LAST names. If that is missing or incomplete, it is the
    highest complete step, and a warning names the steps that were passed over.

    Raises ConfigError where there is no complete checkpoint, naming what each candidate lacks.
    """
    if not checkpoint_dir.is_dir():
        raise ConfigError(
            f"there is no checkpoint folder {str(checkpoint_dir)!r}: give a global_step_N folder or the run's folder"
        )
    for folder in (checkpoint_dir, checkpoint_dir / "actor"):
        if is_model_folder(folder):
            return _as_asked(complete_checkpoint(folder), step)
    # Under the name that was given too: a link of a step's name may lead to the run's folder, and so on for ever.
    if any(STEP_FOLDER.fullmatch(folder.name) for folder in (checkpoint_dir, checkpoint_dir.resolve())):
        raise ConfigError(f"{str(checkpoint_dir)!r} has no model_world_size_W_rank_R.pt in it or in its actor/ folder")
    for root in (checkpoint_dir, checkpoint_dir / "checkpoints"):
        if steps := _steps(root):
            return _last_complete(root, steps) if step in (None, "last") else _chosen(root, steps, step)
    raise ConfigError(
        f"there is no sharded checkpoint in {str(checkpoint_dir)!r}: expected model_world_size_W_rank_R.pt files in it "
        "or in its actor/ folder, or global_step_N folders in it or in its checkpoints/ folder"
    )


def _as_asked(found: Checkpoint, step: str | int | None) -> Checkpoint:
    if step not in (None, "last") and str(step) != str(found.step):
        raise ConfigError(f"{str(found.folder)!r} is one step's folder: to choose step {step}, give the run's folder")
    return found


def _chosen(root: Path, steps: dict[int, Path], step: str | int) -> Checkpoint:
    there = f"{str(root)!r} has steps {', '.join(map(str, sorted(steps)))}"
    number = _best_step(root, steps, there) if step == "best" else step
    if not str(number).isdecimal():
        raise ConfigError(f"unknown step {step!r}: give best, last or a number; {there}")
    if int(number) not in steps:
        raise ConfigError(f"there is no step {number}: {there}")
    return find_checkpoint(steps[int(number)])


def _best_step(root: Path, steps: dict[int, Path], there: str) -> int:
    best = recorded_best(root)
    if best is None:
        raise ConfigError(f"the best step of this run is not recorded (there is no {BEST_SCORE}): name one, {there}")
    if best.step:
        return best.step
    scores = [
        (score[0], record["step"])
        for record in read_metrics(root.parent / METRICS)[0]
        if record["step"] in steps and (score := validation_score(record)) and best.metric in (None, score[1])
    ]
    trained = "the best saved step is {1} with {0:.3f}".format(*max(scores)) if scores else "no saved step is validated"
    raise ConfigError(
        f"no step is better than the model that training started from ({best.score:.3f} at step 0; {trained}): export "
        f"that model itself, or give --step last or a number; {there}"
    )


def _last_complete(root: Path, steps: dict[int, Path]) -> Checkpoint:
    tracked = _recorded_step(root / LAST)
    problems = []
    if tracked is not None and tracked not in steps:
        problems.append(f"{LAST} names step {tracked}, which is not there")
    for step in sorted(steps, key=lambda step: (step == tracked, step), reverse=True):
        try:
            found = find_checkpoint(steps[step])
        except ConfigError as error:
            problems.append(str(error))
        else:
            if problems:
                logger.warning("taking global_step_%d: %s", step, "; ".join(problems))
            elif step < max(steps):
                logger.warning("taking global_step_%d, which %s names; later: %d", step, LAST, max(steps))
            return found
    raise ConfigError(f"no step in {str(root)!r} is complete: {'; '.join(problems)}")


def _steps(root: Path) -> dict[int, Path]:
    if not root.is_dir():
        return {}
    matches = ((STEP_FOLDER.fullmatch(path.name), path) for path in root.iterdir() if path.is_dir())
    return {int(match[1]): path for match, path in matches if match}


def _recorded_step(path: Path) -> int | None:
    try:
        return int(read_bounded(path, most_bytes=_MOST_TRACKER_BYTES))
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        raise ConfigError(f"{str(path)!r} holds no step number: name a global_step_N folder instead") from None
