"""Single-turn environments of the `verifiers` package as a source of problems, as in `my_env: {verifiers: PACKAGE}`.

The environment's tasks are the problems, with the messages that the environment writes. Its rewards are the scorer.
They judge the whole completion, because an environment has its own rules for the form of an answer.

The package is as trusted as a plugin: it makes problems in this process. Text of a model is not trusted. So rewards run
in the scoring sandbox, in which a function can compute but cannot open files, start programs or use the network.
"""

import asyncio
import contextlib
import functools
import importlib
import inspect
import itertools
import json
import math
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from rgtrain.errors import ConfigError
from rgtrain.problems.question_file import Question, QuestionFile, read_shares, select_rows
from rgtrain.problems.question_sources import JUDGED_WHOLE, OWN_MESSAGES, SOURCES

INTERFACE = "verifiers.v1"
# Of a taskset that never ends, the first tasks are used.
_MAX_TASKS, _NUM_ENDLESS_TASKS = 1_000_000, 5_000
# The sample is part of every entry.
_MAX_SAMPLE_CHARS = 4_000
# Replies in forms that rewards parse with libraries, which import modules as they need them.
_WARM_UP_VALUES = (
    *("0.5", r"50\%", "(1, 2]", "x^2 = 1", r"\frac{1}{\sqrt{2}}", r"\{1, 2\}", r"\int_0^1 x dx", r"\log(e^2)"),
    r"\begin{pmatrix}1\end{pmatrix}",
)
_WARM_UP_REPLIES = ("warm-up", "<answer>$1$</answer>", *(rf"\boxed{{{value}}}" for value in _WARM_UP_VALUES))
_ROLES = ("system", "user", "assistant")
_Result = TypeVar("_Result")


class VerifiersTasks(QuestionFile):
    """The tasks of a `verifiers` environment, which are held out and put in order as the rows of a file are.

    Args:
        params: The parameters that `read` returned, or those of `scorer`.
        seed: The seed of the order.

    Raises:
        ConfigError: The package is missing, has several turns or tools, or its rewards need more than the completion.
    """

    generator = "verifiers"
    key = "verifiers"
    options = ("args", "held_out")
    evaluation_options = ("rows",)

    def __init__(self, params: Mapping[str, Any], *, seed: int) -> None:
        self._params = params
        self._seed = seed
        self._pass: tuple[int, Sequence[int]] = (-1, ())
        self._tasks = _load(params["package"], json.dumps(params["args"], sort_keys=True))
        # A process that only scores does not load the tasks.
        is_scorer = "rows" not in params
        self.rows = () if is_scorer else select_rows(self._tasks.rows, params["rows"], share=params["held_out"])

    @classmethod
    def read(cls, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Read the keys `verifiers`, `args`, `held_out` and `rows` of an entry, and load the environment.

        Args:
            name: The name of the entry.
            entry: Its values.

        Returns:
            The parameters.

        Raises:
            ConfigError: A value cannot be used, or the environment is missing or refused.
        """
        where = f"dataset {name!r}"
        package, args = entry[cls.key], entry.get("args") or {}
        if not isinstance(package, str) or not package.strip():
            raise ConfigError(f"{where} has verifiers {package!r}; give the name of an installed environment")
        if not isinstance(args, Mapping):
            raise ConfigError(f"{where} has args {args!r}; write a mapping of the environment's arguments")
        shares = read_shares(entry, where=where)
        try:
            _load(package, json.dumps(dict(args), sort_keys=True))
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"{where}: {error}") from error
        return {"package": package, "args": dict(args), **shares}

    def scorer(self) -> tuple[str, Mapping[str, Any]]:
        """Return this class as the scorer, with a task to warm it up with."""
        params = {"package": self._params["package"], "args": self._params["args"]}
        return self.generator, {**params, "sample": self._tasks.sample}

    def score_or_zero(self, reply: str, entry: Mapping[str, Any]) -> float:
        """Return the score of a trusted reply in this process, or 0 if a reward fails."""
        try:
            return self._tasks.score(reply, entry)
        except Exception:  # Rewards of other packages may raise any type.
            return 0.0

    @property
    def score_answer(self) -> Callable[[str, Mapping[str, Any]], float]:
        """The function that scores a whole completion with the environment's rewards, in [0, 1].

        The score is the weighted sum of the rewards, divided by the sum of the positive weights and limited to [0, 1].
        """
        _computing_loop()
        # Libraries such as math-verify set a timer for each answer, which the kernel refuses to a confined process. The
        # scorer has its own limit on time.
        signal.alarm = lambda seconds: 0
        signal.setitimer = lambda which, seconds, interval=0.0: (0.0, 0.0)
        if self._params.get("sample"):
            self._tasks.warm_up(self._params["sample"])
        return self._tasks.score


SOURCES[VerifiersTasks.generator] = VerifiersTasks


def find_interface() -> Any:
    """Return the module of the package's interface, or None if the package or a package that it needs is missing."""
    try:
        return importlib.import_module(INTERFACE)
    except ImportError:
        return None


@functools.cache
def _load(package: str, args: str) -> "_Taskset":
    vf = find_interface()
    if vf is None:
        raise ConfigError(
            f"the environment {package!r} needs the package verifiers; install requirements-verifiers.txt as it says"
        )
    return _Taskset(vf, package, json.loads(args))


class _Taskset:
    """A single-turn taskset: its tasks as entries, and the score of a completion."""

    def __init__(self, vf: Any, package: str, args: Mapping[str, Any]):
        self._vf = vf
        self._package = package
        self._refuse_older_interface()
        with self._errors_as_config_errors("cannot be loaded"):
            config = vf.taskset_config_type(package).model_validate({**args, "id": package})
            self._taskset = vf.load_taskset(config)
        self._task_type = type(self._taskset).task_type()
        self._data_type = self._task_type.data_type()
        self._task_config = config.task
        fields = vf.TaskData.model_fields.items()
        self._usual_data = {name: field.get_default(call_default_factory=True) for name, field in fields}
        if reason := self._refusal():
            raise ConfigError(
                f"the environment {package!r} {reason}; only environments of one prompt and one reply, whose rewards "
                "read nothing but the reply, can be a source of problems"
            )

    def _refuse_older_interface(self) -> None:
        try:
            module = self._vf.import_taskset(self._package)
        except Exception:  # Loading the taskset reports the error.
            return
        if hasattr(module, "load_environment") and not hasattr(module, "__all__"):
            raise ConfigError(
                f"the environment {self._package!r} has load_environment, which verifiers had before version 0.4; "
                "use a version of the environment that exports a Taskset"
            )

    def _errors_as_config_errors(self, what: str) -> "_ErrorsAsConfigErrors":
        return _ErrorsAsConfigErrors(f"the environment {self._package!r} {what}")

    def _refusal(self) -> str | None:
        """Return the reason if tasks are not single-turn, or their rewards need more than the completion."""
        vf, task = self._vf, self._task_type
        if vf.environment_class(self._package) is not vf.SingleAgentEnv:
            return "has its own environment class, for several agents or turns"
        if vf.default_harness_id(self._package) == self._package:
            return "has its own harness, which may take several turns"
        if type(self._taskset).toolsets(self._taskset.config) or task.toolsets(self._task_config):
            return "has tools"
        if getattr(task, "NEEDS_CONTAINER", False):
            return "needs a container"
        if self._task_config.judges:
            return "asks judge models"
        for hook in ("setup", "finalize", "stage_verifier"):
            if getattr(task, hook) is not getattr(vf.Task, hook):
                return f"prepares a runtime in {task.__name__}.{hook}"
        for name, function in inspect.getmembers(task, callable):
            if hasattr(function, "intercept"):
                return f"rewrites requests in {task.__name__}.{name}"
            parameter = inspect.signature(function).parameters.get("runtime") if hasattr(function, "reward") else None
            if parameter is not None and parameter.default is inspect.Parameter.empty:
                return f"runs programs in its reward {name}"
        return None

    @functools.cached_property
    def rows(self) -> Sequence[Question]:
        """All tasks, without those whose prompt an earlier one has."""
        with self._errors_as_config_errors("cannot load its tasks"):
            tasks = list(itertools.islice(self._taskset, _MAX_TASKS if self._taskset.bounded else _NUM_ENDLESS_TASKS))
        rows = {row.question: row for row in map(self._row, reversed([task.data for task in tasks]))}
        if len(rows) < 2:
            raise ConfigError(f"the environment {self._package!r} has {len(rows)} tasks; give it other args")
        return list(reversed(rows.values()))

    def _row(self, data: Any) -> Question:
        messages = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
        if isinstance(data.prompt, str):
            messages.append({"role": "user", "content": data.prompt})
        else:
            messages += [message.model_dump(include={"role", "content"}) for message in data.prompt or ()]
        shown = [message["content"] for message in messages if message["role"] != "system"]
        if not shown or messages[-1]["role"] != "user":
            raise ConfigError(
                f"task {data.idx} of the environment {self._package!r} has no user message at its end, so the "
                "environment takes several turns; choose another environment"
            )
        if any(message["role"] not in _ROLES or not isinstance(message["content"], str) for message in messages):
            raise ConfigError(
                f"task {data.idx} of the environment {self._package!r} has tools or images in its prompt; choose an "
                "environment of texts"
            )
        answer = getattr(data, "answer", None)
        usual = {key for key, value in self._usual_data.items() if getattr(data, key) == value}
        task = data.model_dump_json(exclude=usual)
        return Question(
            "\n\n".join(shown),
            "" if answer is None else str(answer),
            {OWN_MESSAGES: messages, JUDGED_WHOLE: True, "task": task},
        )

    @functools.cached_property
    def sample(self) -> str | None:
        """The data of the shortest task, or None if all are long."""
        shortest = min((str(row.metadata["task"]) for row in self.rows), key=len)
        return shortest if len(shortest) <= _MAX_SAMPLE_CHARS else None

    def warm_up(self, sample: str) -> None:
        """Score a reply to a task, so that modules that rewards import when called are imported before confinement."""
        row = self._row(self._data_type.model_validate_json(sample))
        for reply in _WARM_UP_REPLIES:
            # The reward may refuse this reply, and accept others.
            with contextlib.suppress(Exception):
                self.score(reply, {"metadata": row.metadata})

    def score(self, completion: str, entry: Mapping[str, Any]) -> float:
        """Score a completion with all rewards of the task."""
        data = self._data_type.model_validate_json(entry["metadata"]["task"])
        task = self._task_type(data, self._task_config)
        trace = self._trace(data, entry["metadata"][OWN_MESSAGES], completion)
        run_without_io(task.score(trace, None))
        rewards = [reward for reward in trace.rewards.values() if reward is not None]
        highest = sum(reward.weight for reward in rewards if reward.weight > 0)
        if not highest:
            raise ValueError(f"the environment {self._package!r} has no reward with a weight above 0")
        total = sum(reward.value for reward in rewards)
        if not math.isfinite(total):
            raise ValueError(f"a reward of the environment {self._package!r} is {total}")
        return min(1.0, max(0.0, total / highest))

    def _trace(self, data: Any, messages: Sequence[Mapping[str, str]], completion: str) -> Any:
        """Return the record of a finished rollout with one reply."""
        vf = self._vf
        kinds = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
        nodes = [vf.MessageNode(message=kinds[one["role"]](content=one["content"])) for one in messages]
        nodes.append(vf.MessageNode(message=vf.AssistantMessage(content=completion), sampled=True))
        for number, node in enumerate(nodes[1:]):
            node.parent = number
        return vf.Trace(
            # A build without a look-up of the installed commit, which reads files.
            verifiers=vf.VersionInfo(version=""),
            task=vf.TraceTask(type=self._task_type.__name__, data=data),
            agent=vf.AgentInfo(config=vf.AgentConfig()),
            nodes=nodes,
            calls=[vf.ModelCall(node=len(nodes) - 1, finish_reason="stop")],
            state=self._state_type(),
            is_completed=True,
            ok=True,
            stop_condition="agent_completed",
        )

    @functools.cached_property
    def _state_type(self) -> Any:
        return importlib.import_module(f"{INTERFACE}.state").state_cls(self._task_type)


class _ErrorsAsConfigErrors:
    """A context that turns any error of foreign code into a ConfigError that starts with `what`."""

    def __init__(self, what: str):
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, ConfigError):
            reason = f"{type(error).__name__} {' '.join(str(error).split())[:500]!r}"
            raise ConfigError(f"{self._what}, with {reason}; install its package and give its args") from error


class _ComputingLoop(asyncio.BaseEventLoop):
    """An event loop without files and without a system clock, neither of which a confined process has.

    It runs everything but input and output. Timers end at once, in their order.
    """

    _ready: Any
    _scheduled: Any

    def __init__(self) -> None:
        super().__init__()
        self._selector = self
        self._now = 0.0

    def time(self) -> float:
        """Return the time at which the latest timer ended."""
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """Go on to the next timer. Without one, the coroutine waits for input or output."""
        if timeout is None:
            raise RuntimeError("a reward waits for input or output, which scoring does not allow")
        self._now += timeout
        return []

    def forget_all(self) -> None:
        """Drop all callbacks and timers that a coroutine left behind."""
        self._ready.clear()
        self._scheduled.clear()

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no events of files."""

    def _write_to_self(self) -> None:
        """Nothing wakes this loop from another thread."""


@functools.cache
def _computing_loop() -> _ComputingLoop:
    """Return the loop of this process. It must be made before the process is confined."""
    return _ComputingLoop()


def run_without_io(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine that computes, perhaps with gather, timers and locks, in a confined process.

    Args:
        coroutine: The coroutine.

    Returns:
        Its result.

    Raises:
        RuntimeError: It waits for a thread, a process, a file or the network.
    """
    loop = _computing_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.forget_all()
