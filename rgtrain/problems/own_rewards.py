"""Reward functions of the user, which a configuration names as `pkg://package.module.function`.

A function declares the fields of `JudgedCompletion` that it uses as parameters, or `completion` for all of them. With
the parameter `completions` it is batched: it gets all completions of a prompt as a list and returns a list. All other
parameters are its arguments in the configuration.
"""

import functools
import inspect
import math
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.judged_completion import FIELDS, JudgedCompletion
from rgtrain.problems.plugins import load_plugin

# The parameters with which a function receives all fields of a completion, or all completions of a prompt.
WHOLE, BATCH = "completion", "completions"
# A limit of the scorer's messages leaves room for arguments of this size.
_MAX_ARGS_BYTES = 1 << 15
# Rewards are stored with 32 bits, in which larger numbers are infinite.
_LARGEST = 3e38
# Words of other frameworks' reward functions, with the field that has this meaning.
_MEANT = {
    "answer": "expected_answer (or extracted_answer)",
    "ground_truth": "expected_answer",
    "solution": "expected_answer",
    "solution_str": "text",
    "response": "text",
    "prompt": "messages (or question)",
    "prompts": f"{BATCH}, a list of JudgedCompletion",
    "info": "entry",
    "extra_info": "entry",
    "task": "dataset",
    "data_source": "dataset",
}


@dataclass(frozen=True)
class OwnOptions:
    """The options of an own reward function in the configuration, besides its weight and arguments.

    Attributes:
        trusted: Whether it runs in the process that computes rewards instead of the sandbox, with files, network and
            memory of that process.
        parts: The weight of each named part, if the function returns several. A part of weight 0 is only logged.
        timeout_s: Deadline of a call in seconds, if trusted. In the sandbox, `reward.scorer.timeout_s` is the deadline.
        concurrency: Maximum number of calls at the same time, if trusted. None means 16 for an asynchronous function.
            For others it means 1, because they may not be safe to call from several threads.
        on_failure: The value of each part for a completion for which the function fails.
        executes_text: Whether the function runs text of the completion as code. Each call in the sandbox then gets a
            fresh process.
    """

    trusted: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)
    timeout_s: float = 60.0
    concurrency: int | None = None
    on_failure: float = 0.0
    executes_text: bool = False


OPTIONS = tuple(each.name for each in fields(OwnOptions))


def parse_own_options(name: str, raw: Mapping[str, Any]) -> OwnOptions:
    """Parse and check the options of an own reward function.

    Args:
        name: The name of the function.
        raw: Its options without weight and arguments.

    Returns:
        The options.

    Raises:
        ConfigError: A value cannot be used.
    """
    for option, value in raw.items():
        allowed, words = _RULES[option]
        if not allowed(value):
            raise ConfigError(f"reward {name!r} has {option}={value!r}; give {words}")
    for option in ("executes_text",) if raw.get("trusted", False) else ("timeout_s", "concurrency"):
        if option in raw:
            reason = "is for the sandbox" if option == "executes_text" else "needs trusted: true (see reward.scorer)"
            raise ConfigError(f"reward {name!r} has {option}, which {reason}; remove it")
    return OwnOptions(**raw)


def _are_part_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(part, str) and re.fullmatch(r"\w+", part) and is_finite_number(weight)
        for part, weight in value.items()
    )


def is_finite_number(value: Any) -> bool:
    """Return whether a value of a configuration is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_BOOLEAN = (lambda value: isinstance(value, bool), "true or false")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "trusted": _BOOLEAN,
    "executes_text": _BOOLEAN,
    "parts": (_are_part_weights, "the weight of each part by name, as in `{steps: 1, style: 0}`"),
    "timeout_s": (lambda value: is_finite_number(value) and value > 0, "seconds above 0"),
    "concurrency": (lambda value: type(value) is int and value >= 1, "a whole number from 1 up"),
    "on_failure": (is_finite_number, "a finite number"),
}


class OwnReward:
    """A reward function of the user with its arguments. It turns completions into finite numbers.

    Args:
        name: `pkg://package.module.function`.
        args: Its arguments in the configuration.
        parts: The names of the parts that it returns, or none if it returns a number.

    Raises:
        ConfigError: The function cannot be imported, or its parameters do not fit.
    """

    def __init__(self, name: str, args: Mapping[str, Any], parts: Sequence[str] = ()):
        self.name = name
        self.parts = tuple(parts)
        self._args = dict(args)
        self._function = _load(name)
        parameters = _parameters(name, self._function)
        self.is_async = _is_async(self._function)
        self.is_batched = BATCH in parameters
        self._takes_whole = WHOLE in parameters
        self._fields = [parameter for parameter in parameters if parameter in FIELDS]
        self._check_parameters(parameters)

    @property
    def num_values(self) -> int:
        """The number of values per completion."""
        return len(self.parts) or 1

    @property
    def sees_group(self) -> bool:
        """Whether the function receives the other completions of the same prompt."""
        return self.is_batched or self._takes_whole or "group" in self._fields

    def values(self, completions: Sequence[JudgedCompletion]) -> list[float]:
        """Call a function that is not asynchronous.

        Args:
            completions: All completions of a prompt if the function is batched, otherwise one.

        Returns:
            The value of each part of the first completion, of the second, and so on.

        Raises:
            TypeError: The function returns a value of a wrong type.
            ValueError: The function returns a number that is not finite, or wrong parts or lengths.
            Exception: The function raises.
        """
        return self._checked(self._function(**self._keywords(completions)), len(completions))

    async def values_async(self, completions: Sequence[JudgedCompletion]) -> list[float]:
        """Call an asynchronous function, as `values` does."""
        return self._checked(await self._function(**self._keywords(completions)), len(completions))

    def _keywords(self, completions: Sequence[JudgedCompletion]) -> dict[str, Any]:
        if self.is_batched:
            return {BATCH: list(completions), **self._args}
        [completion] = completions
        given = {name: getattr(completion, name) for name in self._fields} | self._args
        return given | {WHOLE: completion} if self._takes_whole else given

    def _checked(self, returned: Any, num_completions: int) -> list[float]:
        if inspect.iscoroutine(returned):
            returned.close()
            raise TypeError("it returned a coroutine; declare the function with `async def`")
        if not self.is_batched:
            return self._numbers(returned)
        if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__len__"):
            raise TypeError(f"it returned {_shown(returned)}; return a list with one value per completion")
        if len(returned) != num_completions:
            raise ValueError(f"it returned {len(returned)} values for {num_completions} completions")
        return [number for one in returned for number in self._numbers(one)]

    def _numbers(self, returned: Any) -> list[float]:
        if not self.parts:
            if isinstance(returned, Mapping):
                weights = ", ".join(f"{part}: 1" for part in returned)
                raise TypeError(f"it returned several parts; give each a weight, as in `parts: {{{weights}}}`")
            return [_number(returned)]
        if not isinstance(returned, Mapping) or set(returned) != set(self.parts):
            raise TypeError(f"it returned {_shown(returned)}; return a mapping with the parts {', '.join(self.parts)}")
        return [_number(returned[part]) for part in self.parts]

    def _check_parameters(self, parameters: Mapping[str, inspect.Parameter]) -> None:
        own = [name for name in parameters if name not in (*FIELDS, WHOLE, BATCH)]
        for name in self._args:
            if name in FIELDS or name in (WHOLE, BATCH):
                raise ConfigError(f"reward {self.name!r} receives {name!r} for each completion; remove this argument")
            if name not in own:
                allowed = {*own, "weight", *OPTIONS}
                raise ConfigError(f"reward {self.name!r} has no argument {name!r}; {choose_from(name, allowed)}")
        for name in own:
            if name in ("weight", *OPTIONS):
                raise ConfigError(f"reward {self.name!r} has a parameter {name!r}, which is an option; rename it")
            if name not in self._args and parameters[name].default is inspect.Parameter.empty:
                meant = f"use {_MEANT[name]}" if name in _MEANT else choose_from(name, (*FIELDS, WHOLE, BATCH))
                raise ConfigError(
                    f"reward {self.name!r} has a parameter {name!r}, which is no field of a completion and has no "
                    f"value; {meant}, or give the argument a value"
                )
        if self.is_batched and (self._takes_whole or self._fields):
            other = WHOLE if self._takes_whole else self._fields[0]
            raise ConfigError(f"reward {self.name!r} is batched and has a parameter {other!r}; read it from {BATCH}")
        if not self.is_batched and not self._takes_whole and not self._fields:
            raise ConfigError(
                f"reward {self.name!r} uses no field of a completion; declare {WHOLE}, {BATCH} or fields "
                f"({', '.join(FIELDS)}) as parameters"
            )
        try:
            size = len(pickle.dumps(self._args))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ConfigError(f"reward {self.name!r} has arguments that are no plain values ({error})") from error
        if size > _MAX_ARGS_BYTES:
            raise ConfigError(f"reward {self.name!r} has arguments of {size} bytes; keep long lists in its module")


def _load(name: str) -> Callable[..., Any]:
    function = load_plugin(name, kind="reward")
    if not callable(function) or isinstance(function, type):
        kind = "class" if isinstance(function, type) else type(function).__name__
        raise ConfigError(f"reward {name!r} is a {kind}; name a function or a callable object")
    return function


def _parameters(name: str, function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function by name, without `**kwargs`, which receives nothing."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"reward {name!r} has no signature ({error}); name a Python function") from error
    for parameter in parameters.values():
        if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
            raise ConfigError(
                f"reward {name!r} has the parameter {str(parameter)!r}, but functions are called by keywords; rename it"
            )
    return {key: value for key, value in parameters.items() if value.kind is not inspect.Parameter.VAR_KEYWORD}


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


def _number(value: Any) -> float:
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        advice = "return a number, 0 if the reward does not apply" if value is None else "return a number"
        raise TypeError(f"it returned {_shown(value)}; {advice}")
    number = float(value)
    if not abs(number) <= _LARGEST:
        raise ValueError(f"it returned {number}; a reward must be a finite number of 32 bits")
    return number


def _shown(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {value!r:.80}"
