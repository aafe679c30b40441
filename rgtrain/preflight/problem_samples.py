"""Sample problems of each dataset to measure their length in tokens and the time to generate and score them."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rgtrain.config.run_config import DataConfig, RunConfig
from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.preflight.prompt_checks import load_tokenizer, prompt_renderer
from rgtrain.preflight.training_model import TrainingModel
from rgtrain.problems import DatasetSpec, Problem, PromptRenderer, Scorer
from rgtrain.problems.mixture import ProblemSource, Split, spec_of_split
from rgtrain.problems.prompts import PromptBuilder, parse_prompt
from rgtrain.problems.scoring import parse_scorer

NUM_SAMPLED = 200
# Some datasets take a second per problem. Fewer are drawn then, and the report shows the number.
_BUDGET_SECONDS = 3.0
_NUM_SCORED = 16


@dataclass(frozen=True)
class DatasetSample:
    """Measurements of sampled problems of one dataset, or of one level of a dataset with a curriculum.

    Attributes:
        name: The dataset, with its level if it has a curriculum.
        share: The share of the mixture. All levels of a dataset have equal shares.
        prompt_tokens: The number of tokens of each prompt.
        longest_oracle: The number of tokens of the longest correct answer; None if no problem names one.
        generate_seconds: Mean seconds per problem.
        score_seconds: Mean seconds per correct answer; None if no problem names one.
    """

    name: str
    share: float
    prompt_tokens: Sequence[int]
    longest_oracle: int | None
    generate_seconds: float
    score_seconds: float | None

    def share_over(self, limit: int) -> float:
        """Return the share of prompts with more than `limit` tokens, which training replaces."""
        return sum(tokens > limit for tokens in self.prompt_tokens) / len(self.prompt_tokens)

    def quantile(self, q: float) -> int:
        """Return the quantile `q` (0 to 1) of the prompts' numbers of tokens."""
        ordered = sorted(self.prompt_tokens)
        return ordered[math.ceil(q * len(ordered)) - 1]


@dataclass(frozen=True)
class TokenCounter:
    """A tokenizer: its `name`, and functions that return the tokens of a text and of a dataset's chat messages."""

    name: str
    encode: Callable[[str], Sequence[int]]
    prompt: Callable[[list[dict[str, str]], str], Sequence[int]]


def sample_problems(config: RunConfig, tokens: TokenCounter, specs: Sequence[DatasetSpec]) -> list[DatasetSample]:
    """Sample problems of every dataset as training draws them.

    Args:
        config: The run's configuration.
        tokens: The tokenizer.
        specs: The datasets with a positive weight.

    Returns:
        One sample per dataset, or per level of a dataset with a curriculum.
    """
    data = config.data
    builder = PromptBuilder(parse_prompt(data.prompt))
    total = sum(spec.weight for spec in specs)
    named = _with_levels(specs, data)
    budget_s = _BUDGET_SECONDS / len(named)
    drawn = {name: _DrawnProblems(spec, data.seed, builder, tokens, budget_s=budget_s) for name, spec in named.items()}
    score_seconds = _score_seconds(
        [problem for one in drawn.values() for problem in one.problems[:_NUM_SCORED]], config
    )
    return [
        DatasetSample(
            name=name,
            share=one.spec.weight / total,
            prompt_tokens=one.prompt_tokens,
            longest_oracle=one.longest_oracle(tokens),
            generate_seconds=one.seconds / len(one.problems),
            score_seconds=score_seconds.get(one.spec.name),
        )
        for name, one in drawn.items()
    ]


def _with_levels(specs: Sequence[DatasetSpec], data: DataConfig) -> dict[str, DatasetSpec]:
    """Return `specs` by name, with one entry per level for a dataset with a curriculum."""
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


class _DrawnProblems:
    """NUM_SAMPLED problems of one dataset, or as many as fit into the time budget, and the seconds to generate them."""

    def __init__(self, spec: DatasetSpec, seed: int, builder: PromptBuilder, tokens: TokenCounter, *, budget_s: float):
        self.spec = spec
        self.problems: list[Problem] = []
        self.prompt_tokens: list[int] = []
        self.seconds = 0.0
        began = time.perf_counter()
        source = ProblemSource(spec_of_split(spec, Split.TRAIN), seed=Split.TRAIN.base_seed(seed))
        while len(self.problems) < NUM_SAMPLED:
            started = time.perf_counter()
            self.problems.append(source[len(self.problems)])
            self.seconds += time.perf_counter() - started
            self.prompt_tokens.append(len(tokens.prompt(builder.messages(self.problems[-1]), spec.name)))
            if time.perf_counter() - began > budget_s:
                break

    def longest_oracle(self, tokens: TokenCounter) -> int | None:
        """Return the number of tokens of the longest correct answer with its tags; None if no problem names one."""
        answers = [answer for problem in self.problems if (answer := problem.entry.get("answer")) is not None]
        longest = sorted((f"<answer>{answer}</answer>" for answer in answers), key=len)[-5:]
        return max((len(tokens.encode(text)) for text in longest), default=None)


def _score_seconds(problems: Sequence[Problem], config: RunConfig) -> dict[str, float]:
    """Return the mean seconds to score a correct answer by dataset, without datasets that name none."""
    answered = [problem for problem in problems if problem.entry.get("answer") is not None]
    pairs = [(str(problem.entry["answer"]), problem.entry) for problem in answered]
    seconds: dict[str, list[float]] = {}
    with Scorer(**config.reward.scorer) as scorer:
        for problem, score in zip(answered, scorer.score_many(pairs), strict=True):
            seconds.setdefault(problem.dataset, []).append(score.seconds)
    return {name: statistics.fmean(values) for name, values in seconds.items()}


def seconds_per_step(samples: Sequence[DatasetSample], config: RunConfig) -> tuple[float, float]:
    """Return the seconds per step to generate problems in the trainer and to score answers in the scoring processes."""
    batch, group = config.data.train_batch_size, config.rollout.n
    generate = batch * sum(sample.share * sample.generate_seconds for sample in samples)
    score = batch * group * sum(sample.share * (sample.score_seconds or 0.0) for sample in samples)
    return generate, score / parse_scorer(config.reward.scorer)["num_workers"]


def token_counter(model: TrainingModel, config: RunConfig) -> TokenCounter:
    """Return the model's tokenizer, or the embedded model's if the model is not on this machine."""
    from rgtrain.models.embedded_model import EMBEDDED_MODEL, embedded_tokenizer
    from rgtrain.paths import PROJECT_ROOT

    embedded = PROJECT_ROOT / "models" / EMBEDDED_MODEL
    if model.folder is not None:
        name, renderer = model.name, prompt_renderer(model, config)
    else:
        name = f"{EMBEDDED_MODEL}, because {model.name} is not on this machine"
        tokenizer = load_tokenizer(embedded, trust=False) if embedded.is_dir() else embedded_tokenizer()
        # The embedded model's template does not take the run's arguments.
        renderer = PromptRenderer(tokenizer, model=EMBEDDED_MODEL, role_key="data.prompt.role")
    return TokenCounter(
        name=name,
        encode=lambda text: renderer.tokenizer.encode(text, add_special_tokens=False),
        prompt=lambda messages, dataset: renderer.token_ids(messages, dataset=dataset),
    )
