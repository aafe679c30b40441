"""Reward parts: named functions of a completion, whose weighted sum is its reward.

Each part is a pure function of a `JudgedCompletion`; its docstring states the range of its values. To add a part,
decorate a function in this file, or name a function of your own package in the configuration as
`pkg://package.module.function`.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.plugins import PLUGIN_PREFIX, load_plugin


@dataclass(frozen=True)
class JudgedCompletion:
    """The input of a reward part. Lengths are in tokens."""

    text: str
    accuracy: float
    num_tokens: int
    max_tokens: int


@dataclass(frozen=True)
class RewardSpec:
    """One part of the reward: its name, or `pkg://` name, weight and arguments."""

    name: str
    weight: float = 1.0
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The part's name in metrics: the name of the function."""
        return self.name.rpartition(".")[2]


Part = Callable[..., float]
_PARTS: dict[str, Part] = {}
_PLUGIN_FORM = f"{PLUGIN_PREFIX}package.module.function"


def reward_part(function: Part) -> Part:
    """Make `function(completion, **args)` a reward part under its own name."""
    _PARTS[function.__name__] = function
    return function


def combine(specs: Sequence[RewardSpec], completion: JudgedCompletion) -> tuple[float, dict[str, float]]:
    """Return the reward of `completion` and the unweighted value of every part by label.

    Raises:
        ValueError: A part gives no finite number.
    """
    parts = {}
    for spec in specs:
        value = float(_find(spec.name)(completion, **spec.args))
        if not math.isfinite(value):
            raise ValueError(f"reward {spec.name!r} gave {value}; a reward is a finite number")
        parts[spec.label] = value
    return sum(spec.weight * parts[spec.label] for spec in specs), parts


def parse_reward(raw: Mapping[str, Any]) -> list[RewardSpec]:
    """Check the configuration's form `{accuracy: {weight: 1}, cosine: {weight: 0.3, max_len: 512}}` and return specs.

    Raises:
        ConfigError: A part or an argument is unknown, a weight or a value is unusable, or nothing is rewarded.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"the reward is a {type(raw).__name__}; write it as a mapping: {{accuracy: {{weight: 1}}}}")
    specs = []
    for name, options in raw.items():
        part = _find(name)
        if not isinstance(options, Mapping | None):
            raise ConfigError(f"reward {name!r} has {options!r}; write a mapping: {name}: {{weight: 1}}")
        args = dict(options or {})
        weight = args.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ConfigError(f"reward {name!r} has weight {weight!r}; a weight is a number")
        allowed = set(list(inspect.signature(part).parameters)[1:])
        for arg in args:
            if arg not in allowed:
                raise ConfigError(f"reward {name!r} has no argument {arg!r}; {choose_from(arg, allowed | {'weight'})}")
        try:
            combine([RewardSpec(name, 1.0, args)], JudgedCompletion("", accuracy=0.0, num_tokens=1, max_tokens=10**6))
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"reward {name!r} refuses {args}: {error}") from error
        specs.append(RewardSpec(name, float(weight), args))
    labels = [spec.label for spec in specs]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"two rewards are called {label!r}: rename the function of one")
    if not any(spec.weight for spec in specs):
        raise ConfigError("no reward has a weight other than 0: add {accuracy: {weight: 1}}")
    return specs


def _find(name: str) -> Part:
    if name in _PARTS:
        return _PARTS[name]
    if not str(name).startswith(PLUGIN_PREFIX):
        raise ConfigError(f"unknown reward {name!r}; {choose_from(name, _PARTS)} or {_PLUGIN_FORM}")
    part = load_plugin(name, kind="reward", form=_PLUGIN_FORM)
    if not callable(part):
        raise ConfigError(f"reward {name!r} is a {type(part).__name__}; it has to be a function of a JudgedCompletion")
    return part


@reward_part
def accuracy(completion: JudgedCompletion) -> float:
    """The dataset's own score of the answer, in [0, 1]."""
    return completion.accuracy


@reward_part
def solved(completion: JudgedCompletion) -> float:
    """1 if the dataset's own score is 1, else 0. Without partial credit, a policy cannot settle for it."""
    return float(completion.accuracy >= 1)


@reward_part
def format(completion: JudgedCompletion, *, thinking: bool = True, prepend_thinking_token: bool = False) -> float:
    """1 for exactly one think block then exactly one answer block and nothing else; in [0, 1].

    Half is for the answer block: closed, once, at the very end. Half is for the think block: closed, once, at the
    very start, before the answer.

    Args:
        completion: The completion.
        thinking: Whether a think block is wanted; without it the answer block alone counts 1.
        prepend_thinking_token: Whether the chat template has written the opening think tag already.
    """
    text = ("<think>" if prepend_thinking_token else "") + completion.text
    text = text.strip()
    answered = _once(text, "<answer>", "</answer>") and text.endswith("</answer>")
    # A think part that ends inside the answer makes the answer a draft.
    answered = answered and text.rfind("</think>") < text.index("<answer>")
    if not thinking:
        return float(answered and text.startswith("<answer>"))
    thought = _once(text, "<think>", "</think>") and text.startswith("<think>")
    if thought and answered:
        between = text[text.index("</think>") + len("</think>") : text.index("<answer>")]
        return 1.0 if not between.strip() else 0.5
    return 0.5 * (thought + answered)


@reward_part
def length(completion: JudgedCompletion, *, max_len: int | None = None, buffer: int | None = None) -> float:
    """DAPO's soft overlong penalty (arXiv 2503.14476, eq. 13), in [-1, 0].

    0 up to `max_len - buffer` tokens, then falling linearly to -1 at `max_len`.

    Args:
        completion: The completion.
        max_len: By default the length of the longest response.
        buffer: By default a quarter of `max_len`.

    Raises:
        ConfigError: max_len < 1 or buffer < 0.
    """
    limit = _limit("length", completion, max_len)
    soft = limit // 4 if buffer is None else buffer
    if soft < 0:
        raise ConfigError(f"reward 'length' has buffer {soft!r}; give a number of tokens from 0 up")
    excess = completion.num_tokens - (limit - soft)
    if excess <= 0:
        return 0.0
    return -1.0 if excess >= soft else -excess / soft


@reward_part
def cosine(
    completion: JudgedCompletion,
    *,
    max_len: int | None = None,
    right_short: float = 1.0,
    right_long: float = 0.5,
    wrong_short: float = -0.5,
    wrong_long: float = 0.0,
) -> float:
    """Cosine length scaling (arXiv 2502.03373, sec. 4), in [wrong_short, right_short].

    Right answers (accuracy 1) earn from `right_short` at no tokens down to `right_long` at `max_len`. All others earn
    from `wrong_short` up to `wrong_long`. After `max_len`, by default the length of the longest response, the reward
    stays the same.

    Raises:
        ConfigError: A wrong answer could earn more than a right one, or max_len < 1.
    """
    if not wrong_short <= wrong_long <= right_long <= right_short:
        raise ConfigError(
            "reward 'cosine' needs wrong_short <= wrong_long <= right_long <= right_short, got "
            f"{wrong_short}, {wrong_long}, {right_long}, {right_short}"
        )
    limit = _limit("cosine", completion, max_len)
    progress = min(completion.num_tokens, limit) / limit
    short, long = (right_short, right_long) if completion.accuracy >= 1 else (wrong_short, wrong_long)
    return long + 0.5 * (short - long) * (1 + math.cos(progress * math.pi))


def _limit(name: str, completion: JudgedCompletion, max_len: int | None) -> int:
    limit = completion.max_tokens if max_len is None else max_len
    if limit < 1:
        raise ConfigError(f"reward {name!r} has max_len {limit!r}; give a number of tokens from 1 up")
    return limit


def _once(text: str, opening: str, closing: str) -> bool:
    return text.count(opening) == text.count(closing) == 1 and text.index(opening) < text.index(closing)
