"""Render a prompt with the model's chat template before anything heavy starts, and check that nothing is lost."""

from pathlib import Path
from typing import Any

from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError
from rgtrain.models.chat_templates import PROCESSOR_TEMPLATE_FILE, TEMPLATE_FILE, chat_template_of
from rgtrain.models.template_only_tokenizer import TemplateOnlyTokenizer
from rgtrain.preflight.training_model import TrainingModel, find_model
from rgtrain.problems.prompt_rendering import PromptRenderer, check_template_arguments
from rgtrain.problems.prompts import parse_prompt, sample_messages

_ARGUMENTS = "data.apply_chat_template_kwargs"
_TEMPLATE = "actor_rollout_ref.model.custom_chat_template"


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
    model = find_model(config)
    if model.folder is None:
        return []
    # Rendering texts needs no transformers, which would take seconds to import. `prompt_renderer` counts tokens.
    renderer = _renderer(TemplateOnlyTokenizer(model.folder), model.folder, config)
    renderer.check(sample_messages(parse_prompt(config.data.prompt)))
    return renderer.notes


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
