"""Training problems with a right answer, and that answer in the trained format."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rgtrain.config.run_config import DataConfig
from rgtrain.errors import ConfigError
from rgtrain.problems import Scorer
from rgtrain.problems.answers import judged_text
from rgtrain.problems.heldout import MAX_ATTEMPTS
from rgtrain.problems.isolated_problems import ProblemNotMade
from rgtrain.problems.mixture import Choice, Problem
from rgtrain.problems.prompts import worked_answer
from rgtrain.training.dataset import shared_splits


@dataclass(frozen=True)
class AnsweredProblem:
    """A problem with the token ids of its prompt, which are those of its rollouts, and of its right answer.

    The answer ends with the token at which a rollout ends.
    """

    problem: Problem
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]


class AnsweredProblems:
    """The training problems of a run. Those without a right answer are replaced by the next ones of their dataset.

    A given answer is right if it scores 1 in the format in which it is trained. A few generators give none, or one that
    their own verifier does not accept in full.

    Args:
        data: The configuration's `data` node. Prompts and answers have at most the tokens that it allows.
        tokenizer: The model's tokenizer.
        scorer: Judges the given answers.
        template: A chat template in place of the tokenizer's; None for the tokenizer's.

    Raises:
        ConfigError: A dataset has too few problems, or the tokenizer has no end-of-sequence token.
    """

    def __init__(self, data: DataConfig, tokenizer: Any, scorer: Scorer, *, template: str | None = None):
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token, with which answers end; set "
                "eos_token in its tokenizer_config.json"
            )
        rendering, splits, _ = shared_splits(data, tokenizer, template)
        # If training drops the worked examples at some step, the model learns to answer without them.
        self._rendering = rendering.with_style(rendering.prompts.style.final)
        self._mixture, self._held_out = splits.training.mixture, splits.held_out
        self._data = data
        self._tokenizer = tokenizer
        self._scorer = scorer

    def at(self, indices: Sequence[int]) -> list[AnsweredProblem]:
        """Return the problems of some indices, which are the same in every process.

        Raises:
            ConfigError: A dataset gives no usable problem.
        """
        return self._drawn([(self._mixture.choose(index), index) for index in indices])

    def first_of_datasets(self) -> list[AnsweredProblem]:
        """Return one problem of each dataset; raises ConfigError if a dataset gives no usable one."""
        return self._drawn([(Choice(spec), 0) for spec in self._mixture.specs if spec.weight > 0])

    def _drawn(self, choices: Sequence[tuple[Choice, int]]) -> list[AnsweredProblem]:
        candidates = [self._candidates(choice, index) for choice, index in choices]
        right: dict[int, AnsweredProblem] = {}
        # Answers are judged together, because one at a time takes most of the time of a step.
        while missing := [place for place in range(len(choices)) if place not in right]:
            drawn = [next(candidates[place]) for place in missing]
            entries = [one.problem.entry for one in drawn]
            scores = self._scorer.score_many([(judged_text(worked_answer(entry), entry), entry) for entry in entries])
            right |= {
                place: one for place, one, score in zip(missing, drawn, scores, strict=True) if score.accuracy >= 1
            }
        return [right[place] for place in range(len(choices))]

    def _candidates(self, choice: Choice, index: int) -> Iterator[AnsweredProblem]:
        """Yield the problems for an index that may be trained on if their answers are right."""
        rejected: Counter[str] = Counter()
        for attempt in range(MAX_ATTEMPTS):
            try:
                problem = self._mixture.draw(index, attempt=attempt, choice=choice)
            except ProblemNotMade:
                rejected["could not be made"] += 1
                continue
            if problem in self._held_out:
                rejected["were held out"] += 1
                continue
            if problem.entry.get("answer") is None:
                rejected["have no answer"] += 1
                continue
            rendered = self._rendered(problem)
            if len(rendered.prompt_ids) > self._data.max_prompt_length:
                rejected["have prompts over data.max_prompt_length"] += 1
            elif len(rendered.answer_ids) > self._data.max_response_length:
                rejected["have answers over data.max_response_length"] += 1
            else:
                yield rendered
                # Another one is asked for only then.
                rejected["have answers that do not score 1"] += 1
        counts = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common())
        raise ConfigError(
            f"dataset {choice.spec.name!r} gave no problem with a right answer in {MAX_ATTEMPTS} tries, of which "
            f"{counts}; leave it out, or change its parameters or the lengths"
        )

    def _rendered(self, problem: Problem) -> AnsweredProblem:
        answer = self._tokenizer.encode(worked_answer(problem.entry), add_special_tokens=False)
        return AnsweredProblem(problem, self._rendering.token_ids(problem), [*answer, self._tokenizer.eos_token_id])
