"""The prompts of an evaluation, checked before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.evaluation.evaluation_config import EvaluationConfig
from rgtrain.evaluation.evaluation_progress import ACTIVITY
from rgtrain.problems.evaluation_set import EvaluationDataset, make_problems
from rgtrain.problems.mixture import Problem
from rgtrain.problems.prompts import PromptBuilder, render_prompt


@dataclass(frozen=True)
class PromptedProblem:
    """A problem, its position in the evaluation, and the chat messages that put it to the model."""

    number: int
    dataset: EvaluationDataset
    problem: Problem
    messages: list[dict[str, str]]


def problems_of(config: EvaluationConfig) -> list[tuple[EvaluationDataset, Problem]]:
    """Every problem of the evaluation with its dataset, in the file's order."""
    with ACTIVITY.within("making the problems"):
        return [
            (dataset, problem)
            for dataset in config.datasets
            for problem in make_problems(dataset, progress=ACTIVITY.moved)
        ]


def prompt_problems(config: EvaluationConfig) -> list[PromptedProblem]:
    """All problems with their messages. Raises ConfigError where a worked example is itself among the problems."""
    builder = PromptBuilder(config.prompt_style)
    problems = problems_of(config)
    _check_examples(problems, builder)
    return [
        PromptedProblem(number, dataset, problem, builder.messages(problem))
        for number, (dataset, problem) in enumerate(problems)
    ]


def render_prompts(
    prompted: Sequence[PromptedProblem], config: EvaluationConfig, *, folder: Path
) -> tuple[list[list[int]], int]:
    """The prompts' token ids for the model in `folder`, and how many tokens the longest prompt plus completion takes.

    Raises ConfigError where the model's tokenizer can't be loaded or refuses the prompt's form, or where a prompt
    leaves no room for `max_tokens`.
    """
    tokenizer, context = load_tokenizer(folder)
    prompts = []
    with ACTIVITY.within("rendering the prompts"):
        for item in prompted:
            prompts.append(_render(item.messages, tokenizer, config))
            ACTIVITY.moved()
    return prompts, _check_lengths(prompted, prompts, config, context=context)


def load_tokenizer(folder: Path) -> tuple[Any, int]:
    """The tokenizer of the model in `folder`, and the longest sequence the model takes, in tokens.

    Raises ConfigError where they can't be loaded, or where the tokenizer has no chat template.
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


def _render(messages: list[dict[str, str]], tokenizer: Any, config: EvaluationConfig) -> list[int]:
    from jinja2 import TemplateError

    try:
        return render_prompt(messages, tokenizer)
    except TemplateError as error:
        raise ConfigError(
            f"the chat template of {config.model_path!r} refuses role {config.developer_role!r} ({error}); "
            "developer_role: user puts the prompt into the question instead"
        ) from error


def _check_examples(problems: Sequence[tuple[EvaluationDataset, Problem]], builder: PromptBuilder) -> None:
    for dataset, problem in problems:
        if any(example.fingerprint == problem.fingerprint for example in builder.examples(problem)):
            raise ConfigError(
                f"a worked example of dataset {dataset.name!r} is itself one of its {dataset.size} evaluation "
                f"problems; give another examples_seed (now {builder.style.examples_seed})"
            )


def _check_lengths(
    prompted: Sequence[PromptedProblem], prompts: Sequence[list[int]], config: EvaluationConfig, *, context: int
) -> int:
    limit = min(context, config.max_model_len or context)
    longest: dict[tuple[str, str], int] = {}
    for item, prompt in zip(prompted, prompts, strict=True):
        key = item.dataset.category, item.dataset.name
        longest[key] = max(longest.get(key, 0), len(prompt))
    too_long = {key: length for key, length in longest.items() if length + config.max_tokens > limit}
    if too_long:
        found = ", ".join(f"{name!r} of category {category!r} {n}" for (category, name), n in too_long.items())
        source = f"the model's context is {context}"
        if limit < context:
            source = f"max_model_len is {limit}"
        room = limit - max(longest.values())
        fix = f"lower max_tokens to at most {room}" if room > 0 else "leave out these datasets"
        raise ConfigError(
            f"{source} tokens, too few for the longest prompt plus max_tokens {config.max_tokens}: dataset {found}; "
            f"{fix}, or take a model with a longer context"
        )
    return max(longest.values()) + config.max_tokens
