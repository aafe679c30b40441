"""Read a run's validation from its folder `rollouts/`, as the outcome of each problem."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rgtrain.checkpoints.rollout_files import ROLLOUTS, VALIDATION, KeptGroup, read_index, read_rollouts
from rgtrain.errors import ConfigError


@dataclass(frozen=True)
class ProblemOutcome:
    """The outcome of all answers to one problem.

    Attributes:
        digest: The digest of the problem, as `Problem.digest`.
        num_samples: The number of answers.
        num_solved: The number of answers with a score of 1.
        num_answered: The number of completions that have an answer in the expected format.
        mean_score: The mean score of the answers, from 0 to 1.
    """

    digest: str
    num_samples: int
    num_solved: int
    num_answered: int
    mean_score: float


def read_validation_outcomes(run_dir: Path, step: int | None = None) -> dict[str, list[ProblemOutcome]]:
    """Read the outcomes of a validation.

    Args:
        run_dir: The folder of the run.
        step: The training step after which it ran; 0 is before training. By default, the last validation.

    Returns:
        The outcomes by dataset (with `_level_N` for levels of a curriculum), in the order of the problems.

    Raises:
        ConfigError: There is no such validation, a part of it is missing or damaged, or a completion has no score.
    """
    folder = run_dir / ROLLOUTS
    blocks = {block.step: block for block in read_index(folder) if block.split == VALIDATION}
    if step is None:
        step = max(blocks, default=None)
    if step is None or step not in blocks:
        kept = ", ".join(map(str, sorted(blocks))) or "none"
        wanted = "a validation" if step is None else f"the validation of step {step}"
        raise ConfigError(
            f"{folder} does not have {wanted}, but those of steps {kept}; run the validation with "
            "trainer.val_only=true and with rollouts.max_gb above 0"
        )
    read = [groups for _, groups in read_rollouts(folder, [blocks[step]])]
    if not read:
        raise ConfigError(
            f"the validation of step {step} in {folder / blocks[step].file} is missing or damaged; run it again with "
            "trainer.val_only=true"
        )
    outcomes: dict[str, list[ProblemOutcome]] = {}
    for group in read[0]:
        outcomes.setdefault(group.dataset, []).append(_outcome(group, folder=folder))
    return outcomes


def _outcome(group: KeptGroup, *, folder: Path) -> ProblemOutcome:
    try:
        scores = [completion.details["acc"] for completion in group.completions]
        num_solved = sum(completion.details["solved"] for completion in group.completions)
        mean_score = fmean(scores)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"a completion of dataset {group.dataset!r} in {folder} has no score ({error!r}); use a run whose rewards "
            "are computed from reward.parts"
        ) from error
    return ProblemOutcome(
        digest=group.digest,
        num_samples=len(scores),
        num_solved=int(num_solved),
        num_answered=sum(completion.answer is not None for completion in group.completions),
        mean_score=mean_score,
    )
