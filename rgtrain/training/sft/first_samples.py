"""Make the first sample of each dataset of a supervised run, before anything heavy starts."""

from rgtrain.config.run_config import RunConfig
from rgtrain.preflight.prompt_checks import load_tokenizer
from rgtrain.preflight.training_model import find_model
from rgtrain.problems import Scorer
from rgtrain.training.sft.right_answers import AnsweredProblems


def first_samples(config: RunConfig) -> list[str]:
    """Return lines about the first training sample of each dataset.

    Args:
        config: The run's configuration. Its model is on this machine.

    Returns:
        The tokens of the prompt, the tokens of the answer and the answer's text, for each dataset.

    Raises:
        ConfigError: A dataset gives no problem with a right answer that fits the lengths.
    """
    folder = find_model(config).folder
    if folder is None:
        return [f"samples: not made, because {config.model.path} is not on this machine"]
    tokenizer = load_tokenizer(folder, trust=bool(config.model.trust_remote_code))
    with Scorer(**dict(config.reward.scorer) | {"num_workers": 1}) as scorer:
        problems = AnsweredProblems(config.data, tokenizer, scorer, template=config.model.custom_chat_template)
        return [
            f"{one.problem.dataset}: a prompt of {len(one.prompt_ids)} tokens, an answer of {len(one.answer_ids)}, "
            f"{tokenizer.decode(one.answer_ids, clean_up_tokenization_spaces=False)!r:.200}"
            for one in problems.first_of_datasets()
        ]
