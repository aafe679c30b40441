"""Build the prompts of an evaluation and check them before a model is loaded."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.evaluation.evaluation_progress import ACTIVITY
from rgtrain.problems.evaluation_set import EvaluationDataset, make_problems
from rgtrain.problems.mixture import Problem
from rgtrain.problems.prompts import PromptBuilder, PromptStyle, render_prompt


@dataclass(frozen=True)
class PromptedProblem:
    """A problem, its position in the evaluation, its dataset, and the chat messages that ask it."""

    number: int
    dataset: EvaluationDataset
    problem: Problem
    messages: list[dict[str, str]]


def problems_of(
    datasets: Sequence[EvaluationDataset], *, limit: int | None = None
) -> list[tuple[EvaluationDataset, Problem]]:
    """Return the first `limit` problems of each of `datasets` with their dataset, in their order."""
    with ACTIVITY.within("making the problems"):
        return [
            (dataset, problem)
            for dataset in datasets
            for problem in make_problems(dataset, limit=limit, progress=ACTIVITY.moved)
        ]


def prompt_problems(
    datasets: Sequence[EvaluationDataset], style: PromptStyle, *, limit: int | None = None
) -> list[PromptedProblem]:
    """Return the problems of `datasets` with their chat messages.

    Args:
        datasets: The datasets, in the order of the evaluation.
        style: The system prompt, its role, and the worked examples.
        limit: The maximum number of problems of each dataset; None for all.

    Returns:
        The problems. They are numbered from 0 as without a limit, so that a higher limit changes no number.

    Raises:
        ConfigError: A worked example is itself among the problems.
    """
    builder = PromptBuilder(style)
    problems = problems_of(datasets, limit=limit)
    starts = itertools.accumulate((dataset.size for dataset in datasets), initial=0)
    numbers = [
        start + index
        for dataset, start in zip(datasets, starts, strict=False)
        for index in range(dataset.num_problems(limit))
    ]
    _check_examples(problems, builder)
    return [
        PromptedProblem(number, dataset, problem, builder.messages(problem))
        for number, (dataset, problem) in zip(numbers, problems, strict=True)
    ]


def render_prompts(prompted: Sequence[PromptedProblem], tokenizer: Any, *, model_path: str) -> list[list[int]]:
    """Return the token ids of each prompt.

    Args:
        prompted: The problems with their messages.
        tokenizer: The model's tokenizer, with a chat template.
        model_path: The model's path as the user gave it, for the error message.

    Raises:
        ConfigError: The chat template refuses the role of the system prompt.
    """
    from jinja2 import TemplateError

    prompts = []
    with ACTIVITY.within("rendering the prompts"):
        for item in prompted:
            try:
                prompts.append(render_prompt(item.messages, tokenizer))
            except TemplateError as error:
                raise ConfigError(
                    f"the chat template of {model_path!r} refuses role {item.messages[0]['role']!r} ({error}); "
                    "set developer_role to user, which puts the prompt into the question"
                ) from error
            ACTIVITY.moved()
    return prompts


def load_tokenizer(folder: Path) -> tuple[Any, int]:
    """Load a model's tokenizer and look up its context length.

    Args:
        folder: The folder of the model.

    Returns:
        The tokenizer, and the longest sequence that the model takes, in tokens.

    Raises:
        ConfigError: The tokenizer or configuration cannot be loaded, or the tokenizer has no chat template.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        model_config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot load the tokenizer and configuration in {str(folder)!r}: {reason:.300}") from error
    if not tokenizer.chat_template:
        raise ConfigError(f"the tokenizer of {str(folder)!r} has no chat template; evaluate an instruction-tuned model")
    return tokenizer, getattr(model_config, "max_position_embeddings", None) or tokenizer.model_max_length


def needed_length(
    prompted: Sequence[PromptedProblem],
    prompts: Sequence[list[int]],
    *,
    max_tokens: int,
    context: int,
    max_model_len: int | None,
) -> int:
    """Return the sequence length that the engine needs: the longest prompt plus `max_tokens`.

    Args:
        prompted: The problems.
        prompts: The token ids of their prompts.
        max_tokens: The maximum length of a completion, in tokens.
        context: The longest sequence that the model takes, in tokens.
        max_model_len: A lower limit set by the user; None for no such limit.

    Returns:
        The length in tokens.

    Raises:
        ConfigError: A prompt leaves no room for `max_tokens`.
    """
    limit = min(context, max_model_len or context)
    longest: dict[tuple[str, str], int] = {}
    for item, prompt in zip(prompted, prompts, strict=True):
        key = item.dataset.category, item.dataset.name
        longest[key] = max(longest.get(key, 0), len(prompt))
    too_long = {key: length for key, length in longest.items() if length + max_tokens > limit}
    if too_long:
        found = ", ".join(
            f"dataset {name!r} of category {category!r} has one of {length} tokens"
            for (category, name), length in too_long.items()
        )
        source = f"the model's context is {context}"
        if limit < context:
            source = f"max_model_len is {limit}"
        room = limit - max(longest.values())
        fix = f"lower max_tokens to at most {room}" if room > 0 else "leave out these datasets"
        raise ConfigError(
            f"{source} tokens, too few for the longest prompt ({found}) plus max_tokens {max_tokens}; {fix}, or use a "
            "model with a longer context"
        )
    return max(longest.values()) + max_tokens


def _check_examples(problems: Sequence[tuple[EvaluationDataset, Problem]], builder: PromptBuilder) -> None:
    for dataset, problem in problems:
        if any(example.fingerprint == problem.fingerprint for example in builder.examples(problem)):
            raise ConfigError(
                f"a worked example of dataset {dataset.name!r} is itself one of its {dataset.size} evaluation "
                f"problems; change examples_seed (now {builder.style.examples_seed})"
            )
