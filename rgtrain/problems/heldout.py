"""Training problems that are provably none of the held-out ones, and that fit the prompt length."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rgtrain.errors import ConfigError
from rgtrain.problems.isolated_problems import ProblemNotMade
from rgtrain.problems.mixture import Choice, Mixture, Problem

MAX_ATTEMPTS = 200


@dataclass(frozen=True)
class Draw:
    """A problem and how many candidates were passed over for it: held out, or with too long a prompt."""

    problem: Problem
    num_held_out: int = 0
    num_too_long: int = 0


class HeldOut:
    """The fingerprints of all problems that must not be trained on."""

    def __init__(self, problems: Iterable[Problem] = ()):
        self._fingerprints = {problem.fingerprint for problem in problems}

    def add(self, problem: Problem) -> None:
        """Hold out `problem` too."""
        self._fingerprints.add(problem.fingerprint)

    def __contains__(self, problem: Problem) -> bool:
        return problem.fingerprint in self._fingerprints

    def __len__(self) -> int:
        return len(self._fingerprints)


class TrainingProblems:
    """Draws the problems of a mixture, replacing those that are held out or don't fit.

    The replacement for index i is found by i alone, so it is the same in every process and on resume.
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
        """The problem for `index`. Raises ConfigError where its dataset has none left to train on."""
        return self.at(self.mixture.choose(index), index)

    def at(self, choice: Choice, index: int = 0) -> Draw:
        """The problem that `index` has if it is to come from `choice`; raises like `draw`."""
        skipped: Counter[str] = Counter()
        for attempt in range(MAX_ATTEMPTS):
            try:
                problem = self.mixture.draw(index, attempt=attempt, choice=choice)
            except ProblemNotMade:
                skipped["not_made"] += 1
                continue
            if problem in self._held_out:
                skipped["held_out"] += 1
            elif not self._fits(problem):
                skipped["too_long"] += 1
            else:
                return Draw(problem, skipped["held_out"], skipped["too_long"])
        raise ConfigError(
            f"dataset {choice.spec.name!r} gave no usable training problem in {MAX_ATTEMPTS} tries: "
            f"{skipped['held_out']} were held out for evaluation, {skipped['too_long']} have prompts over "
            f"data.max_prompt_length, {skipped['not_made']} could not be made; widen its parameters, hold out fewer "
            "problems or raise data.max_prompt_length"
        )


def draw_distinct(
    mixture: Mixture, *, reserved: Iterable[Problem] = (), fits: Callable[[Problem], bool] = lambda problem: True
) -> list[Problem]:
    """The mixture's problems, with every repeated, reserved or too long one replaced by another of its dataset.

    Raises ConfigError where a dataset has too few.
    """
    taken = HeldOut(reserved)
    candidates = TrainingProblems(mixture, held_out=taken, fits=fits)
    problems = []
    for index in range(len(mixture)):
        problems.append(candidates.draw(index).problem)
        taken.add(problems[-1])
    return problems


@dataclass(frozen=True)
class SpaceReport:
    """How large a dataset's problem space looks from a sample of `num_sampled` problems."""

    dataset: str
    num_sampled: int
    num_distinct: int
    num_held_out: int

    @property
    def is_small(self) -> bool:
        """Whether more than a tenth of the sampled problems had been drawn before."""
        return self.num_distinct < 0.9 * self.num_sampled

    def __str__(self) -> str:
        return (
            f"{self.dataset}: {self.num_distinct} distinct problems in {self.num_sampled}, "
            f"{self.num_held_out} of them held out and replaced in training"
        )


def survey_spaces(mixture: Mixture, held_out: HeldOut, *, num_sampled: int = 500) -> list[SpaceReport]:
    """One report a dataset over the mixture's first `num_sampled` problems (fewer where it has fewer)."""
    fingerprints: dict[str, list[str]] = {spec.name: [] for spec in mixture.specs}
    overlaps: Counter[str] = Counter()
    for index in range(min(num_sampled, len(mixture))):
        try:
            problem = mixture.draw(index)
        except ProblemNotMade:
            # Training replaces it by another one.
            continue
        fingerprints[problem.dataset].append(problem.fingerprint)
        overlaps[problem.dataset] += problem in held_out
    return [SpaceReport(name, len(prints), len(set(prints)), overlaps[name]) for name, prints in fingerprints.items()]
