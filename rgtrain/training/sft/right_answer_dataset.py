"""The dataset that verl's SFT trainer reads: prompts of rollouts, each followed by the right answer."""

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.data import Dataset

from rgtrain.config.run_config import DataConfig, plain_config, read_section
from rgtrain.problems import Scorer
from rgtrain.training.sft.right_answers import AnsweredProblem, AnsweredProblems


class RightAnswerDataset(Dataset[dict[str, torch.Tensor]]):
    """Samples of the training problems, which are those of `train_grpo.py` with the same configuration.

    verl creates it through the configuration key `data.custom_cls`.

    Args:
        parquet_files: Unused. verl's own datasets read files.
        tokenizer: The model's tokenizer.
        config: The configuration's `data` node with the keys of `sft_settings.sft_config`.
        processor: The processor of a model of texts and images; None for others. verl gives its own template to it.
        max_samples: The number of samples.

    Attributes:
        digests: The digest of the problem of each sample that was taken.

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
        self.digests: list[str] = []
        self._scorer = Scorer(**plain["scorer"]).__enter__()
        self.problems = AnsweredProblems(
            data, tokenizer, self._scorer, template=template if isinstance(template, str) else None
        )

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Return samples. torch's data loader calls it with the indices of a batch.

        Args:
            indices: The numbers of training problems.

        Returns:
            For each problem, `prompts` and `responses` are its two parts, and `input_ids` and `position_ids` those of
            both together. `loss_mask` is 1 for each token of the response. If `data.masks_prompt` is set, it begins
            with zeros for the prompt, as verl's own engine expects. The engine `fast` computes log-probabilities of
            responses only.

        Raises:
            ConfigError: A dataset has no problems with a right answer.
        """
        answered = self.problems.at(indices)
        self.digests += [one.problem.digest for one in answered]
        return [self._sample(one) for one in answered]

    def _sample(self, answered: AnsweredProblem) -> dict[str, torch.Tensor]:
        prompt, response = torch.tensor(answered.prompt_ids), torch.tensor(answered.answer_ids)
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
