"""Layouts of a micro-batch, and the self-test that chooses the fastest one that is right for a model.

A layout is right if it gives the log-probabilities of the plain model, which gets one sequence at a time. The models
themselves decide this: a test of a few tokens runs at the start, on every rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rgtrain.training.update import packed_attention
from rgtrain.training.update.log_prob_head import LogProbHead, Targets
from rgtrain.training.update.micro_batches import split_into_micro_batches, split_rows
from rgtrain.training.update.packing import MAX_GROUP_TOKENS, ArrangedSequences, pack_groups, pad_rows

# The largest mean difference from the plain model that rounding explains. For random tokens, bf16 rounding changes the
# log-probabilities of SmolLM2-135M by 0.05, and wrong positions or masks change them by 0.35 to 0.5.
_MAX_DIFFERENCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
# Padded rows use the model's own attention, so their difference is due to rounding, unless it is far larger.
_MAX_PADDED_FACTOR = 2
# The largest mean change that other tokens in a neighbouring sequence may cause. It is zero for most models. A mixture
# of experts computes the tokens of an expert together, which changes the rounding.
_MAX_CHANGE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 0.02}
# The lengths of the prompts and completions of the self-test.
_TEST_GROUPS = ((11, 7, 3, 8), (5, 4, 6))


@dataclass(frozen=True)
class Layout:
    """A way to arrange the sequences of a micro-batch.

    Attributes:
        name: Its name in the log.
        shares_prompts: Whether a group has one copy of its prompt.
        is_padded: Whether each sequence has its own padded row. Otherwise, there is one row.
    """

    name: str
    shares_prompts: bool
    is_padded: bool

    def arrange(self, prompts: Sequence[Tensor], responses: Sequence[Tensor]) -> ArrangedSequences:
        """Return sequences, given by the token ids of their prompts and responses, as rows for the model."""
        if self.is_padded:
            return pad_rows(prompts, responses)
        max_group_tokens = None if torch.cuda.is_available() else MAX_GROUP_TOKENS
        return pack_groups(prompts, responses, max_group_tokens=max_group_tokens, shares_prompts=self.shares_prompts)

    def split(
        self,
        prompts: Sequence[np.ndarray],
        responses: Sequence[np.ndarray],
        *,
        max_tokens: int,
        num_parts_agreed: Callable[[int], int],
    ) -> list[list[int]]:
        """Split sequences into micro-batches; see `split_into_micro_batches` for arguments and result."""
        if self.is_padded:
            lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
            return split_rows(lengths, max_tokens=max_tokens, num_parts_agreed=num_parts_agreed)
        return split_into_micro_batches(
            prompts,
            responses,
            max_tokens=max_tokens,
            num_parts_agreed=num_parts_agreed,
            shares_prompts=self.shares_prompts,
        )


SHARED_PROMPTS = Layout("shared prompts", shares_prompts=True, is_padded=False)
ONE_ROW = Layout("one row", shares_prompts=False, is_padded=False)
PADDED_ROWS = Layout("padded rows", shares_prompts=False, is_padded=True)
# From the fastest to the slowest.
LAYOUTS = (SHARED_PROMPTS, ONE_ROW, PADDED_ROWS)


class NoRightLayout(RuntimeError):
    """No layout gives the log-probabilities of the plain model."""


@dataclass(frozen=True)
class LayoutChoice:
    """The layout of a run. `rejected` holds the names of faster layouts, each with the reason against it."""

    layout: Layout
    rejected: dict[str, str]

    def __str__(self) -> str:
        """Return one line for the log."""
        if not self.rejected:
            family = " (the family needs it)" if self.layout.is_padded else ""
            return f"layout in training: {self.layout.name}{family}"
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.rejected.items())
        return f"layout in training: {self.layout.name}, because faster ones are wrong for this model ({reasons})"


def remove_noise(config: Any) -> None:
    """Turn off dropout and the like, with which a second forward pass would give other log-probabilities."""
    for part in (config, config.get_text_config()):
        for name, value in vars(part).items():
            if isinstance(value, float) and any(word in name for word in ("dropout", "pdrop", "jitter_noise")):
                setattr(part, name, 0.0)


class PolicyModel:
    """A language model of transformers that gives log-probabilities in any layout that is right for it.

    Args:
        model: The model, before it is sharded or wrapped. It is changed in place.

    Attributes:
        head: The model's output layer.
    """

    def __init__(self, model: Any):
        self.head = LogProbHead(model)
        self._model = model
        # An image encoder, which has its own configuration, keeps its attention.
        self._config = model.config.get_text_config()
        self._plain_attention = self._config._attn_implementation

    @property
    def family(self) -> str:
        """The name of the model's family in transformers."""
        return str(self._model.config.model_type)

    def use(self, layout: Layout) -> None:
        """Let the model expect the inputs of `layout`."""
        name = self._plain_attention if layout.is_padded else packed_attention.NAME
        # transformers' own method does not work on a sharded model. Models that ignore this fail the self-test.
        self._config._attn_implementation = name

    @torch.no_grad()
    def choose_layout(
        self,
        run: Callable[..., Any],
        *,
        device: Any,
        dtype: torch.dtype,
        needs_padding: bool = False,
        max_over_ranks: Callable[[float], float] = float,
    ) -> LayoutChoice:
        """Use the fastest layout whose log-probabilities equal those of the plain model, which is run first.

        All ranks run the same forward passes and take the same decision.

        Args:
            run: The model as it is called in training, sharded and with casts.
            device: The device of its inputs.
            dtype: The dtype of its computations.
            needs_padding: Whether only padded rows are right for its family. If its layers with a state hardly act yet,
                as in a new model, the other layouts would pass the test.
            max_over_ranks: Maps a number to the largest one of all ranks.

        Returns:
            The choice.

        Raises:
            NoRightLayout: All layouts are wrong, or the model changes its logits in an unknown way.
        """
        prompts, responses, others, compared = _test_sequences(len(self.head.weight))
        self.use(PADDED_ROWS)
        self.head.error = 0.0
        try:
            plain = torch.cat(
                [self._plain_log_probs(run, *pair, device) for pair in zip(prompts, responses, strict=True)]
            )
            first = prompts[0][None].to(device)
            head_error, self.head.error = max_over_ranks(self.head.error), None
            self.head.measure_transform(lambda: run(input_ids=first, use_cache=False).logits)
        # The model's code can fail in any way, for example if it needs inputs other than tokens.
        except Exception as error:
            raise NoRightLayout(f"{type(self._model).__name__} can't be trained ({_reason(error)})") from error
        if not head_error <= _MAX_CHANGE[dtype]:
            raise NoRightLayout(f"the output layer's log-probabilities differ from torch's by {head_error:.2g}")
        limit, rejected = _MAX_DIFFERENCE[dtype], {}
        # Padded rows are tested first. They are the last resort, and show how much rounding changes this model.
        for layout in (PADDED_ROWS, *(() if needs_padding else LAYOUTS[:-1])):
            reason = None
            try:
                log_probs = self._log_probs(run, layout, prompts, responses, device)
                changed = self._log_probs(run, layout, prompts, others, device)
                difference = max_over_ranks((log_probs - plain).abs().mean().item())
                change = max_over_ranks((log_probs - changed)[compared].abs().mean().item())
                if not difference <= limit * (_MAX_PADDED_FACTOR if layout.is_padded else 1):
                    reason = f"log-probabilities differ by {difference:.2g}"
                elif not change <= _MAX_CHANGE[dtype]:
                    reason = f"neighbouring sequences change log-probabilities by {change:.2g}"
                elif layout.is_padded:
                    limit = max(limit, _MAX_PADDED_FACTOR * difference)
            # A model's code can fail in any way if it does not expect these inputs. All ranks fail alike.
            except Exception as error:
                reason = _reason(error)
            if reason is not None:
                rejected[layout.name] = reason
            elif not layout.is_padded:
                return LayoutChoice(layout, rejected)
        if PADDED_ROWS.name not in rejected:
            self.use(PADDED_ROWS)
            return LayoutChoice(PADDED_ROWS, rejected)
        raise NoRightLayout(
            f"{type(self._model).__name__} can't be trained, because no layout gives its log-probabilities "
            f"({'; '.join(f'{name}: {reason}' for name, reason in rejected.items())})"
        )

    def _log_probs(
        self,
        run: Callable[..., Any],
        layout: Layout,
        prompts: Sequence[Tensor],
        responses: Sequence[Tensor],
        device: Any,
    ) -> Tensor:
        """Return the log-probabilities of all responses in a layout."""
        self.use(layout)
        arranged = layout.arrange(prompts, responses).to(device)
        self.head.targets = Targets(arranged.labels, arranged.sources, temperature=1.0, with_entropy=False)
        log_probs: Tensor = run(**arranged.model_inputs, use_cache=False).logits[:, 0]
        return log_probs

    def _plain_log_probs(self, run: Callable[..., Any], prompt: Tensor, response: Tensor, device: Any) -> Tensor:
        """Return the log-probabilities of one response without any change to the model."""
        self.head.targets = None
        sequence = torch.cat([prompt, response])[None].to(device)
        logits = run(input_ids=sequence, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        return torch.log_softmax(logits, -1).gather(-1, response[:, None].to(device)).squeeze(-1)


def _reason(error: Exception) -> str:
    return f"{(str(error).strip().splitlines() or [type(error).__name__])[0]:.100}"


def _test_sequences(vocabulary: int) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Return the sequences of the self-test.

    Returns:
        Prompts, responses, other responses of the same lengths, and a mask of the response tokens that both have. Only
        the last responses of a group are the same, so the tokens before them differ.
    """
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> Tensor:
        # The first tokens of many vocabularies are special.
        return torch.randint(vocabulary // 20, vocabulary // 2, (length,), generator=generator)

    prompts, responses, others = [], [], []
    for prompt_length, *response_lengths in _TEST_GROUPS:
        prompts += [tokens(prompt_length)] * len(response_lengths)
        responses += [tokens(length) for length in response_lengths]
        others += [*(tokens(length) for length in response_lengths[:-1]), responses[-1]]
    compared = torch.cat([torch.full((len(one),), one is other) for one, other in zip(responses, others, strict=True)])
    return prompts, responses, others, compared
