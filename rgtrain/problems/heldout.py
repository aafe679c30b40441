"""Draw training problems that are not held out and fit the prompt length."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from rgtrain.errors import ConfigError
from rgtrain.problems.isolated_problems import ProblemNotMade
from rgtrain.problems.mixture import Choice, Mixture, Problem

MAX_ATTEMPTS = 200
# To count the problems that are left in a small space.
_COUNTING_SECONDS = 1.0
_MOST_COUNTED = 5_000


@dataclass(frozen=True)
class Draw:
    """A problem and the number of candidates that were rejected before it, because held out or too long."""

    problem: Problem
    num_held_out: int = 0
    num_too_long: int = 0


class HeldOut:
    """The set of problems that training must not use, compared by content.

    Args:
        problems: Problems of the set.
        digests: Digests of further problems (see `Problem.digest`).
    """

    def __init__(self, problems: Iterable[Problem] = (), *, digests: Iterable[str] = ()):
        self._digests = {problem.digest for problem in problems} | set(digests)

    def add(self, problem: Problem) -> None:
        """Add `problem` to the set."""
        self._digests.add(problem.digest)

    def __contains__(self, problem: Problem) -> bool:
        return problem.digest in self._digests

    def __len__(self) -> int:
        return len(self._digests)


class TrainingProblems:
    """Draws the problems of a mixture and replaces those that are held out or too long.

    The replacement depends only on the index, so it is the same in every process and after a resume.

    Args:
        mixture: The problems to draw from.
        held_out: The problems to replace.
        fits: Returns whether the prompt of a problem is short enough.
    """

    def __init__(self, mixture: Mixture, *, held_out: HeldOut, fits: Callable[[Problem], bool] = lambda problem: True):
        self.mixture = mixture
        self._held_out = held_out
        self._fits = fits

    def __len__(self) -> int:
        return len(self.mixture)

    def __iter__(self) -> Iterator[Draw]:
        return map(self.draw, range(len(self)))

    def __getitem__(self, index: int) -> Draw:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.draw(index)

    def draw(self, index: int) -> Draw:
        """Draw the problem for `index`. Raises ConfigError if its dataset has no usable problem left."""
        return self.at(self.mixture.choose(index), index)

    def at(self, choice: Choice, index: int = 0) -> Draw:
        """Draw the problem for `index` from `choice`; raises the same error as `draw`."""
        rejected: Counter[str] = Counter()
        for attempt in range(MAX_ATTEMPTS):
            try:
                problem = self.mixture.draw(index, attempt=attempt, choice=choice)
            except ProblemNotMade:
                rejected["not_made"] += 1
                continue
            if problem in self._held_out:
                rejected["held_out"] += 1
            elif not self._fits(problem):
                rejected["too_long"] += 1
            else:
                return Draw(problem, rejected["held_out"], rejected["too_long"])
        raise ConfigError(
            f"dataset {choice.spec.name!r} gave no usable training problem in {MAX_ATTEMPTS} tries: "
            f"{rejected['held_out']} were held out for evaluation, {rejected['too_long']} have prompts over "
            f"data.max_prompt_length, {rejected['not_made']} could not be made; widen its parameters, hold out fewer "
            "problems (data.held_out_files, data.hold_out_shipped, data.validation_size) or raise "
            "data.max_prompt_length"
        )


def draw_distinct(
    mixture: Mixture,
    *,
    reserved: Iterable[Problem] = (),
    digests: Iterable[str] = (),
    fits: Callable[[Problem], bool] = lambda problem: True,
) -> list[Problem]:
    """Draw distinct problems, replacing repeated, reserved and too long ones by others of the same dataset.

    Args:
        mixture: The problems to draw from.
        reserved: Problems that must not be drawn.
        digests: Digests of further problems that must not be drawn.
        fits: Returns whether the prompt of a problem is short enough.

    Returns:
        As many problems as the mixture has.

    Raises:
        ConfigError: A dataset has too few distinct problems.
    """
    taken = HeldOut(reserved, digests=digests)
    candidates = TrainingProblems(mixture, held_out=taken, fits=fits)
    problems = []
    for index in range(len(mixture)):
        problems.append(candidates.draw(index).problem)
        taken.add(problems[-1])
    return problems


@dataclass(frozen=True)
class SpaceReport:
    """An estimate of the size of a dataset's problem space from a sample of problems.

    Attributes:
        dataset: The dataset.
        num_sampled: Number of sampled problems.
        num_distinct: Number of distinct problems among them.
        num_held_out: Number of held-out problems among them.
        num_left: Number of distinct problems that are left to train on, from a larger sample; None for a large space.
        is_complete: Whether the larger sample has nearly all problems of the space.
    """

    dataset: str
    num_sampled: int
    num_distinct: int
    num_held_out: int
    num_left: int | None = None
    is_complete: bool = False

    @property
    def is_small(self) -> bool:
        """Whether more than a tenth of the sampled problems were repeats or held out."""
        return min(self.num_distinct, self.num_sampled - self.num_held_out) < 0.9 * self.num_sampled

    def __str__(self) -> str:
        text = f"{self.dataset}: {self.num_sampled} sampled, {self.num_distinct} distinct, {self.num_held_out} held out"
        if self.num_left is None:
            return text
        if self.is_complete:
            return f"{text}; about {self.num_left} problems left to train on"
        return f"{text}; at least {self.num_left} problems left to train on, as found in a second"


def survey_spaces(mixture: Mixture, held_out: HeldOut, *, num_sampled: int = 500) -> list[SpaceReport]:
    """Return a report for each dataset over the first `num_sampled` problems of the mixture."""
    digests: dict[str, list[str]] = {spec.name: [] for spec in mixture.specs}
    overlaps: Counter[str] = Counter()
    for index in range(min(num_sampled, len(mixture))):
        try:
            problem = mixture.draw(index)
        except ProblemNotMade:
            # Training replaces it.
            continue
        digests[problem.dataset].append(problem.digest)
        overlaps[problem.dataset] += problem in held_out
    reports = [SpaceReport(name, len(drawn), len(set(drawn)), overlaps[name]) for name, drawn in digests.items()]
    return [_count_left(report, mixture, held_out) if report.is_small else report for report in reports]


def _count_left(report: SpaceReport, mixture: Mixture, held_out: HeldOut) -> SpaceReport:
    """Draw problems of the dataset for a second and count the distinct ones that are not held out."""
    ends_at = time.monotonic() + _COUNTING_SECONDS
    num_drawn, seen, left = 0, set[str](), set[str]()
    num_new: deque[bool] = deque(maxlen=200)
    for index in range(len(mixture)):
        choice = mixture.choose(index)
        if choice.spec.name != report.dataset:
            continue
        try:
            problem = mixture.draw(index, choice=choice)
        except ProblemNotMade:
            continue
        num_drawn += 1
        num_new.append(problem.digest not in seen)
        seen.add(problem.digest)
        if problem not in held_out:
            left.add(problem.digest)
        if time.monotonic() > ends_at or num_drawn == _MOST_COUNTED:
            break
    is_complete = num_drawn >= 200 and sum(num_new) <= 2
    return replace(report, num_left=len(left), is_complete=is_complete)
