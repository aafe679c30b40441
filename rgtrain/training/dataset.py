"""The dataset that verl reads, with a chat prompt and the whole entry of each problem."""

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch.utils.data import Dataset

from rgtrain.config.run_config import DataConfig, plain_config, read_section
from rgtrain.curriculum.curriculum import Curriculum
from rgtrain.models.chat_templates import chat_template_of
from rgtrain.problems import dump_entry
from rgtrain.problems.answers import is_judged_whole
from rgtrain.problems.heldout import Draw, TrainingProblems
from rgtrain.problems.mixture import Problem
from rgtrain.problems.prompt_rendering import PromptRenderer
from rgtrain.problems.prompts import PromptBuilder, PromptStyle, parse_prompt
from rgtrain.problems.splits import Splits
from rgtrain.training.lifecycle.training_activity import ACTIVITY
from rgtrain.training.rows_ahead import RowsAhead
from rgtrain.training.run_problems import splits_from_config

TRAIN = "train"
VALIDATION = "validation"


class ReasoningGymDataset(Dataset[dict[str, Any]]):
    """Rows of the training or validation problems for verl's rollouts.

    verl creates it through the configuration key `data.custom_cls`.

    Args:
        data_files: "train" or "validation".
        tokenizer: The model's tokenizer.
        config: The configuration's `data` node, which describes all problems.
        processor: The processor of a model of texts and images; None for others. verl gives its own template to it.
        max_samples: The maximum number of rows. A negative number means no limit.
    """

    # The index of the latest training row, and the step that takes rows.
    _last_taken = -1
    _step = 1

    def __init__(
        self,
        data_files: str,
        tokenizer: Any,
        config: DictConfig,
        processor: Any = None,
        max_samples: int = -1,
    ):
        data = read_section(DataConfig, plain_config(config), key="data")
        template = getattr(processor, "chat_template", None) or tokenizer.chat_template
        self._rendering, self.splits, self.curriculum = shared_splits(
            data, tokenizer, template if isinstance(template, str) else None
        )
        self._is_training = data_files == TRAIN
        validation = [Draw(problem) for problem in self.splits.validation]
        draws: dict[str, TrainingProblems | list[Draw]] = {TRAIN: self.splits.training, VALIDATION: validation}
        self._draws = draws[data_files]
        self._size = len(self._draws) if max_samples < 0 else min(max_samples, len(self._draws))
        training = self.splits.training
        style = self._rendering.prompts.style
        self._examples_until_step = style.examples_until_step
        # Of the prompts without the worked examples that are dropped.
        self._final_rendering = self._rendering
        if style.examples_until_step is not None:
            self._final_rendering = self._rendering.with_style(style.final)
        self._ahead = RowsAhead(
            lambda index: (training.mixture.choose(index), self._rendering_now()),
            lambda index, chosen: self._row(training.at(chosen[0], index), index, chosen[1]),
        )

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self._is_training:
            return self._row(self._draws[index], index, self._final_rendering)
        if not 0 <= index < len(self._draws):
            raise IndexError(index)
        self._last_taken = index
        return self._ahead.take(index)

    def begin_step(self, step: int) -> None:
        """Note the step that takes the following rows, which decides whether prompts have worked examples."""
        self._step = step

    def _rendering_now(self) -> "Rendering":
        has_examples = self._examples_until_step is None or self._step <= self._examples_until_step
        return self._rendering if has_examples else self._final_rendering

    def make_ahead(self, num_rows: int) -> None:
        """Begin to make the rows after the last one that was taken, in a background thread."""
        first = self._last_taken + 1
        self._ahead.start(range(first, min(first + num_rows, self._size)))

    def wait_for_rows(self) -> None:
        """Wait until all rows of `make_ahead` are made."""
        self._ahead.wait()

    def _row(self, draw: Draw, index: int, rendering: "Rendering") -> dict[str, Any]:
        problem = draw.problem
        return {
            "raw_prompt": rendering.prompts.messages(problem),
            "data_source": problem.dataset if self._is_training else _with_level(problem),
            "reward_model": {"style": "rule", "ground_truth": str(problem.entry.get("answer"))},
            "extra_info": {
                "entry": dump_entry(dict(problem.entry)),
                "judged_whole": is_judged_whole(problem.entry),
                "dataset": problem.dataset,
                "is_training": self._is_training,
                "digest": problem.digest,
                "prompt_ids": rendering.token_ids(problem),
                "num_held_out": draw.num_held_out,
                "num_too_long": draw.num_too_long,
                "level": problem.level,
                "index": index,
            },
            "index": index,
        }


def _with_level(problem: Problem) -> str:
    """Return the name under which validation reports `problem`: its dataset, with the level if it has one."""
    return problem.dataset if problem.level is None else f"{problem.dataset}_level_{problem.level}"


class Rendering:
    """Renders prompts of problems as messages and as token ids.

    Args:
        data: The configuration's `data` node.
        tokenizer: The model's tokenizer.
        template: A chat template in place of the tokenizer's; None for the tokenizer's.
    """

    def __init__(self, data: DataConfig, tokenizer: Any, template: str | None = None):
        self.prompts = PromptBuilder(parse_prompt(data.prompt))
        arguments = dict(data.apply_chat_template_kwargs or {})
        folder = Path(tokenizer.name_or_path)
        template = chat_template_of(
            tokenizer, folder=folder, model=tokenizer.name_or_path, given=arguments.pop("chat_template", template)
        )
        self._renderer = PromptRenderer(
            tokenizer,
            model=tokenizer.name_or_path,
            arguments={**arguments, "chat_template": template},
            role_key="data.prompt.role",
            template_key="actor_rollout_ref.model.custom_chat_template",
        )
        self._last: tuple[Problem, list[int]] | None = None

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._renderer.tokenizer

    def with_style(self, style: PromptStyle) -> "Rendering":
        """Return a rendering of prompts in another style."""
        other = copy.copy(self)
        other.prompts, other._last = PromptBuilder(style), None
        return other

    def token_ids(self, problem: Problem) -> list[int]:
        """Return the token ids of a prompt. The last result is cached, because its length was checked just before."""
        last = self._last
        if last is None or last[0] is not problem:
            messages = self.prompts.messages(problem)
            last = self._last = problem, self._renderer.token_ids(messages, dataset=problem.dataset)
        return last[1]


_splits_cache: dict[str, tuple[Rendering, Splits, Curriculum]] = {}


def shared_splits(data: DataConfig, tokenizer: Any, template: str | None) -> tuple[Rendering, Splits, Curriculum]:
    """Return the splits of `data`. They are cached, because the training and validation datasets share them.

    Args:
        data: The configuration's `data` node.
        tokenizer: The model's tokenizer.
        template: A chat template in place of the tokenizer's; None for the tokenizer's.

    Returns:
        The rendering of prompts, the problems, and the curriculum that chooses the levels of training problems.

    Raises:
        ConfigError: A dataset or a level has too few usable problems.
    """
    key = json.dumps([asdict(data), tokenizer.name_or_path, template], sort_keys=True, default=str)
    if key not in _splits_cache:
        _splits_cache.clear()
        rendering = Rendering(data, tokenizer, template)
        with ACTIVITY.within("making problems"):
            _splits_cache[key] = rendering, *_splits(data, rendering)
    return _splits_cache[key]


def _splits(data: DataConfig, rendering: Rendering) -> tuple[Splits, Curriculum]:
    def fits(problem: Problem) -> bool:
        # Called for every generated problem, so it also reports progress.
        ACTIVITY.moved()
        return len(rendering.token_ids(problem)) <= data.max_prompt_length

    style = rendering.prompts.style
    final = rendering.with_style(style.final)

    def num_validation_tokens(problem: Problem) -> int:
        ACTIVITY.moved()
        return len(final.token_ids(problem))

    return splits_from_config(
        data, style=style, fits=fits, num_validation_tokens=num_validation_tokens, progress=ACTIVITY.moved
    )
