"""A mixture with its held-out problems, curriculum, sandboxed scoring and reward, as an object for other trainers.

Problems, scores and rewards are those of training: this module calls the functions that training calls. It imports no
torch, verl, vLLM, Ray or transformers. Only an environment with a tokenizer imports transformers when it is opened.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from hydra.core.override_parser.types import Quote, QuotedString

from rgtrain.config.run_config import RunConfig
from rgtrain.curriculum.curriculum import GroupResult
from rgtrain.environments.environment_config import compose_experiment
from rgtrain.environments.problem_ids import ProblemId, UnknownProblem
from rgtrain.errors import ConfigError
from rgtrain.machine.environment import check_hash_seed
from rgtrain.preflight.checks import check_datasets
from rgtrain.preflight.first_problems import try_own_rewards
from rgtrain.preflight.prompt_checks import check_prompts, prompt_renderer
from rgtrain.preflight.training_model import find_model
from rgtrain.problems import GroupRewards, Scorer, dump_entry, load_entry, parse_mixture, parse_reward
from rgtrain.problems.answers import PROMPT_END_TOKENS, opens_thinking
from rgtrain.problems.group_rewards import CompletionReward, FinishedCompletion
from rgtrain.problems.mixture import Choice, Mixture, Problem
from rgtrain.problems.plugins import import_plugins
from rgtrain.problems.prompt_rendering import PromptRenderer
from rgtrain.problems.prompts import PromptBuilder, parse_prompt
from rgtrain.problems.scoring import FAILURES, check_confinement, parse_scorer
from rgtrain.problems.soundness import hash_dependent
from rgtrain.problems.validation_files import read_validation_datasets
from rgtrain.training.run_problems import splits_from_config

TRAIN, VALIDATION = "train", "validation"
# Problems that are kept so that scoring need not make them again.
_MAX_KEPT = 4096
# Reward parts that never read the number of tokens. All others get it.
_PARTS_WITHOUT_TOKENS = frozenset(
    {"accuracy", "solved", "format", "published_format", "published_length", "published_cosine"}
)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class EnvironmentProblem:
    """A problem of an environment.

    Attributes:
        id: The text from which `TaskEnvironment.find` makes the problem again.
        dataset: The name of its dataset.
        level: Its level in the dataset's curriculum, or None.
        messages: The chat messages, each with `role` and `content`. The last one is the question.
        question: The question without the prompt around it.
        entry: The Reasoning Gym entry as text of `dump_entry`. It has the answer, so do not show it to a model.
        thinking_begun: Whether the chat template of the environment's model opens a think block after the messages.
    """

    id: str
    dataset: str
    level: int | None
    messages: tuple[dict[str, str], ...]
    question: str
    entry: str
    thinking_begun: bool = False


class SubmittedCompletion(NamedTuple):
    """A completion to score.

    Attributes:
        problem: The problem or its id.
        text: The completion, without special tokens.
        num_tokens: Its length in tokens. A reward with a part that may read it needs it.
        finish_reason: The reason for its end, such as "stop" or "length", or None.
        thinking_begun: Whether the prompt ended with an opening think tag; by default as the problem says.
    """

    problem: EnvironmentProblem | str
    text: str
    num_tokens: int | None = None
    finish_reason: str | None = None
    thinking_begun: bool | None = None


@dataclass(frozen=True)
class CompletionScore:
    """The score of a completion.

    Attributes:
        reward: The weighted sum of the parts.
        parts: The unweighted value of each part of the reward by its name.
        accuracy: The dataset's score of the answer, in [0, 1].
        answer: The extracted answer, or None if the completion has none.
        error: A value of `rgtrain.problems.scoring.FAILURES` if the answer could not be judged, otherwise None.
        details: All numbers that training records of a completion, by the names that it uses.
    """

    reward: float
    parts: Mapping[str, float]
    accuracy: float
    answer: str | None
    error: str | None
    details: Mapping[str, float]


@dataclass(frozen=True)
class GroupReport:
    """The results of all completions of one problem, for the curriculum.

    Attributes:
        problem: The problem or its id.
        accuracies: The accuracy of each completion, in [0, 1].
        rewards: The reward of each completion.
    """

    problem: EnvironmentProblem | str
    accuracies: Sequence[float]
    rewards: Sequence[float]


def open_environment(
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    mixture: Mapping[str, Any] | None = None,
    reward: Mapping[str, Any] | None = None,
    prompt: Mapping[str, Any] | None = None,
    curriculum: Mapping[str, Any] | None = None,
    mixture_policy: Mapping[str, Any] | None = None,
    scorer: Mapping[str, Any] | None = None,
    plugins: Sequence[str] | None = None,
    seed: int | None = None,
    size: int | None = None,
    validation_size: int | None = None,
    held_out_files: Sequence[str | Path] | None = None,
    hold_out_shipped: bool | None = None,
    allow_unsound_verifiers: Sequence[str] | None = None,
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
    model: str | Path | None = None,
    with_tokenizer: bool | None = None,
) -> "TaskEnvironment":
    """Open an environment, described as training is described.

    The configuration is that of an experiment, or the defaults of all experiments (configs/base.yaml). Each further
    argument replaces one of its values.

    Args:
        config: The name of an experiment of configs/, such as "quickstart", or the path of an experiment file.
        overrides: Words of the training command, such as "mixture=math".
        mixture: `data.mixture`, as in `{"chain_sum": {"weight": 1, "config": {"max_terms": 3}}}`.
        reward: `reward.parts`, as in `{"accuracy": {"weight": 1}}`.
        prompt: Values of `data.prompt`, as in `{"system_prompt": "direct"}`.
        curriculum: Values of `data.curriculum`, as in `{"datasets": {"spell_backward": {}}}`.
        mixture_policy: `data.mixture_policy`, as in `{"name": "adaptive"}`.
        scorer: Values of `reward.scorer`, as in `{"num_workers": 4}`.
        plugins: Packages that register datasets, as in `["my_tasks"]`.
        seed: The seed of problems.
        size: Number of training problems; after the last one, they repeat.
        validation_size: Number of validation problems, which are none of the training problems.
        held_out_files: Evaluation files whose problems are never training problems.
        hold_out_shipped: Whether the problems of all shipped evaluation files are never training problems either.
        allow_unsound_verifiers: Datasets to use although a constant answer earns much.
        max_prompt_tokens: The longest prompt in tokens; longer ones are replaced if the environment has a tokenizer.
        max_response_tokens: The longest completion in tokens, which some parts of the reward read.
        model: A model as after `model=` of the training command. Its tokenizer and chat template measure prompts.
        with_tokenizer: Whether to measure prompts, as training does; by default if `config` or `model` is given.

    Returns:
        The environment. Close it, or use it as a context manager.

    Raises:
        ConfigError: The configuration cannot be used.
    """
    replaced = {
        "data.mixture": mixture,
        "data.mixture_policy": mixture_policy,
        "reward.parts": reward,
        "plugins": plugins,
        "seed": seed,
        "data.train_size": size,
        "data.validation_size": validation_size,
        "data.held_out_files": held_out_files,
        "data.hold_out_shipped": hold_out_shipped,
        "data.allow_unsound_verifiers": allow_unsound_verifiers,
        "data.max_prompt_length": max_prompt_tokens,
        "data.max_response_length": max_response_tokens,
    }
    if model is not None:
        # As a choice, because the experiment has further values for its own model. The defaults choose none.
        word = QuotedString(str(model), Quote.single).with_quotes()
        overrides = [*overrides, f"{'+' if config is None else ''}model={word}"]
    merged = {"data.prompt": prompt, "data.curriculum": curriculum, "reward.scorer": scorer}
    if with_tokenizer is None:
        with_tokenizer = config is not None or model is not None
    run = compose_experiment(
        config,
        overrides,
        replace={key: value for key, value in replaced.items() if value is not None},
        merge={key: value for key, value in merged.items() if value is not None},
        with_template=with_tokenizer,
    )
    return TaskEnvironment(run, with_tokenizer=with_tokenizer)


class TaskEnvironment:
    """Problems of a run's mixture and curriculum, and the run's scoring, for another trainer.

    All methods may be called from any thread. Problem i is the run's problem i. With a curriculum, that holds as long
    as the reports are those of the run's steps.

    Args:
        config: The run's configuration.
        with_tokenizer: Whether to replace problems whose prompts are too long for the run's model. Training does.

    Raises:
        ConfigError: A dataset has too few problems or pays for a constant answer, the reward cannot be used, the model
            has no usable tokenizer, or answers cannot be judged safely on this machine.
    """

    def __init__(self, config: RunConfig, *, with_tokenizer: bool):
        data = config.data
        self.config = config
        notices = import_plugins(config.plugins)
        self.warnings = [*notices, *check_datasets(config)]
        self.reward = parse_reward(config.reward.parts)
        self.needs_num_tokens = not {part.name for part in self.reward} <= _PARTS_WITHOUT_TOKENS
        drawn = [spec for spec in parse_mixture(data.mixture) if spec.weight > 0]
        validated = [dataset.spec for dataset in read_validation_datasets(data.validation_files)]
        check_hash_seed(hash_dependent([spec.generator for spec in [*drawn, *validated]]))
        self._renderer = _prompt_renderer(config) if with_tokenizer else None
        if self._renderer is not None:
            self.warnings += check_prompts(config)
        style = parse_prompt(data.prompt)
        # An environment has no steps, so it drops worked examples that training drops after a step. Training chooses
        # problems by the length of prompts that still have them.
        self._prompts, self._longest_prompts = PromptBuilder(style.final), PromptBuilder(style)
        self._lock = threading.RLock()
        self.splits, self.curriculum = splits_from_config(
            data,
            style=style,
            fits=self._fits,
            num_validation_tokens=partial(self._num_prompt_tokens, self._renderer) if self._renderer else None,
        )
        self._training: Mixture = self.splits.training.mixture
        self._choices: dict[tuple[str, int | None], Choice] = {
            (spec.name, None): Choice(spec) for spec in self._training.specs
        }
        for name, levels in self.curriculum.level_specs().items():
            self._choices |= {(name, level): Choice(spec, level) for level, spec in enumerate(levels)}
        self._kept: OrderedDict[str, EnvironmentProblem] = OrderedDict()
        self._next = 0
        check_confinement(parse_scorer(config.reward.scorer))
        self._scoring = ExitStack()
        self._scoring_lock = threading.Lock()
        self._rewards: GroupRewards | None = None
        self._is_closed = False
        self._loop = _LoopThread()

    def __len__(self) -> int:
        return len(self.splits.training)

    def __enter__(self) -> "TaskEnvironment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the scoring processes. Scores that are still waited for raise an error."""
        with self._scoring_lock:
            self._is_closed = True
            self._scoring.close()

    def start_scoring(self) -> None:
        """Start the scoring processes, which takes seconds. Otherwise, the first score starts them.

        Raises:
            ConfigError: An own function of the reward fails in a trial.
            RuntimeError: The environment is closed, or the machine cannot start the processes.
        """
        with self._scoring_lock:
            if self._is_closed:
                raise RuntimeError("the environment is closed; open another one")
            if self._rewards is None:
                settings = self.config.reward
                with ExitStack() as started:
                    scorer = started.enter_context(Scorer(**settings.scorer))
                    started.enter_context(self._loop)
                    rewards = GroupRewards(
                        settings.parts, scorer=scorer, max_tokens=self.config.data.max_response_length
                    )
                    if any(part.own is not None for part in self.reward):
                        trial = try_own_rewards(rewards, self.config.data, prompts=self._prompts)
                        self._loop.start(trial).result()
                    self._rewards, self._scoring = rewards, started.pop_all()

    def problem(self, index: int) -> EnvironmentProblem:
        """Make training problem `index`. With a curriculum, it also depends on the reports so far.

        Args:
            index: From 0 to the number of training problems.

        Returns:
            The problem.

        Raises:
            IndexError: There is no such problem.
            ConfigError: Its dataset has no usable problem left.
        """
        with self._lock:
            return self._keep(self.splits.training[index].problem, TRAIN)

    def take(self, num_problems: int = 1) -> list[EnvironmentProblem]:
        """Return the next training problems. After the last one, they begin again, as in training."""
        with self._lock:
            problems = []
            for _ in range(num_problems):
                problems.append(self.problem(self._next))
                self._next = (self._next + 1) % len(self)
            return problems

    @cached_property
    def validation(self) -> Sequence[EnvironmentProblem]:
        """The run's validation problems, which no training problem repeats."""
        with self._lock:
            return [self._present(problem, VALIDATION) for problem in self.splits.validation]

    def find(self, problem_id: str) -> EnvironmentProblem:
        """Return the problem of an id, which another environment with the same configuration may have given out.

        Args:
            problem_id: `EnvironmentProblem.id`, which may be untrusted text.

        Returns:
            The problem.

        Raises:
            UnknownProblem: The id names no problem of this environment.
        """
        with self._lock:
            if problem_id in self._kept:
                self._kept.move_to_end(problem_id)
                return self._kept[problem_id]
            parsed = ProblemId.parse(problem_id)
            if parsed.split == VALIDATION and problem_id in self._validation_by_id:
                return self._validation_by_id[problem_id]
            choice = self._choices.get((parsed.dataset, parsed.level))
            if parsed.split == TRAIN and parsed.seed == self.config.data.seed and choice is not None:
                problem = self._training.make(choice, parsed.position)
                if problem.digest == parsed.digest and problem not in self.splits.held_out:
                    return self._keep(problem, TRAIN)
            raise UnknownProblem(
                f"{problem_id!r} names no problem of this environment; use the seed, mixture and version of the "
                "datasets that the id was made with"
            )

    def score(
        self, completions: Iterable[SubmittedCompletion | tuple[Any, ...]], *, timeout_s: float | None = None
    ) -> list[CompletionScore]:
        """Score completions as training does. Completions of one problem are scored as a group.

        Args:
            completions: Instances of SubmittedCompletion, or tuples with its fields.
            timeout_s: Seconds to wait; by default, as long as it takes. Judging one answer always has a limit.

        Returns:
            The scores in the same order.

        Raises:
            ConfigError: A number of tokens is missing or negative.
            UnknownProblem: An id names no problem of this environment.
            TimeoutError: The scores were not ready in time.
        """
        waiting = self._loop.start(self._score(self._with_problems(completions)))
        try:
            return waiting.result(timeout_s)
        finally:
            waiting.cancel()

    async def score_async(self, completions: Iterable[SubmittedCompletion | tuple[Any, ...]]) -> list[CompletionScore]:
        """Score completions without blocking the running event loop. See `score`."""
        # Problems of old ids are made again, which takes time.
        found = await asyncio.to_thread(self._with_problems, completions)
        return await asyncio.wrap_future(self._loop.start(self._score(found)))

    def report(self, groups: Iterable[GroupReport]) -> dict[str, float]:
        """Report the groups of one training step, by which the curriculum chooses later problems.

        Args:
            groups: The results of whole groups.

        Returns:
            The metrics of the curriculum.

        Raises:
            ConfigError: A group has no results, other numbers of accuracies and rewards, or unusable values, or it is
                of a validation problem.
            UnknownProblem: An id names no problem of this environment.
        """
        results = [self._result(group) for group in groups]
        with self._lock:
            self.curriculum.observe(results)
            return self.curriculum.metrics()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later problems depend on, as JSON-compatible values."""
        with self._lock:
            return {
                "seed": self.config.data.seed,
                "datasets": sorted(spec.name for spec in self._training.specs),
                "next": self._next,
                "curriculum": self.curriculum.state_dict(),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned.

        Args:
            state: The saved state.

        Raises:
            ConfigError: The state is damaged or belongs to another environment.
        """
        with self._lock:
            own = self.state_dict()
            try:
                other = next((key for key in ("seed", "datasets") if state[key] != own[key]), None)
                is_in_range = type(state["next"]) is int and 0 <= state["next"] < len(self)
                if other is None and is_in_range:
                    self.curriculum.load_state_dict(state["curriculum"])
                    self._next = state["next"]
            except ConfigError:
                raise
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"the saved state is damaged ({error!r:.200}); restore it, or use another state file"
                ) from error
            if other is not None:
                raise ConfigError(
                    f"the saved state belongs to another environment, whose {other} is {state[other]!r:.200} instead "
                    f"of {own[other]!r:.200}; use another state file"
                )
            if not is_in_range:
                raise ConfigError(
                    f"the saved state has next problem {state['next']!r:.200}, but this environment has {len(self)}; "
                    "use another state file"
                )

    def _with_problems(
        self, completions: Iterable[SubmittedCompletion | tuple[Any, ...]]
    ) -> list[tuple[EnvironmentProblem, SubmittedCompletion]]:
        self.start_scoring()
        submitted = [SubmittedCompletion(*one) for one in completions]
        return [(self._resolved(one.problem), one) for one in submitted]

    async def _score(
        self, completions: Sequence[tuple[EnvironmentProblem, SubmittedCompletion]]
    ) -> list[CompletionScore]:
        rewards_of_run = self._rewards
        if rewards_of_run is None:
            raise RuntimeError("the scoring processes are not started")
        groups: dict[tuple[str, bool], list[int]] = {}
        for position, (problem, one) in enumerate(completions):
            begun = problem.thinking_begun if one.thinking_begun is None else one.thinking_begun
            groups.setdefault((problem.id, begun), []).append(position)
        scores: dict[int, CompletionScore] = {}

        async def score_group(positions: Sequence[int], thinking_begun: bool) -> None:
            problem = completions[positions[0]][0]
            finished = [
                FinishedCompletion(one.text, self._num_tokens(one.num_tokens), one.finish_reason)
                for one in (completions[position][1] for position in positions)
            ]
            # The only place that computes rewards, with the function that training calls.
            rewards = await rewards_of_run.compute(
                finished,
                load_entry(problem.entry),
                dataset=problem.dataset,
                messages=problem.messages,
                level=problem.level,
                thinking_begun=thinking_begun,
            )
            for position, reward in zip(positions, rewards, strict=True):
                scores[position] = _completion_score(reward)

        await asyncio.gather(*(score_group(positions, begun) for (_, begun), positions in groups.items()))
        return [scores[position] for position in range(len(completions))]

    def _num_tokens(self, given: int | None) -> int:
        if given is None and self.needs_num_tokens:
            names = ", ".join(part.name for part in self.reward if part.name not in _PARTS_WITHOUT_TOKENS)
            raise ConfigError(f"the reward {names} depends on the number of tokens; give num_tokens of each completion")
        if given is not None and given < 0:
            raise ConfigError(f"num_tokens is {given}; give the number of tokens of the completion, from 0 up")
        return given or 0

    def _resolved(self, problem: EnvironmentProblem | str) -> EnvironmentProblem:
        return self.find(problem) if isinstance(problem, str) else problem

    def _result(self, group: GroupReport) -> GroupResult:
        problem = self._resolved(group.problem)
        if ProblemId.parse(problem.id).split != TRAIN:
            raise ConfigError(
                f"the problem {problem.id!r} is a validation problem, but the curriculum follows training problems; "
                "report only their groups"
            )
        accuracies, rewards = list(group.accuracies), list(group.rewards)
        if not accuracies or len(accuracies) != len(rewards):
            raise ConfigError(
                f"a group has {len(accuracies)} accuracies and {len(rewards)} rewards; give one of each per completion"
            )
        if not all(0 <= accuracy <= 1 for accuracy in accuracies):
            raise ConfigError(f"a group has accuracies {accuracies}; give numbers from 0 to 1")
        if not all(abs(reward) < float("inf") for reward in rewards):
            raise ConfigError(f"a group has rewards {rewards}; give finite numbers")
        return GroupResult(problem.dataset, problem.level, accuracies, rewards)

    @cached_property
    def _validation_by_id(self) -> dict[str, EnvironmentProblem]:
        return {problem.id: problem for problem in self.validation}

    def _fits(self, problem: Problem) -> bool:
        if self._renderer is None:
            return True
        token_ids = self._renderer.token_ids(self._longest_prompts.messages(problem), dataset=problem.dataset)
        return len(token_ids) <= self.config.data.max_prompt_length

    def _num_prompt_tokens(self, renderer: PromptRenderer, problem: Problem) -> int:
        return len(renderer.token_ids(self._prompts.messages(problem), dataset=problem.dataset))

    def _keep(self, problem: Problem, split: str) -> EnvironmentProblem:
        presented = self._present(problem, split)
        self._kept[presented.id] = presented
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return presented

    def _present(self, problem: Problem, split: str) -> EnvironmentProblem:
        messages = self._prompts.messages(problem)
        begun = False
        if self._renderer is not None:
            end = self._renderer.token_ids(messages, dataset=problem.dataset)[-PROMPT_END_TOKENS:]
            begun = opens_thinking(self._renderer.tokenizer.decode(end))
        return EnvironmentProblem(
            id=str(ProblemId.of(problem, split=split, seed=self.config.data.seed)),
            dataset=problem.dataset,
            level=problem.level,
            messages=tuple(messages),
            question=problem.question,
            entry=dump_entry(dict(problem.entry)),
            thinking_begun=begun,
        )


def _completion_score(computed: CompletionReward) -> CompletionScore:
    prefix, details = "reward_", computed.details
    return CompletionScore(
        reward=computed.reward,
        parts={name.removeprefix(prefix): value for name, value in details.items() if name.startswith(prefix)},
        accuracy=details["acc"],
        answer=computed.answer,
        error=next((failure for failure in FAILURES if details.get(f"num_{failure.replace(' ', '_')}")), None),
        details=details,
    )


def _prompt_renderer(config: RunConfig) -> PromptRenderer:
    model = find_model(config)
    if model.folder is None:
        raise ConfigError(
            f"the model {model.name} is not on this machine, so its prompts cannot be measured as in training; "
            "download it, name another model, or open the environment without a tokenizer, which uses prompts of any "
            "length"
        )
    return prompt_renderer(model, config)


class _LoopThread:
    """A thread with an event loop, so that rewards are computed on one loop whichever thread or loop asks for them."""

    def __enter__(self) -> "_LoopThread":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="environment")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, coroutine: Coroutine[Any, Any, _Result]) -> "Future[_Result]":
        """Start a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
