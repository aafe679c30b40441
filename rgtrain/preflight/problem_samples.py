"""What the run's problems look like to its model, and what making and judging them costs, from a sample of each."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rgtrain.config.run_config import DataConfig, RunConfig
from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.preflight.training_model import TrainingModel
from rgtrain.problems import DatasetSpec, Problem, Scorer, render_prompt
from rgtrain.problems.mixture import ProblemSource, Split
from rgtrain.problems.prompts import PromptBuilder, parse_prompt
from rgtrain.problems.scoring import parse_scorer

NUM_SAMPLED = 200
# Some datasets take a second for a problem: fewer are drawn then, and the table says how many.
_BUDGET_SECONDS = 3.0
_NUM_JUDGED = 16


@dataclass(frozen=True)
class Sample:
    """A dataset's share of the mixture, and of each problem sampled: tokens of prompt and oracle, seconds to make.

    Each level of a dataset with a curriculum is a sample of its own, `name` says which; all levels have equal shares.
    """

    name: str
    share: float
    prompt_tokens: Sequence[int]
    longest_oracle: int | None
    make_seconds: float
    judge_seconds: float | None

    def share_over(self, limit: int) -> float:
        """The share of prompts with more than `limit` tokens; training replaces them."""
        return sum(tokens > limit for tokens in self.prompt_tokens) / len(self.prompt_tokens)

    def quantile(self, q: float) -> int:
        """Of the prompts' lengths."""
        ordered = sorted(self.prompt_tokens)
        return ordered[math.ceil(q * len(ordered)) - 1]


@dataclass(frozen=True)
class Tokens:
    """Counts tokens: `encode` for a text, `prompt` for chat messages; `name` says whose."""

    name: str
    encode: Callable[[str], Sequence[int]]
    prompt: Callable[[list[dict[str, str]]], Sequence[int]]


def sample_problems(config: RunConfig, tokens: Tokens, specs: Sequence[DatasetSpec]) -> list[Sample]:
    """A sample of each of `specs`, the datasets that are drawn from, as training draws its problems."""
    data = config.data
    builder = PromptBuilder(parse_prompt(data.prompt))
    total = sum(spec.weight for spec in specs)
    named = _with_levels(specs, data)
    budget_s = _BUDGET_SECONDS / len(named)
    drawn = {name: _Drawn(spec, data.seed, builder, tokens, budget_s=budget_s) for name, spec in named.items()}
    judge_seconds = _judge([problem for one in drawn.values() for problem in one.problems[:_NUM_JUDGED]], config)
    return [
        Sample(
            name=name,
            share=one.spec.weight / total,
            prompt_tokens=one.prompt_tokens,
            longest_oracle=one.longest_oracle(tokens),
            make_seconds=one.seconds / len(one.problems),
            judge_seconds=judge_seconds.get(one.spec.name),
        )
        for name, one in drawn.items()
    ]


def _with_levels(specs: Sequence[DatasetSpec], data: DataConfig) -> dict[str, DatasetSpec]:
    """`specs` by name, in place of one with a curriculum each of its levels."""
    curriculum = build_curriculum(specs, seed=data.seed, curriculum=data.curriculum, mixture_policy=data.mixture_policy)
    levels = curriculum.level_specs()
    named: dict[str, DatasetSpec] = {}
    for spec in specs:
        at_levels = levels.get(spec.name)
        if at_levels is None:
            named[spec.name] = spec
            continue
        for level, at_level in enumerate(at_levels):
            named[f"{spec.name}, level {level}"] = replace(at_level, weight=spec.weight / len(at_levels))
    return named


class _Drawn:
    """Problems of one dataset, NUM_SAMPLED or as many as there is time for, with the time they took to make."""

    def __init__(self, spec: DatasetSpec, seed: int, builder: PromptBuilder, tokens: Tokens, *, budget_s: float):
        self.spec = spec
        self.problems: list[Problem] = []
        self.prompt_tokens: list[int] = []
        self.seconds = 0.0
        began = time.perf_counter()
        source = ProblemSource(spec, seed=Split.TRAIN.base_seed(seed))
        while len(self.problems) < NUM_SAMPLED:
            started = time.perf_counter()
            self.problems.append(source[len(self.problems)])
            self.seconds += time.perf_counter() - started
            self.prompt_tokens.append(len(tokens.prompt(builder.messages(self.problems[-1]))))
            if time.perf_counter() - began > budget_s:
                break

    def longest_oracle(self, tokens: Tokens) -> int | None:
        """Tokens of the longest right answer in its tags; None where no problem names one."""
        answers = [answer for problem in self.problems if (answer := problem.entry.get("answer")) is not None]
        longest = sorted((f"<answer>{answer}</answer>" for answer in answers), key=len)[-5:]
        return max((len(tokens.encode(text)) for text in longest), default=None)


def _judge(problems: Sequence[Problem], config: RunConfig) -> dict[str, float]:
    """Mean seconds to judge a right answer, by dataset; without those that name none."""
    pairs = [(str(answer), p.entry) for p in problems if (answer := p.entry.get("answer")) is not None]
    seconds: dict[str, list[float]] = {}
    with Scorer(**config.reward.scorer) as scorer:
        for (_, entry), score in zip(pairs, scorer.score_many(pairs), strict=True):
            seconds.setdefault(entry["metadata"]["source_dataset"], []).append(score.seconds)
    return {name: statistics.fmean(values) for name, values in seconds.items()}


def seconds_a_step(samples: Sequence[Sample], config: RunConfig) -> tuple[float, float]:
    """To make one batch's problems, in the trainer, and to judge its answers, by all scoring processes together."""
    batch, group = config.data.train_batch_size, config.rollout.n
    make = batch * sum(sample.share * sample.make_seconds for sample in samples)
    judge = batch * group * sum(sample.share * (sample.judge_seconds or 0.0) for sample in samples)
    return make, judge / parse_scorer(config.reward.scorer)["num_workers"]


def model_tokens(model: TrainingModel, config: RunConfig) -> Tokens:
    """The model's own, or those of the embedded model's tokenizer where it can't be reached."""
    from rgtrain.models.embedded_model import EMBEDDED_MODEL, embedded_tokenizer
    from rgtrain.paths import PROJECT_ROOT

    embedded = PROJECT_ROOT / "models" / EMBEDDED_MODEL
    folder = model.folder or (embedded if embedded.is_dir() else None)
    trust = bool(config.model.trust_remote_code)
    tokenizer = _tokenizer_in(folder, trust=trust) if folder else embedded_tokenizer()
    # Another model's template knows nothing of these.
    template_kwargs = (config.data.apply_chat_template_kwargs or {}) if model.folder else {}
    return Tokens(
        name=model.name if model.folder else f"{EMBEDDED_MODEL}, because {model.name} is not on this machine",
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        prompt=lambda messages: render_prompt(messages, tokenizer, **template_kwargs),
    )


def _tokenizer_in(folder: Path, *, trust: bool) -> Any:
    if not (folder / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    # What AutoTokenizer would find, imported in half of the time.
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
