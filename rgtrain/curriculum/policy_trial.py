"""Try the user's own curriculum and mixture policies when the configuration is read, so that no run fails hours later.

A trial checks the methods with their arguments, and then uses two equal policies as a run does: it draws, observes
groups, saves the state of one policy and restores it in another.
"""

import inspect
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rgtrain.errors import ConfigError

# The methods of each kind with the arguments that they are called with, positional and by keyword.
_METHODS: Mapping[str, Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "curriculum policy": {
        "draw": (("rng",), ()),
        "observe": (("level", "successes"), ()),
        "end_step": ((), ()),
        "state_dict": ((), ()),
        "load_state_dict": (("state",), ()),
        "metrics": ((), ()),
    },
    "mixture policy": {
        "now": ((), ()),
        "observe": (("dataset",), ("has_signal",)),
        "state_dict": ((), ()),
        "load_state_dict": (("state",), ()),
    },
}
_EXAMPLES = {
    "curriculum policy": "rgtrain/curriculum/policies.py",
    "mixture policy": "rgtrain/curriculum/weights.py",
}
# Groups of eight answers with mixed success, all solved, and none solved, so that the level rises and falls.
_SUCCESSES = ([0.0, 0.25, 0.5, 1.0] * 2, [1.0] * 8, [0.0] * 8)
# Odd numbers, so that counters of a policy are restored at all of their values.
_NUM_STEPS, _GROUPS_PER_STEP, _STEPS_TO_RESTORE = 21, 5, 3


def check_methods(cls: Any, *, kind: str, name: str) -> None:
    """Check that a policy is a class with all methods, and that each takes the arguments of a run.

    Args:
        cls: The object that the configuration names.
        kind: "curriculum policy" or "mixture policy".
        name: Its name in the configuration, for messages.

    Raises:
        ConfigError: It is no class, lacks methods, or a method takes other arguments.
    """
    if not isinstance(cls, type):
        raise ConfigError(f"{kind} {name!r} is a {type(cls).__name__}; name a class as in {_EXAMPLES[kind]}")
    wanted = {method: _form(method, *arguments) for method, arguments in _METHODS[kind].items()}
    if missing := [form for method, form in wanted.items() if not callable(getattr(cls, method, None))]:
        raise ConfigError(f"{kind} {name!r} lacks the methods {', '.join(missing)}; see {_EXAMPLES[kind]}")
    for method, (positional, keywords) in _METHODS[kind].items():
        function = getattr(cls, method)
        if inspect.iscoroutinefunction(function):
            raise ConfigError(f"{kind} {name!r} has an asynchronous method {method}; remove `async`")
        # A static or class method gets no instance.
        is_bound = isinstance(inspect.getattr_static(cls, method), staticmethod | classmethod)
        try:
            signature = inspect.signature(function)
            signature.bind(*([] if is_bound else [None]), *positional, **dict.fromkeys(keywords))
        except ValueError:
            # A method of an extension module, which may have no signature. The trial calls it.
            continue
        except TypeError:
            raise ConfigError(
                f"{kind} {name!r} has {method}{signature}, but it is called as {wanted[method]}; see {_EXAMPLES[kind]}"
            ) from None


def _form(method: str, positional: Sequence[str], keywords: Sequence[str]) -> str:
    return f"{method}({', '.join([*positional, *(f'{keyword}=...' for keyword in keywords)])})"


def try_curriculum_policy(make: Callable[[], Any], *, num_levels: int, name: str) -> None:
    """Use a curriculum policy as a run does.

    Args:
        make: Makes the policy.
        num_levels: Its number of levels.
        name: Its name in the configuration, for messages.

    Raises:
        ConfigError: A method fails or returns an unusable value, draws do not depend on `rng` and the state only, or
            a restored policy draws other levels.
    """
    trial = _Trial("curriculum policy", name)
    policy, twin = trial.made(make), trial.made(make)
    for step in range(_NUM_STEPS * len(_SUCCESSES)):
        successes = _SUCCESSES[step // _NUM_STEPS]
        for group in range(_GROUPS_PER_STEP):
            level, again = (trial.call(one, "draw", random.Random(f"{step}/{group}")) for one in (policy, twin))
            if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < num_levels:
                raise trial.refused("draw(rng)", level, f"return a whole number from 0 to {num_levels - 1}")
            if level != again:
                raise trial.differs(
                    f"two equal policies drew the levels {level} and {again}", "take all randomness from `rng`"
                )
            for one in (policy, twin):
                trial.call(one, "observe", level, list(successes))
        for one in (policy, twin):
            trial.call(one, "end_step")
        if step % _STEPS_TO_RESTORE == 0:
            # From here on, the twin is a restored policy.
            twin = trial.made(make)
            trial.call(twin, "load_state_dict", trial.saved_state(policy))
    metrics = trial.call(policy, "metrics")
    if not isinstance(metrics, Mapping) or not all(
        isinstance(key, str) and _is_number(value) for key, value in metrics.items()
    ):
        raise trial.refused("metrics()", metrics, "return finite numbers by short names")


def try_mixture_policy(make: Callable[[], Any], *, datasets: Sequence[str], name: str) -> None:
    """Use a mixture policy as a run does.

    Args:
        make: Makes the policy.
        datasets: The datasets of the mixture.
        name: Its name in the configuration, for messages.

    Raises:
        ConfigError: A method fails or returns an unusable value, or a restored policy has other weights.
    """
    trial = _Trial("mixture policy", name)
    policy, twin = trial.made(make), trial.made(make)
    for step in range(_NUM_STEPS):
        weights, again = (trial.call(one, "now") for one in (policy, twin))
        if (
            not isinstance(weights, Mapping)
            or {*weights} != {*datasets}
            or not all(_is_number(weight) and weight >= 0 for weight in weights.values())
            or not sum(weights.values()) > 0
        ):
            raise trial.refused("now()", weights, "return a number from 0 up for each dataset, some above 0")
        if weights != again:
            raise trial.differs(f"two equal policies had the weights {weights} and {again}", "use no randomness")
        for number, dataset in enumerate(datasets):
            for one in (policy, twin):
                trial.call(one, "observe", dataset, has_signal=(step + number) % 3 == 0)
        if step == _NUM_STEPS // 2:
            twin = trial.made(make)
            trial.call(twin, "load_state_dict", trial.saved_state(policy))


class _Trial:
    """Calls methods of a policy and turns their errors into messages.

    Args:
        kind: "curriculum policy" or "mixture policy".
        name: The policy's name in the configuration.
    """

    def __init__(self, kind: str, name: str):
        self._policy = f"{kind} {name!r}"
        self._example = _EXAMPLES[kind]
        self._is_restored = False

    def made(self, make: Callable[[], Any]) -> Any:
        with self._errors_of("its constructor"):
            return make()

    def call(self, policy: Any, method: str, *arguments: Any, **keywords: Any) -> Any:
        with self._errors_of(method):
            return getattr(policy, method)(*arguments, **keywords)

    def saved_state(self, policy: Any) -> Any:
        """Return the state of a policy as a checkpoint gives it back."""
        state = self.call(policy, "state_dict")
        try:
            restored = json.loads(json.dumps(state, allow_nan=False))
        except (TypeError, ValueError, RecursionError):
            restored = None
        if not isinstance(restored, dict):
            advice = "return a mapping of names to finite numbers, texts, lists and mappings"
            raise self.refused("state_dict()", state, advice)
        self._is_restored = True
        return restored

    def refused(self, call: str, value: Any, advice: str) -> ConfigError:
        return ConfigError(f"{self._policy} returned {value!r:.100} from {call}; {advice}")

    def differs(self, fault: str, advice: str) -> ConfigError:
        """Return the error for two policies that should be equal."""
        if self._is_restored:
            fault = f"after load_state_dict(state_dict()), {fault}"
            advice = "let state_dict() return everything that later draws depend on"
        return ConfigError(f"{self._policy} cannot be resumed: {fault}; {advice}")

    @contextmanager
    def _errors_of(self, method: str) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            raise
        # The code is the user's and may raise anything.
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            raise ConfigError(f"{self._policy} fails in {method} ({reason}); see {self._example}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
