"""Render a prompt with the model's chat template before anything heavy starts, and check that nothing is lost."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError
from rgtrain.models.chat_templates import PROCESSOR_TEMPLATE_FILE, TEMPLATE_FILE, chat_template_of
from rgtrain.models.model_lookup import cached_template, fetch_template
from rgtrain.models.template_only_tokenizer import TemplateOnlyTokenizer
from rgtrain.preflight.first_problems import first_problems
from rgtrain.preflight.training_model import TrainingModel, find_model
from rgtrain.problems.prompt_rendering import PromptRenderer, check_template_arguments
from rgtrain.problems.prompts import PromptBuilder, PromptStyle, parse_prompt, sample_messages
from rgtrain.problems.validation_files import check_prompt_lengths, validation_problems

_ARGUMENTS = "data.apply_chat_template_kwargs"
_TEMPLATE = "actor_rollout_ref.model.custom_chat_template"
_SHOWN_CHARS = 40


def check_prompts(config: RunConfig) -> list[str]:
    """Check that the chat template keeps every part of a prompt. A model that is not on this machine is skipped.

    Args:
        config: The run's configuration.

    Returns:
        Warnings, one line each.

    Raises:
        ConfigError: The template or its arguments cannot be used, or the template drops a part of a prompt.
    """
    arguments = config.data.apply_chat_template_kwargs or {}
    check_template_arguments(arguments, key=_ARGUMENTS)
    given = config.model.custom_chat_template
    if given is not None and "{{" not in given and "{%" not in given:
        raise ConfigError(f"{_TEMPLATE} is {given!r:.80}; give the text of a Jinja template, not a file or a name")
    folder = find_model(config).folder or cached_template(config.model.path)
    if folder is None:
        return []
    # Rendering texts needs no transformers, which would take seconds to import. `prompt_renderer` counts tokens.
    renderer = _renderer(TemplateOnlyTokenizer(folder), folder, config)
    style = parse_prompt(config.data.prompt)
    prompts: list[list[dict[str, str]]] = []
    for one in dict.fromkeys((style, style.final)):
        prompts += [sample_messages(one)] if one.function() is None else _prompts_of_function(config, one)
    for messages in prompts:
        renderer.check(messages)
        _check_opens_thinking(config, renderer.text(messages))
    return renderer.notes


def check_validation_prompts(config: RunConfig) -> None:
    """Check that no prompt of `data.validation_files` is too long. A model that is not on this machine is skipped.

    Args:
        config: The run's configuration.

    Raises:
        ConfigError: A prompt is too long, or the files, the tokenizer or its chat template cannot be used.
    """
    data, model = config.data, find_model(config)
    problems = validation_problems(data.validation_files)
    if not problems or model.folder is None:
        return
    renderer, builder = prompt_renderer(model, config), PromptBuilder(parse_prompt(data.prompt).final)
    check_prompt_lengths(
        problems,
        num_tokens=lambda problem: len(renderer.token_ids(builder.messages(problem), dataset=problem.dataset)),
        max_prompt_length=data.max_prompt_length,
    )


def _prompts_of_function(config: RunConfig, style: PromptStyle) -> list[list[dict[str, str]]]:
    """Return prompts of the first problem of each dataset, after checking that they are the same in a second call."""
    builder, prompts = PromptBuilder(style), []
    for problem in first_problems(config.data):
        # Evaluations have no levels.
        for level in dict.fromkeys((problem.level, None)):
            leveled = replace(problem, level=level)
            prompts.append(builder.messages(leveled))
            if builder.messages(leveled) != prompts[-1]:
                raise ConfigError(
                    f"the prompt function {style.system_prompt!r} returned two prompts for one problem of dataset "
                    f"{problem.dataset!r}; let it depend on its argument only, so that a resumed run has the same "
                    "prompts"
                )
    return prompts


def _check_opens_thinking(config: RunConfig, prompt: str) -> None:
    """Raise ConfigError if `model.template_opens_thinking`, which the `format` reward uses, differs from a prompt."""
    given, opened = config.model_choice.template_opens_thinking, _opens_thinking(prompt)
    if given is not None and given != opened:
        raise ConfigError(
            f"model.template_opens_thinking is {str(given).lower()}, but the chat template of {config.model.path!r} "
            f"ends the prompt with {prompt[-_SHOWN_CHARS:]!r}, {'an' if opened else 'without an'} open <think> tag; "
            f"set it to {str(opened).lower()}, or to null, which reads it from the template"
        )


def _opens_thinking(prompt: str) -> bool:
    return prompt.rstrip().endswith("<think>")


@dataclass(frozen=True)
class TemplateFacts:
    """Facts about a chat template.

    Attributes:
        opens_thinking: Whether the prompt ends with an open <think> tag.
        has_system_role: Whether the template keeps a system prompt with the role system.
    """

    opens_thinking: bool = False
    has_system_role: bool = True


def template_facts(config: RunConfig) -> TemplateFacts:
    """Read the facts about the chat template of a run's model, with the run's arguments of the template.

    The template of a hub model is fetched within seconds.

    Args:
        config: The run's configuration.

    Returns:
        The facts. If the template cannot be had or rendered, those of most templates; the run's checks report why.
    """
    try:
        folder = find_model(config).folder or fetch_template(config.model.path)
        if folder is None:
            return TemplateFacts()
        renderer = _renderer(TemplateOnlyTokenizer(folder), folder, config)
        in_question = sample_messages(PromptStyle("default", role="user"))
        renderer.check(in_question)
    except ConfigError:
        return TemplateFacts()
    try:
        renderer.check(sample_messages(PromptStyle("default", role="system")))
    except ConfigError:
        return TemplateFacts(_opens_thinking(renderer.text(in_question)), has_system_role=False)
    return TemplateFacts(_opens_thinking(renderer.text(in_question)))


def prompt_renderer(model: TrainingModel, config: RunConfig) -> PromptRenderer:
    """Return the renderer of the run's prompts.

    Args:
        model: The run's model, which has a folder.
        config: The run's configuration.

    Returns:
        A renderer that gives the same token ids as training.

    Raises:
        ConfigError: The model has no usable tokenizer or chat template.
        ValueError: The model is not on this machine.
    """
    if model.folder is None:
        raise ValueError(f"{model.name} is not on this machine")
    tokenizer = load_tokenizer(model.folder, trust=bool(config.model.trust_remote_code))
    return _renderer(tokenizer, model.folder, config)


def _renderer(tokenizer: Any, folder: Path, config: RunConfig) -> PromptRenderer:
    name = config.model.path
    arguments = dict(config.data.apply_chat_template_kwargs or {})
    given = arguments.pop("chat_template", config.model.custom_chat_template)
    if given is None and not tokenizer.chat_template and (folder / PROCESSOR_TEMPLATE_FILE).is_file():
        raise ConfigError(
            f"{name} has its chat template only in {PROCESSOR_TEMPLATE_FILE}, which the tokenizer that is saved with "
            f"checkpoints would lose; save its text as {TEMPLATE_FILE} in that folder"
        )
    template = chat_template_of(tokenizer, folder=folder, model=name, given=given, key=_TEMPLATE)
    return PromptRenderer(
        tokenizer,
        model=name,
        arguments={**arguments, "chat_template": template},
        role_key="data.prompt.role",
        template_key=_TEMPLATE,
    )


def load_tokenizer(folder: Path, *, trust: bool) -> Any:
    """Return the Hugging Face tokenizer in a folder; `trust` lets the folder's own code run."""
    try:
        if not (folder / "tokenizer.json").is_file():
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        # AutoTokenizer would find the same class but takes twice as long to import.
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    # tokenizers raises plain Exceptions, and a damaged file can raise anything.
    except Exception as error:
        reason = " ".join(str(error)[:1000].split()) or type(error).__name__
        raise ConfigError(f"cannot load the tokenizer in {str(folder)!r}: {reason:.300}") from error
