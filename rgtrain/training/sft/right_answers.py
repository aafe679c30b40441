"""Training problems with a right answer, and that answer in the trained format."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rgtrain.config.run_config import DataConfig
from rgtrain.errors import ConfigError
from rgtrain.problems import Scorer
from rgtrain.problems.answers import judged_text
from rgtrain.problems.heldout import TrainingProblems
from rgtrain.problems.mixture import Choice, Problem
from rgtrain.problems.prompts import worked_answer
from rgtrain.training.dataset import shared_splits


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
        ConfigError: A dataset has too few problems.
    """

    def __init__(self, data: DataConfig, tokenizer: Any, scorer: Scorer, *, template: str | None = None):
        rendering, splits, _ = shared_splits(data, tokenizer, template)
        # If training drops the worked examples at some step, the model learns to answer without them.
        self._rendering = rendering.with_style(rendering.prompts.style.final)
        self._data = data
        self._tokenizer = tokenizer
        self._scorer = scorer
        self._rejected: Counter[str] = Counter()
        self._problems = TrainingProblems(splits.training.mixture, held_out=splits.held_out, fits=self._is_usable)

    def first_of_datasets(self) -> list[Problem]:
        """Return one problem of each dataset; raises ConfigError if a dataset gives no usable one."""
        specs = [spec for spec in self._problems.mixture.specs if spec.weight > 0]
        return [self.at(Choice(spec)) for spec in specs]

    def draw(self, index: int) -> Problem:
        """Return the problem of an index, which is the same in every process.

        Raises:
            ConfigError: Its dataset gives no usable problem.
        """
        return self.at(self._problems.mixture.choose(index), index)

    def at(self, choice: Choice, index: int = 0) -> Problem:
        """Return the problem of an index from a chosen dataset; raises the same error as `draw`."""
        self._rejected.clear()
        try:
            return self._problems.at(choice, index).problem
        except ConfigError as error:
            if not self._rejected:
                raise
            counts = ", ".join(f"{count} {reason}" for reason, count in self._rejected.most_common())
            raise ConfigError(
                f"dataset {choice.spec.name!r} gave no problem to imitate ({counts}); leave it out, or change its "
                "parameters, data.max_prompt_length or data.max_response_length"
            ) from error

    def prompt_ids(self, problem: Problem) -> list[int]:
        """Return the token ids of a problem's prompt, which are those of its rollouts."""
        return self._rendering.token_ids(problem)

    def answer_ids(self, problem: Problem) -> list[int]:
        """Return the token ids of a problem's right answer, with the token at which a rollout ends."""
        text = worked_answer(problem.entry)
        ids: Sequence[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return [*ids, self._tokenizer.eos_token_id]

    def _is_usable(self, problem: Problem) -> bool:
        reason = self._fault(problem)
        if reason is not None:
            self._rejected[reason] += 1
        return reason is None

    def _fault(self, problem: Problem) -> str | None:
        if problem.entry.get("answer") is None:
            return "without an answer"
        if len(self.prompt_ids(problem)) > self._data.max_prompt_length:
            return "with prompts that are too long"
        if len(self.answer_ids(problem)) > self._data.max_response_length:
            return "with answers that are too long"
        judged = judged_text(worked_answer(problem.entry), problem.entry)
        if self._scorer.score(judged, problem.entry).accuracy < 1:
            return "with answers that do not score 1"
        return None
