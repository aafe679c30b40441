"""The problems, curriculum and reward of an environment as a taskset of the `verifiers` package, which prime-rl uses.

The taskset's id is `rgtrain-verifiers`, after the package that exports it. Its configuration has the arguments of
`open_environment`.

One process makes tasks, and perhaps others score them: prime-rl's orchestrator and its environment servers. A task
carries its problem with the entry, so a scoring process makes no problems. With a curriculum, scoring processes append
their results to a file, from which the process that makes tasks reads them.
"""

import asyncio
import atexit
import fcntl
import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import httpx
import verifiers.v1 as vf
from pydantic import Field, model_validator

from rgtrain.curriculum.weights import AdaptiveWeights
from rgtrain.environments.message_text import message_text
from rgtrain.environments.task_environment import (
    TRAIN,
    EnvironmentProblem,
    GroupReport,
    SubmittedCompletion,
    TaskEnvironment,
    open_environment,
)
from rgtrain.errors import ConfigError

TASKSET_ID = "rgtrain-verifiers"


class ReasoningGymData(vf.TaskData):
    """A problem as data of a task."""

    problem: dict[str, Any]
    """The fields of an `EnvironmentProblem`."""
    split: str
    """train or validation."""


class ReasoningGymTaskConfig(vf.TaskConfig):
    """Settings for scoring, which follow from those of the taskset."""

    environment: dict[str, Any] = Field(default_factory=dict)
    """The arguments of `open_environment`."""
    reports: Path | None = None
    """The file to append results to, for the curriculum."""


class ReasoningGymState(vf.State):
    """The score of a rollout, which its metrics and its reward share."""

    reward: float | None = None


class ReasoningGymTask(vf.Task[ReasoningGymData, ReasoningGymState, ReasoningGymTaskConfig]):
    """A problem with its reward. It ends with the first reply."""

    @property
    def key(self) -> str:
        """The id of the problem, which does not depend on the order of tasks."""
        return str(self.data.problem["id"])

    @vf.stop
    async def has_replied(self, trace: vf.Trace) -> bool:
        """Stop after the first reply."""
        return trace.num_turns >= 1

    @vf.metric
    async def scores(self, trace: vf.Trace) -> dict[str, float]:
        """Score the reply in the sandbox, and return the accuracy, each part of the reward and the other details."""
        settings = self.config.environment
        environment = _OPENED.get(_key(settings))
        if environment is None:
            environment = await asyncio.to_thread(_shared_environment, settings, is_to_score=True)
        problem = EnvironmentProblem(**self.data.problem | {"messages": tuple(self.data.problem["messages"])})
        last = trace.assistant_messages[-1] if trace.assistant_messages else None
        text = message_text(
            last and last.content, last and last.reasoning_content, thinking_begun=problem.thinking_begun
        )
        submitted = SubmittedCompletion(problem, text, _num_tokens(trace), _finish_reason(trace))
        [score] = await environment.score_async([submitted])
        trace.state.reward = score.reward
        if self.config.reports is not None and self.data.split == TRAIN:
            _append_report(self.config.reports, problem.id, accuracy=score.accuracy, reward=score.reward)
        return {"accuracy": score.accuracy, **score.details}

    @vf.reward
    async def reward(self, trace: vf.Trace) -> float:
        """Return the reward, which `scores` computed."""
        return trace.state.reward


class ReasoningGymConfig(vf.TasksetConfig):
    """The arguments of `open_environment`, and the choice of tasks."""

    config: str | None = None
    """The name of an experiment, such as quickstart, or the path of an experiment file."""
    overrides: list[str] = Field(default_factory=list)
    """Words of the training command, such as mixture=math."""
    mixture: dict[str, Any] | None = None
    """The datasets, as in {chain_sum = {weight = 1}}."""
    reward: dict[str, Any] | None = None
    """The parts of the reward, as in {accuracy = {weight = 1}}."""
    prompt: dict[str, Any] | None = None
    """The style of prompts, as in {system_prompt = "direct"}."""
    curriculum: dict[str, Any] | None = None
    """The curriculum, as in {datasets = {spell_backward = {}}}."""
    mixture_policy: dict[str, Any] | None = None
    """The policy of dataset weights, as in {name = "adaptive"}."""
    scorer: dict[str, Any] | None = None
    """Settings of the sandbox, as in {num_workers = 4}."""
    plugins: list[str] | None = None
    """Packages that register datasets, as in ["my_tasks"]."""
    seed: int | None = None
    """The seed of problems."""
    size: int | None = None
    """Number of training problems, after which they repeat."""
    validation_size: int | None = None
    """Number of validation problems."""
    held_out_files: list[str] | None = None
    """Evaluation files whose problems are never training problems."""
    hold_out_shipped: bool | None = None
    """Whether the problems of shipped evaluation files are never training problems either."""
    allow_unsound_verifiers: list[str] | None = None
    """Datasets to use although a constant answer earns much."""
    max_prompt_tokens: int | None = None
    """The longest prompt in tokens."""
    max_response_tokens: int | None = None
    """The longest reply in tokens, which some parts of the reward read."""
    model: str | None = None
    """The model whose tokenizer measures prompts, as after model= of the training command."""
    with_tokenizer: bool | None = None
    """Whether to measure prompts; by default if config or model is given."""

    split: Literal["train", "validation"] = "train"
    """Training problems, or the held-out validation problems to evaluate on."""
    num_tasks: int | None = None
    """Number of training tasks; by default they never end."""
    reports: Path | None = None
    """The file that takes results to the curriculum; it must be on a file system that all processes share."""
    group_size: int = 1
    """Number of rollouts of a task, which are reported to the curriculum together."""
    task: ReasoningGymTaskConfig = ReasoningGymTaskConfig()

    @model_validator(mode="after")
    def _pass_on_to_tasks(self) -> "ReasoningGymConfig":
        names = set(type(self).model_fields) - set(vf.TasksetConfig.model_fields)
        given = self.model_dump(include=names - {"split", "num_tasks", "reports", "group_size"}, exclude_none=True)
        self.task = self.task.model_copy(update={"environment": given, "reports": self.reports})
        return self


class ReasoningGymTaskset(vf.Taskset[ReasoningGymTask, ReasoningGymConfig]):
    """The problems of an environment as tasks: a list if their number is given, otherwise a stream.

    Raises:
        ConfigError: The configuration cannot be used, or a curriculum has no file for reports.
    """

    def __new__(cls, config: ReasoningGymConfig) -> "ReasoningGymTaskset":
        """Return a taskset that never ends if the tasks never do."""
        # prime-rl asks the class whether its tasks end.
        is_endless = config.split == TRAIN and config.num_tasks is None
        return super().__new__(_EndlessTaskset if is_endless else cls)

    def __getnewargs__(self) -> tuple[ReasoningGymConfig]:
        return (self.config,)

    def load(self) -> Iterator[ReasoningGymTask]:
        """Yield the tasks. Each training problem is made when it is asked for."""
        environment = _shared_environment(self.config.task.environment)
        if self.config.split != TRAIN:
            yield from (self._task(problem) for problem in environment.validation)
            return
        reports = self._reports(environment)
        num_made = 0
        while self.config.num_tasks is None or num_made < self.config.num_tasks:
            if reports is not None:
                reports.pass_on(environment)
            yield self._task(environment.take()[0])
            num_made += 1

    def _task(self, problem: EnvironmentProblem) -> ReasoningGymTask:
        fields = asdict(problem) | {"messages": [dict(message) for message in problem.messages]}
        messages = list(fields["messages"])
        system = messages.pop(0)["content"] if messages[0]["role"] in ("system", "developer") else None
        prompt = messages[0]["content"] if len(messages) == 1 else messages
        data = ReasoningGymData(prompt=prompt, system_prompt=system, problem=fields, split=self.config.split)
        return ReasoningGymTask(data, self.config.task)

    def _reports(self, environment: TaskEnvironment) -> "_Reports | None":
        if self.config.reports is not None:
            return _Reports(self.config.reports, group_size=self.config.group_size)
        curriculum = environment.curriculum
        if curriculum.policies or isinstance(curriculum.weights, AdaptiveWeights):
            raise ConfigError(
                "the curriculum needs results, but the taskset has no reports; set taskset.reports to a new file on a "
                "file system that all processes share, and taskset.group_size to the number of rollouts per task"
            )
        return None


class _EndlessTaskset(ReasoningGymTaskset):
    INFINITE = True


class SingleReplyHarnessConfig(vf.HarnessConfig):
    """The configuration of a harness without options."""


class SingleReplyHarness(vf.Harness[SingleReplyHarnessConfig]):
    """Asks the model once, in this process, with neither tools nor programs. It is the default of the taskset."""

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Send the task's messages to the model. The trace records the reply."""
        system, prompt = self.resolve_prompt(data)
        messages: list[Any] = [] if system is None else [{"role": "system", "content": system}]
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages += [message.model_dump(include={"role", "content"}) for message in prompt or ()]
        async with httpx.AsyncClient(timeout=None, trust_env=False) as client:
            reply = await client.post(
                f"{endpoint}/chat/completions",
                json={"model": ctx.model, "messages": messages},
                headers={"Authorization": f"Bearer {secret}"},
            )
        return vf.ProgramResult(0 if reply.is_success else 1, "", reply.text[:2000])


def load_environment(
    *, agent: Mapping[str, Any] | None = None, taskset: Mapping[str, Any] | None = None, **settings: Any
) -> vf.Env:
    """Load the taskset with an agent that asks the model once, in this process.

    Args:
        agent: Values of the agent's configuration, such as `{"model": NAME, "client": {...}}`.
        taskset: Values of `ReasoningGymConfig` that are no arguments of `open_environment`, such as
            `{"split": "validation"}`.
        settings: The arguments of `open_environment`, such as `mixture`.

    Returns:
        The environment. Its `taskset` yields tasks, and `run_episode` plays one.
    """
    return vf.load_environment(
        vf.resolve_env_config(
            {
                "taskset": {"id": TASKSET_ID, **settings, **(taskset or {})},
                "agent": {"runtime": {"type": "subprocess"}, **(agent or {})},
            }
        )
    )


_OPENED: dict[str, TaskEnvironment] = {}
_OPENING = threading.Lock()
# A process that only scores needs no problems.
_WITHOUT_PROBLEMS = {
    "size": 1,
    "validation_size": 1,
    "held_out_files": [],
    "hold_out_shipped": False,
    "with_tokenizer": False,
}


def _shared_environment(settings: Mapping[str, Any], *, is_to_score: bool = False) -> TaskEnvironment:
    """Return the environment of this process with these arguments of `open_environment`.

    An environment that is only to score is opened without making problems, unless there is a whole one.
    """
    with _OPENING:
        key = _key(settings)
        if is_to_score and key not in _OPENED:
            settings = {**settings, **_WITHOUT_PROBLEMS}
            key = _key(settings)
        if key not in _OPENED:
            _OPENED[key] = open_environment(**settings)
            atexit.register(_OPENED[key].close)
        return _OPENED[key]


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _num_tokens(trace: vf.Trace) -> int | None:
    """Return the number of tokens of the reply: those sampled, or else those that the endpoint counted."""
    sampled = sum(sum(node.mask) for node in trace.nodes if node.sampled)
    usage = trace.usage
    return sampled or (usage.completion_tokens if usage is not None else None)


def _finish_reason(trace: vf.Trace) -> str | None:
    return trace.calls[-1].finish_reason if trace.calls else None


def _append_report(path: Path, problem_id: str, *, accuracy: float, reward: float) -> None:
    line = json.dumps({"problem": problem_id, "accuracy": accuracy, "reward": reward}).encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        # Appending is atomic on a local disk, but not on a network file system.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(line)


class _Reports:
    """Reads the results that scoring processes append to a file, and passes on those of whole groups."""

    def __init__(self, path: Path, *, group_size: int):
        self._path = path
        self._group_size = group_size
        self._position = 0
        self._rest = b""
        self._results: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def pass_on(self, environment: TaskEnvironment) -> None:
        """Report all groups that were completed since the last call."""
        groups = []
        for line in self._new_lines():
            result = json.loads(line)
            results = self._results[result["problem"]]
            results.append((result["accuracy"], result["reward"]))
            if len(results) == self._group_size:
                accuracies, rewards = zip(*self._results.pop(result["problem"]), strict=True)
                groups.append(GroupReport(result["problem"], accuracies, rewards))
        if groups:
            environment.report(groups)

    def _new_lines(self) -> list[bytes]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            content = file.read()
        self._position += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        return lines
