"""Record the content of a run's files in its configuration, so that a changed file is noticed."""

from omegaconf import DictConfig, OmegaConf, open_dict

from rgtrain.config.run_config import plain_config
from rgtrain.errors import ConfigError
from rgtrain.problems.mixture import read_spec
from rgtrain.problems.question_file import QuestionFile
from rgtrain.problems.validation_files import content_digest, read_validation_datasets


def record_question_files(config: DictConfig) -> DictConfig:
    """Set `data.mixture.NAME.sha256` of each entry with a file of questions.

    A resumed run is compared with its saved configuration, so it is refused after a change of the file. The checks that
    follow report a file that cannot be used.

    Args:
        config: The resolved configuration. It is completed in place.

    Returns:
        The same configuration.
    """
    mixture = plain_config(config)["data"]["mixture"]
    for name, options in mixture.items() if isinstance(mixture, dict) else ():
        if not isinstance(options, dict) or QuestionFile.key not in options:
            continue
        try:
            sha256 = read_spec(name, options).params["sha256"]
        except ConfigError:
            continue
        with open_dict(config):
            OmegaConf.update(config, f"data.mixture.{name}.sha256", sha256)
    return config


def record_validation_files(config: DictConfig) -> DictConfig:
    """Set `data.validation_datasets` and `data.validation_size` of a run with `data.validation_files`.

    A resumed run is compared with its saved configuration, so it is refused after a change of a file. The checks that
    follow report a file that cannot be used.

    Args:
        config: The resolved configuration. It is completed in place.

    Returns:
        The same configuration.
    """
    files = plain_config(config)["data"]["validation_files"]
    try:
        datasets = read_validation_datasets(files)
    except ConfigError:
        return config
    with open_dict(config):
        config.data.validation_datasets = {
            dataset.name: {"size": dataset.size, "digest": content_digest(dataset)} for dataset in datasets
        }
        if datasets:
            config.data.validation_size = sum(dataset.size for dataset in datasets)
    return config
