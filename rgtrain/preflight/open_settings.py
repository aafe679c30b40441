"""Fill in the values that a composed configuration leaves open, by the model's chat template and by the GPUs."""

from omegaconf import DictConfig, OmegaConf, open_dict

from rgtrain.config.composition import checked_config
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.preflight.gpu_settings import choose_gpu_settings
from rgtrain.preflight.prompt_checks import template_facts
from rgtrain.preflight.recorded_files import record_question_files, record_validation_files

_OPENS_THINKING, _ROLE = "model.template_opens_thinking", "data.prompt.role"


def complete_config(composed: DictConfig, checked: DictConfig) -> DictConfig:
    """Fill in the values that a composed configuration leaves open.

    `read_template` fills in values by the model's chat template, and `choose_gpu_settings` chooses the others. The
    content of files of questions and of evaluation files for the validation is recorded.

    Args:
        composed: The unresolved configuration. It is changed in place.
        checked: A copy of it that is resolved and checked.

    Returns:
        The whole configuration, resolved and checked.

    Raises:
        ConfigError: A value that depends on one of them is unusable.
    """
    checked = read_template(composed, checked)
    return record_validation_files(record_question_files(choose_gpu_settings(composed, checked)))


def read_template(composed: DictConfig, checked: DictConfig) -> DictConfig:
    """Fill in `model.template_opens_thinking` and `data.prompt.role`, if they are null, by the model's chat template.

    Args:
        composed: The unresolved configuration. It is changed in place.
        checked: A copy of it that is resolved and checked.

    Returns:
        The configuration, resolved and checked.

    Raises:
        ConfigError: A value that depends on one of them is unusable.
    """
    open_keys = [key for key in (_OPENS_THINKING, _ROLE) if OmegaConf.select(checked, key) is None]
    if not open_keys:
        return checked
    facts = template_facts(RunConfig.of(plain_config(checked)))
    values = {_OPENS_THINKING: facts.opens_thinking, _ROLE: "system" if facts.has_system_role else "user"}
    with open_dict(composed):
        for key in open_keys:
            OmegaConf.update(composed, key, values[key])
    return checked_config(composed.copy())
