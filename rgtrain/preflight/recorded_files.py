"""Record the content of a run's files of questions in its configuration, so that a changed file is noticed."""

from omegaconf import DictConfig, OmegaConf, open_dict

from rgtrain.config.run_config import plain_config
from rgtrain.errors import ConfigError
from rgtrain.problems.mixture import read_spec
from rgtrain.problems.question_file import QuestionFile


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
