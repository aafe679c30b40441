"""The single definition of a right answer in this project: the scorer of the entry's dataset judges it.

Scores are those of Reasoning Gym, except that None and blank answers always score 0. Reasoning Gym gives them up to
0.05, and 1.0 on rare problems.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from rgtrain.errors import ConfigError, choose_from
from rgtrain.machine.devices import num_cpus
from rgtrain.problems.entries import dump_entry
from rgtrain.problems.judged_completion import JudgedCompletion
from rgtrain.problems.scoring.confinement import NotConfined, refusal_reason
from rgtrain.problems.scoring.execution import may_run_code
from rgtrain.problems.scoring.judges import is_known_judge
from rgtrain.problems.scoring.pool import Item, Pool
from rgtrain.problems.scoring.result_table import MAX_VALUES
from rgtrain.problems.scoring.score import Score

# Scorers may take more than linear time. The longest right answers, in codeio, have tens of thousands of characters.
MAX_ANSWER_CHARS = 100_000


class Scorer:
    """A context manager that judges answers in confined processes, for training rewards and evaluation.

    An answer is untrusted text. It can affect only the process that judges it, and not the scores of other answers. An
    answer that cannot be judged scores 0, and `Score.error` is the reason. Nine of Reasoning Gym's scorers execute text
    of the answer. As in Reasoning Gym itself, such text can choose its score. Errors of this package are raised.

    Args:
        num_workers: Number of processes; by default the number of CPUs.
        timeout_s: CPU seconds allowed per answer, by default 5. An answer that waits instead of computing times out
            after three times as long by the wall clock. See pool.py.
        memory_mb: Memory in MiB allowed per answer, by default 512.
        allow_unconfined: Judge even if the kernel refuses confinement. The limits on time and memory still apply, but
            executed answers can access files and the network.

    Raises:
        ConfigError: A setting is unknown or cannot be used.

    >>> entry = dict(question="2 + 2 =", answer="4", metadata=dict(source_dataset="chain_sum"))
    >>> with Scorer(num_workers=1) as scorer:
    ...     scorer.score("4", entry).accuracy
    1.0
    """

    def __init__(self, **settings: Any):
        self._settings = parse_scorer(settings)
        self._pool: Pool | None = None
        self._judges: dict[tuple[str, str], tuple[int, str | None]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Scorer":
        try:
            self._pool = Pool(**self._settings)
        except NotConfined as reason:
            raise _confinement_error(str(reason)) from reason
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._running_pool().close()
        self._pool = None
        self._judges.clear()

    def score(self, answer: str | None, entry: Mapping[str, Any]) -> Score:
        """Judge one answer to the problem of `entry`, whose metadata contain the dataset and its parameters."""
        return self.score_many([(answer, entry)])[0]

    def score_many(self, pairs: Iterable[tuple[str | None, Mapping[str, Any]]]) -> list[Score]:
        """Judge (answer, entry) pairs and return their scores in the same order."""
        items = [self._make_item(answer, entry) for answer, entry in pairs]
        waiting = [item for item in items if isinstance(item, Item)]
        judged = iter(self._running_pool().submit(waiting).result() if waiting else ())
        return [next(judged) if isinstance(item, Item) else item for item in items]

    def submit(self, answer: str | None, entry: Mapping[str, Any]) -> "Future[Score]":
        """Start judging one answer and return a future of its score."""
        future: Future[Score] = Future()
        future.set_running_or_notify_cancel()
        item = self._make_item(answer, entry)
        if isinstance(item, Score):
            future.set_result(item)
            return future

        def pass_on(judged: "Future[list[Score]]") -> None:
            error = judged.exception()
            if error is None:
                future.set_result(judged.result()[0])
            else:
                future.set_exception(error)

        self._running_pool().submit([item]).add_done_callback(pass_on)
        return future

    def prepare_reward(self, name: str, *, args: Mapping[str, Any], parts: Sequence[str]) -> int:
        """Import an own reward function into the confined processes.

        Args:
            name: `pkg://package.module.function`.
            args: Its arguments.
            parts: The names of the parts that it returns, or none if it returns a number.

        Returns:
            Its number for `submit_rewards`.

        Raises:
            ConfigError: It cannot be imported.
        """
        with self._lock:
            return self._running_pool().prepare_reward(name, args=dict(args), parts=tuple(parts))

    def submit_rewards(
        self, function: int, calls: Sequence[Sequence[JudgedCompletion]], *, num_values: int, executes_text: bool
    ) -> "Future[list[Score]]":
        """Start calls of an own reward function.

        Args:
            function: Its number.
            calls: The completions of each call; at least one call.
            num_values: The number of values that a call returns.
            executes_text: Whether each call gets a fresh process.

        Returns:
            A future of a result with `values` for each call.

        Raises:
            ConfigError: A call returns too many values.
        """
        if num_values > MAX_VALUES:
            raise ConfigError(f"a batched reward returns {num_values} values at once; reduce the group to {MAX_VALUES}")
        return self._running_pool().submit([Item(function, call, None, executes_text, num_values) for call in calls])

    def _running_pool(self) -> Pool:
        if self._pool is None:
            raise RuntimeError("a Scorer can judge only inside a with block; use `with Scorer() as scorer`")
        return self._pool

    def _make_item(self, answer: str | None, entry: Mapping[str, Any]) -> Item | Score:
        metadata = entry["metadata"]
        dataset, params = metadata["source_dataset"], metadata.get("source_params")
        prepared = self._judges.get((dataset, repr(params) if params else ""))
        judge, field = prepared or self._prepare(dataset, params or {})
        if not answer or answer.isspace():
            return Score(0.0)
        if len(answer) > MAX_ANSWER_CHARS:
            return Score(0.0, error=f"too long: over {MAX_ANSWER_CHARS} characters")
        if field is not None:
            entry = {field: entry[field]}
        return Item(judge, answer, entry, may_run_code(dataset, answer))

    def _prepare(self, dataset: str, params: Mapping[str, Any]) -> tuple[int, str | None]:
        pool = self._running_pool()
        if not is_known_judge(dataset):
            raise KeyError(f"an entry has dataset {dataset!r}, which is neither registered nor an allowed verifier")
        key = (dataset, repr(params) if params else "")
        with self._lock:
            if key not in self._judges:
                self._judges[key] = pool.prepare(dataset=dataset, params=dump_entry(dict(params)))
            return self._judges[key]


def parse_scorer(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Parse and check the scorer settings of a configuration.

    Args:
        raw: Arguments of a Scorer, as in `{timeout_s: 5}`.

    Returns:
        All arguments of a Scorer, including defaults.

    Raises:
        ConfigError: A setting is unknown or cannot be used.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"the scorer is {raw!r}; write a mapping, as in `{{timeout_s: 5}}`")
    for name in raw:
        if name not in _DEFAULTS:
            raise ConfigError(f"the scorer has no setting {name!r}; {choose_from(name, _DEFAULTS)}")
    settings = {**_DEFAULTS, **raw}
    if settings["num_workers"] is None:
        settings["num_workers"] = num_cpus()
    for name, value in settings.items():
        allowed, words = _RULES[name]
        if not allowed(value):
            raise ConfigError(f"the scorer's {name} is {value!r}; give {words}")
    return settings


def check_confinement(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError if a Scorer with these settings could not start because the kernel refuses confinement."""
    reason = None if settings["allow_unconfined"] else refusal_reason()
    if reason:
        raise _confinement_error(reason)


def _confinement_error(reason: str) -> ConfigError:
    return ConfigError(
        f"answers cannot be judged safely ({reason}); allow seccomp, as Docker's default profile does, or set the "
        "scorer's allow_unconfined=true if the machine needs no protection"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_COUNT = (_is_count, "a whole number from 1 up")
_DEFAULTS: dict[str, Any] = {"num_workers": None, "timeout_s": 5.0, "memory_mb": 512, "allow_unconfined": False}
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_workers": _COUNT,
    "memory_mb": _COUNT,
    "timeout_s": (lambda value: _is_number(value) and 0 < value < float("inf"), "seconds above 0"),
    "allow_unconfined": (lambda value: isinstance(value, bool), "true or false"),
}
