"""Build the prompts of an evaluation and check them before a model is loaded."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.evaluation.evaluation_model import read_model_json
from rgtrain.evaluation.evaluation_progress import ACTIVITY, say
from rgtrain.models.chat_templates import TEMPLATE_FILE, chat_template_of, read_chat_template
from rgtrain.models.context_length import context_length
from rgtrain.models.model_lookup import CONFIG, TOKENIZER_VOCABULARIES
from rgtrain.problems.evaluation_set import EvaluationDataset, make_problems
from rgtrain.problems.mixture import Problem
from rgtrain.problems.prompt_rendering import PromptRenderer
from rgtrain.problems.prompts import PromptBuilder, PromptStyle


@dataclass(frozen=True)
class PromptedProblem:
    """A problem, its position in the evaluation, its dataset, and the chat messages that ask it."""

    number: int
    dataset: EvaluationDataset
    problem: Problem
    messages: list[dict[str, str]]


@dataclass(frozen=True)
class LoadedTokenizer:
    """A model's tokenizer, and the limits that its prompts must keep.

    Attributes:
        folder: The tokenizer's folder.
        renderer: Renders prompts with the chat template.
        context: The longest sequence that the model takes, in tokens; None if it is not limited.
        vocab_size: The number of tokens that the model has; None if it is unknown.
    """

    folder: Path
    renderer: PromptRenderer
    context: int | None
    vocab_size: int | None


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


def render_prompts(prompted: Sequence[PromptedProblem], loaded: LoadedTokenizer) -> list[list[int]]:
    """Return the token ids of each prompt, and report facts about the rendering.

    Args:
        prompted: The problems with their messages.
        loaded: The model's tokenizer with its chat template.

    Raises:
        ConfigError: The chat template raises an error, or drops a part of a prompt, or the model lacks a token.
    """
    prompts = []
    with ACTIVITY.within("rendering the prompts"):
        for item in prompted:
            prompts.append(loaded.renderer.token_ids(item.messages, dataset=item.dataset.name))
            ACTIVITY.moved()
    largest = max(max(ids, default=0) for ids in prompts)
    if loaded.vocab_size is not None and largest >= loaded.vocab_size:
        raise ConfigError(
            f"the tokenizer in {str(loaded.folder)!r} writes token {largest}, but the model has only "
            f"{loaded.vocab_size} tokens; give the tokenizer that the model was trained with"
        )
    for note in loaded.renderer.notes:
        say(f"warning: {note}")
    return prompts


def load_tokenizer(
    folder: Path,
    *,
    model_path: str | None = None,
    adapter: Path | None = None,
    chat_template: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    role_key: str = "developer_role",
) -> LoadedTokenizer:
    """Load a model's tokenizer and chat template, and look up its context length.

    Args:
        folder: The folder of the model.
        model_path: The model's path as the user gave it, for messages; None if it is the folder.
        adapter: The folder of a LoRA adapter. A tokenizer or chat template in it is used, because the adapter was
            trained with it.
        chat_template: A template that replaces the model's, or the name of one of them.
        arguments: Arguments of the template.
        role_key: The configuration key of the system prompt's role, for messages.

    Returns:
        The tokenizer.

    Raises:
        ConfigError: The tokenizer or configuration cannot be loaded, or there is no chat template.
    """
    from transformers import AutoConfig, AutoTokenizer

    own = tokenizer_folder(folder, adapter=adapter)
    try:
        model_config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        tokenizer = AutoTokenizer.from_pretrained(own, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot load the tokenizer and configuration in {str(own)!r}: {reason:.300}") from error
    if chat_template is None and adapter is not None and (adapter / TEMPLATE_FILE).is_file():
        chat_template = read_chat_template(str(adapter / TEMPLATE_FILE))
    arguments = dict(arguments or {})
    given = arguments.pop("chat_template", chat_template)
    name = model_path or str(folder)
    template = chat_template_of(tokenizer, folder=own, model=name, given=given)
    return LoadedTokenizer(
        own,
        PromptRenderer(tokenizer, model=name, arguments={**arguments, "chat_template": template}, role_key=role_key),
        # The class of the configuration knows the length of a model whose config.json leaves it out.
        context_length(
            {"max_position_embeddings": getattr(model_config, "max_position_embeddings", None)}
            | read_model_json(folder / CONFIG)
        ),
        getattr(model_config, "vocab_size", None),
    )


def tokenizer_folder(folder: Path, *, adapter: Path | None) -> Path:
    """Return the folder of the tokenizer: the adapter's if it has one, otherwise the model's."""
    has_own = adapter is not None and any((adapter / name).is_file() for name in TOKENIZER_VOCABULARIES)
    return adapter if adapter is not None and has_own else folder


def needed_length(
    prompted: Sequence[PromptedProblem],
    prompts: Sequence[list[int]],
    *,
    max_tokens: int,
    context: int | None,
    max_model_len: int | None,
) -> int:
    """Return the sequence length that the engine needs: the longest prompt plus `max_tokens`.

    Args:
        prompted: The problems.
        prompts: The token ids of their prompts.
        max_tokens: The maximum length of a completion, in tokens.
        context: The longest sequence that the model takes, in tokens; None if it is not limited.
        max_model_len: A lower limit set by the user; None for no such limit.

    Returns:
        The length in tokens.

    Raises:
        ConfigError: A prompt leaves no room for `max_tokens`.
    """
    limits = [length for length in (context, max_model_len) if length is not None]
    longest: dict[tuple[str, str], int] = {}
    for item, prompt in zip(prompted, prompts, strict=True):
        key = item.dataset.category, item.dataset.name
        longest[key] = max(longest.get(key, 0), len(prompt))
    limit = min(limits, default=max(longest.values()) + max_tokens)
    too_long = {key: length for key, length in longest.items() if length + max_tokens > limit}
    if too_long:
        found = ", ".join(
            f"dataset {name!r} of category {category!r} has one of {length} tokens"
            for (category, name), length in too_long.items()
        )
        source = f"the model's context is {context}" if limit == context else f"max_model_len is {limit}"
        room = limit - max(longest.values())
        fix = f"lower max_tokens to at most {room}" if room > 0 else "leave out these datasets"
        raise ConfigError(
            f"{source} tokens, too few for the longest prompt ({found}) plus max_tokens {max_tokens}; {fix}, or use a "
            "model with a longer context"
        )
    return max(longest.values()) + max_tokens


def _check_examples(problems: Sequence[tuple[EvaluationDataset, Problem]], builder: PromptBuilder) -> None:
    for dataset, problem in problems:
        for number, example in enumerate(builder.examples(problem)):
            if example.fingerprint != problem.fingerprint:
                continue
            fix = f"change examples_seed (now {builder.style.examples_seed})"
            if number < len(builder.style.examples):
                fix = f"remove example {number + 1} from your list (examples)"
            raise ConfigError(
                f"a worked example of dataset {dataset.name!r} is itself one of its {dataset.size} evaluation "
                f"problems; {fix}"
            )
