"""The dataset that verl's SFT trainer reads: prompts of rollouts, each followed by the right answer."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.data import Dataset

from rgtrain.config.run_config import DataConfig, plain_config, read_section
from rgtrain.problems import Scorer
from rgtrain.training.sft.right_answers import AnsweredProblems


class RightAnswerDataset(Dataset[dict[str, torch.Tensor]]):
    """Samples of the training problems, which are those of `train_grpo.py` with the same configuration.

    verl creates it through the configuration key `data.custom_cls`.

    Args:
        parquet_files: Unused. verl's own datasets read files.
        tokenizer: The model's tokenizer.
        config: The configuration's `data` node with the keys of `sft_settings.sft_config`.
        processor: The processor of a model of texts and images; None for others. verl gives its own template to it.
        max_samples: The number of samples.

    Raises:
        ConfigError: A dataset has too few problems.
    """

    def __init__(
        self,
        parquet_files: Any,
        tokenizer: Any,
        config: DictConfig,
        processor: Any = None,
        max_samples: int = -1,
    ):
        plain = plain_config(config)
        data = read_section(DataConfig, plain, key="data")
        template = getattr(processor, "chat_template", None) or tokenizer.chat_template
        self._masks_prompt = bool(plain["masks_prompt"])
        self._size = max_samples
        self._scorer = Scorer(**plain["scorer"]).__enter__()
        self.problems = AnsweredProblems(
            data, tokenizer, self._scorer, template=template if isinstance(template, str) else None
        )

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return a sample.

        Args:
            index: The number of the training problem.

        Returns:
            `prompts` and `responses` are its two parts, and `input_ids` and `position_ids` both together. `loss_mask`
            is 1 for each token of the response. It begins with zeros for the prompt if `data.masks_prompt` is set, as
            verl's own engine expects; the engine `fast` computes log-probabilities of responses only.

        Raises:
            ConfigError: Its dataset has no problems with a right answer.
            IndexError: There is no such problem.
        """
        if not 0 <= index < self._size:
            raise IndexError(index)
        problem = self.problems.draw(index)
        prompt = torch.tensor(self.problems.prompt_ids(problem))
        response = torch.tensor(self.problems.answer_ids(problem))
        mask = torch.ones_like(response)
        return {
            "input_ids": torch.cat([prompt, response]),
            "position_ids": torch.arange(len(prompt) + len(response)),
            "loss_mask": torch.cat([torch.zeros_like(prompt), mask]) if self._masks_prompt else mask,
            "prompts": prompt,
            "responses": response,
        }

    def close(self) -> None:
        """End the processes that judge answers."""
        self._scorer.__exit__(None, None, None)
